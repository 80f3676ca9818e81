"""CIFAR-10 and CIFAR-100 in their binary versions, unpacked or straight out of the published archive.

Format (https://www.cs.toronto.edu/~kriz/cifar.html): a file is a sequence of images, each the label bytes (CIFAR-10:
the class; CIFAR-100: superclass, class) and 3072 bytes, the red, the green and the blue plane of 32 × 32 pixels.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from xpcnn.data.dataset import CLASSES, Dataset
from xpcnn.errors import DataError

Host = np.ndarray[Any, Any]

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CAP = 1 << 28  # bytes that an archive may unpack to; the published ones have 184 million
MOST_RATIO = 20  # times its own size; images hardly shrink (1.1)
_FREE = 1 << 24  # unpacked bytes that are not yet suspicious
_ROWS = 1000  # images read at a time
_BLOCK = 512  # bytes of a tar archive's header, to whose multiples its members are padded


@dataclass(frozen=True)
class Layout:
    """What a data set's files are called and hold."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    label_bytes: int  # the last one is the class
    rows: int  # images in each file of the training part; the test part has 10,000

    @property
    def members(self) -> tuple[str, ...]:
        """The files' names."""
        return (*self.train, self.test)


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-binary.tar.gz", "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin", 1, 10_000,
    ),
    "cifar100": Layout("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), "test.bin", 2, 50_000),
}  # fmt: skip


def has_cifar(name: str, directory: Path) -> bool:
    """Say whether a directory has the archive, or one of the unpacked files."""
    layout = LAYOUTS[name]
    return (directory / layout.archive).exists() or _unpacked(layout, directory) is not None


def read_cifar(name: str, directory: Path) -> tuple[Dataset, Dataset]:
    """Read the training and the test part from a directory with the unpacked files, or else with the archive.

    Parameters
    ----------
    name : {"cifar10", "cifar100"}
        The data set.
    directory : path
        The directory; unpacked files may lie in the folder that the archive unpacks to.

    Raises
    ------
    DataError
        When a file is missing, truncated, corrupt, of another kind or too large.
    """
    layout, classes = LAYOUTS[name], CLASSES[name]
    where = _unpacked(layout, directory)
    path = directory / layout.archive if where is None else where
    parts: dict[str, tuple[Host, Host]] = {}
    try:
        for member, file, size in _files(path, layout) if where is None else _plain(path, layout):
            if member in parts:
                raise DataError(f"{path} has {member} twice.")
            most = layout.rows if member in layout.train else 10_000
            parts[member] = _read(file, size, f"{member} in {path}", layout.label_bytes, most)
            if parts[member][1].max() >= len(classes):
                raise DataError(f"{member} in {path} has a label above {len(classes) - 1}.")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is a corrupt or truncated gzip file ({error}).") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    missing = [member for member in layout.members if member not in parts]
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)}.")
    test = Dataset(*parts.pop(layout.test), classes)
    return _joined([parts.pop(member) for member in layout.train], classes), test


def _unpacked(layout: Layout, directory: Path) -> Path | None:
    """Return the directory that has one of the unpacked files at least, if there is one."""
    for place in (directory, directory / layout.folder):
        if any((place / member).exists() for member in layout.members):
            return place
    return None


def _joined(parts: list[tuple[Host, Host]], classes: tuple[str, ...]) -> Dataset:
    """Return the parts as one data set; each is let go as it is copied."""
    if len(parts) == 1:
        return Dataset(*parts[0], classes)
    labels = np.concatenate([labels for _, labels in parts])
    images, done = np.empty((len(labels), *SHAPE), dtype=np.uint8), 0
    while parts:
        part, _ = parts.pop(0)
        images[done : done + len(part)] = part
        done += len(part)
    return Dataset(images, labels, classes)


