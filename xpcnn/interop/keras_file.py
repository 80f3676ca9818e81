"""The weights of a Keras 3 model: an HDF5 file (``.weights.h5``), also inside a ``.keras`` archive.

A layer's arrays are ``.../vars/0``, ``.../vars/1`` and so on, below the layer's class and its number among its like;
its name is an attribute.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from xpcnn.errors import DataError, XpcnnError
from xpcnn.interop.hdf5 import Array, Reader
from xpcnn.interop.weight_files import Found, Host, Stored, bfloat16

MOST_LAYERS, DEEPEST = 10_000, 32
INSIDE = "model.weights.h5"  # of a .keras archive
SKIPPED = ("optimizer", "seed_generator")  # what is no weight
STATISTICS = ("moving_mean", "moving_variance")
FAULTS = (OSError, LookupError, ValueError, ArithmeticError, struct.error, zipfile.BadZipFile, NotImplementedError)


@contextmanager
def weights(path: Path, *, packed: bool) -> Iterator[Found | None]:
    """Give a file's arrays by layer and part (``conv2d/kernel``); None for an archive that is not Keras'.

    Raises
    ------
    DataError
        When the file is damaged, holds no weights of Keras 3, or what Keras does not write.
    """
    with open(path, "rb") as file:
        with _told(path):
            content: BinaryIO | None = _unpacked(path) if packed else file
            found = None if content is None else _Walk(path, content).arrays()
        yield found


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what is wrong with bytes into a sentence about the file."""
    try:
        yield
    except FAULTS as error:
        if isinstance(error, XpcnnError):
            raise
        raise DataError(f"{path} is not a whole file of Keras weights: {error}.") from None


def _unpacked(path: Path) -> BytesIO | None:
    """Return the weights inside a ``.keras`` archive, in which they are not compressed; None if there are none."""
    with zipfile.ZipFile(path) as archive:
        if INSIDE not in archive.namelist():
            return None
        entry = archive.getinfo(INSIDE)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
            raise DataError(f"{path} has its weights compressed, which Keras does not do.")
        return BytesIO(archive.read(entry))


class _Walk:
    """A walk through all groups of a file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.left = path, file.seek(0, 2)  # bytes that arrays may still claim
        self.reader = Reader(file, self.left)
        self.groups = 0
        self.found: Found = {}

    def arrays(self) -> Found:
        """Return the arrays of all layers."""
        self._walk(self.reader.members(self.reader.root) or {}, (), (), in_layers=False)
        if not self.found:
            raise DataError(
                f"{self.path} is an HDF5 file, but has no weights as Keras 3 writes them (layers/.../vars/0); a model "
                "of Keras 2 can be loaded there and written with model.save_weights('model.weights.h5')."
            )
        return self.found

    def _walk(
        self, members: dict[str, int], names: tuple[str, ...], places: tuple[str, ...], *, in_layers: bool
    ) -> None:
        """Take up a layer's arrays, and go on to the layers inside it."""
        self.groups += 1
        if self.groups > 4 * MOST_LAYERS or len(places) > DEEPEST:
            raise DataError(f"{self.path} has more groups, or deeper ones, than a model of {MOST_LAYERS:,} layers.")
        own = self.reader.members(members["vars"]) if "vars" in members else None
        if own:
            self._take(own, "/".join(names), places)
        for key, address in members.items():
            inside = None if key in ("vars", *SKIPPED) else self.reader.members(address)
            if inside is None:
                continue
            name = self.reader.text(inside["vars"], "name") if in_layers and "vars" in inside else None
            where = (names, places) if key == "layers" else ((*names, name or key), (*places, key))
            self._walk(inside, *where, in_layers=key == "layers")

    def _take(self, members: dict[str, int], name: str, places: tuple[str, ...]) -> None:
        """Take up a layer's arrays by the names that Keras has for them."""
        keys = sorted(members, key=lambda key: (len(key), key))
        arrays = [self.reader.array(members[key]) for key in keys]
        kind = re.sub(r"_\d+$", "", places[-1]) if places else ""
        for role, array in zip(self._roles(kind, name, [len(a.shape) for a in arrays]), arrays, strict=True):
            self.left -= array.size
            if self.left < 0:
                raise DataError(f"{self.path} is damaged: its arrays, with {name}/{role}, are larger than the file.")
            read = partial(self._read, array, f"{name}/{role}")
            self.found[f"{name}/{role}".lstrip("/")] = Stored(array.shape, read, "/".join(places))

    def _roles(self, kind: str, name: str, axes: list[int]) -> list[str]:
        """Return what the arrays of a layer are, which the file does not say, from how many axes each has."""
        count = len(axes)
        if kind == "batch_normalization" and count == 3:
            raise DataError(
                f"{self.path} does not say whether {name} lacks gamma or beta: give all arrays by name, with "
                "layout='keras' and {w.path: w.numpy() for w in model.weights}, and what is missing."
            )
        if (kind == "batch_normalization" and count in (2, 4)) or axes == [1, 1, 1, 1]:
            return ["gamma", "beta", *STATISTICS][4 - count :]
        if count == 2 and (kind.endswith("normalization") or axes == [1, 1]):
            return ["gamma", "beta"]
        if axes[0] > 1 and axes[1:] in ([], [1]):
            return ["kernel", "bias"][:count]
        if axes[0] > 1 and axes[1] == axes[0] and axes[2:] in ([], [1]):
            return ["depthwise_kernel", "pointwise_kernel", "bias"][:count]
        return [str(number) for number in range(count)]

    def _read(self, array: Array, name: str) -> Host:
        """Read an array of floats."""
        if array.type[1:] not in ("f2", "f4", "f8", "bfloat16"):
            raise DataError(f"{self.path} must hold floats, but {name} is {array.type}.")
        with _told(self.path):
            read = self.reader.read(array)
        return bfloat16(read) if array.type.endswith("bfloat16") else read