def _read(file: IO[bytes], size: int, name: str, label_bytes: int, most: int) -> tuple[Host, Host]:
    """Read images (N, 3, 32, 32) and labels (N,) of a file whose size is known."""
    width = label_bytes + PIXELS
    count, rest = divmod(size, width)
    if rest or not count:
        raise DataError(f"{name} has {size:,} bytes, which is not a whole number of images of {width} bytes.")
    if count > most:
        raise DataError(f"{name} has {count:,} images, more than the {most:,} of the published file.")
    images, labels = np.empty((count, *SHAPE), dtype=np.uint8), np.empty(count, dtype=np.uint8)
    for start in range(0, count, _ROWS):
        rows = min(_ROWS, count - start)
        content = _exactly(file, rows * width)
        if len(content) < rows * width:
            raise DataError(
                f"{name} is truncated: it ends inside image {start + len(content) // width:,} of {count:,}."
            )
        table = np.frombuffer(content, dtype=np.uint8).reshape(rows, width)
        labels[start : start + rows] = table[:, label_bytes - 1]
        images[start : start + rows] = table[:, label_bytes:].reshape(rows, *SHAPE)
    return images, labels


def _plain(directory: Path, layout: Layout) -> Iterator[tuple[str, IO[bytes], int]]:
    """Yield name, open file and size of each unpacked file."""
    for member in layout.members:
        if (directory / member).exists():
            with open(directory / member, "rb") as file:
                yield member, file, os.fstat(file.fileno()).st_size


def _files(path: Path, layout: Layout) -> Iterator[tuple[str, IO[bytes], int]]:
    """Yield name, stream and size of the members of a tar.gz that are wanted, wherever in it; nothing is unpacked.

    Read here rather than by ``tarfile``, which takes memory for what headers claim: only plain files (type 0) with a
    wanted last name are handed out, whatever else there is is passed over.
    """
    with open(path, "rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raise DataError(f"{path} is not a gzip file.")
        raw.seek(0)
        with gzip.open(raw, "rb") as zipped:
            stream: Any = _Capped(zipped, path, os.fstat(raw.fileno()).st_size)
            while True:
                header = _exactly(stream, _BLOCK)
                if not header.strip(b"\0"):  # the end, in zeros or in nothing
                    while stream.read(1 << 20):  # on to gzip's checksum
                        pass
                    return
                member, size, plain = _entry(header, path)
                end = stream.done + -(-size // _BLOCK) * _BLOCK
                if plain and member in layout.members:
                    yield member, stream, size
                stream.skip_to(end)


def _entry(header: bytes, path: Path) -> tuple[str, int, bool]:
    """Return a tar header's last name, size, and whether it is a plain file (POSIX.1-1988, "ustar")."""
    try:
        known = int(header[148:156].split(b"\0")[0].strip() or b"-", 8)
        size = int(header[124:136].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        known = size = -1
    if len(header) < _BLOCK or size < 0 or known != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise DataError(f"{path} is not a tar archive, or it is truncated or corrupt.")
    name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
    return name.rsplit("/", 1)[-1], size, header[156:157] in (b"0", b"\0")


class _Capped:
    """A stream that raises when it has given more than is plausible."""

    def __init__(self, file: Any, path: Path, size: int) -> None:
        self.file, self.path, self.done = file, path, 0
        self.most = min(CAP, max(_FREE, MOST_RATIO * size))

    def read(self, count: int) -> bytes:
        """Return up to so many bytes."""
        content = self.file.read(count)
        self.done += len(content)
        if self.done > self.most:
            raise DataError(f"{self.path} unpacks to more than the {self.most:,} bytes that are accepted of its size.")
        return content

    def skip_to(self, place: int) -> None:
        """Read on to a place."""
        while self.done < place:
            if not self.read(min(1 << 20, place - self.done)):
                raise DataError(f"{self.path} is truncated.")


def _exactly(file: Any, count: int) -> bytes:
    """Return so many bytes, or fewer at the file's end."""
    content = bytearray()
    while len(content) < count:
        chunk = file.read(count - len(content))
        if not chunk:
            break
        content += chunk
    return bytes(content)
