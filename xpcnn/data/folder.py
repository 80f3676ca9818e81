"""Pictures in one directory per class, read as they are needed.

What is read: the names of the directories in PATH, sorted, are the classes; every picture in them or below belongs to
the class. Pictures are told by their names' endings (``listing.SUFFIXES``); other files, and hidden ones, are ignored
and counted. Links to files and to class directories are followed, links to directories below are not.

Parts: if PATH has ``train`` with directories in it, its other part is the first that there is of ``val``, ``valid``,
``validation`` and ``test``, which must have the same classes. Otherwise a share of each class is tested on, chosen by
a seed.

Channels, unless given: 1 if every picture of a sample (the first 20 of each class, 2000 in all at most) is grey by its
header, else 3. Size, unless given: that of the sample's pictures if all have the same and no side is above 256;
otherwise a square of the median of their shorter sides, at most 224.

A picture is turned as its EXIF data say, transparency is laid on white, and if it has another size, it is scaled to fit
the frame with its proportions and padded with the median colour of its border. Nothing is inverted.

Memory: decoded pictures are kept while they fit `BUDGET` bytes (training and test part together); the others are
decoded each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from xpcnn.data.dataset import Source, digest, stratified
from xpcnn.data.download import Progress
from xpcnn.data.listing import Listing, list_folder
from xpcnn.data.picture import read_fitted, read_header
from xpcnn.errors import DataError, XpcnnError, whole
from xpcnn.kernels.threads import thread_count

Host = np.ndarray[Any, Any]

BUDGET = 128 << 20  # bytes of decoded pictures to keep
SAMPLE, MOST_SAMPLED = 20, 2000
ADVICE = "mend or replace it, or begin with --skip-bad to leave such images out"
MOST_NATIVE, MOST_SQUARE = 256, 224
MOST_SIDE = 4096
CHECKED_TOGETHER = 256
_TOGETHER = 16  # pictures that a thread decodes at a time


class Pictures:
    """All pictures of a folder, by number: where they lie, and those that have been decoded.

    Parameters
    ----------
    root : path
        The folder.
    paths : sequence of str
        Each picture's path in it, with slashes.
    sizes : sequence of int
        The files' sizes in bytes.
    shape : (C, H, W)
        What every picture is brought to.
    """

    def __init__(self, root: Path, paths: Sequence[str], sizes: Host, shape: tuple[int, int, int]) -> None:
        self.root, self.paths, self.sizes, self.shape = root, paths, sizes, shape
        kept = min(len(paths), BUDGET // int(np.prod(shape)))
        self.decoded = np.empty((kept, *shape), dtype=np.uint8)  # the system gives memory as it is written
        self.known = np.zeros(kept, dtype=bool)
        self.pool: ThreadPoolExecutor | None = None

    def read(self, numbers: Host) -> tuple[Host, list[tuple[int, str]]]:
        """Return the pictures (len(numbers), C, H, W), and number and fault of each that cannot be read."""
        found = np.empty((len(numbers), *self.shape), dtype=np.uint8)
        kept = numbers < len(self.known)
        kept[kept] = self.known[numbers[kept]]
        found[kept] = self.decoded[numbers[kept]]
        rest = np.flatnonzero(~kept)
        parts = [rest[start : start + _TOGETHER] for start in range(0, len(rest), _TOGETHER)]
        run = self._workers().map if len(parts) > 1 and thread_count() > 1 else map
        faults: list[tuple[int, str]] = []
        for bad in run(lambda rows: self._decode(rows, numbers, found), parts):
            faults += bad
        return found, faults

    def _workers(self) -> ThreadPoolExecutor:
        """Return the threads that decode."""
        if self.pool is None:
            self.pool = ThreadPoolExecutor(thread_count(), thread_name_prefix="xpcnn-decode")
        return self.pool

    def _decode(self, rows: Host, numbers: Host, found: Host) -> list[tuple[int, str]]:
        """Decode some pictures into their rows, keep those that have a place, and return the faults."""
        faults = []
        for row in rows:
            number = int(numbers[row])
            try:
                found[row] = read_fitted(self.root / self.paths[number], self.shape)
            except DataError as error:
                faults.append((number, str(error)))
                continue
            if number < len(self.known):
                self.decoded[number] = found[row]
                self.known[number] = True
        return faults


class FolderSource(Source):
    """One part of a folder's pictures.

    Attributes
    ----------
    ignored : int
        How many files of the folder are no pictures by their names, or hidden.
    """

    def __init__(
        self,
        pictures: Pictures,
        numbers: Host,
        labels: Host,
        classes: tuple[str, ...],
        skipped: tuple[tuple[str, str], ...] = (),
        ignored: int = 0,
    ) -> None:
        self.pictures, self.numbers, self.labels, self.classes = pictures, numbers, labels, classes
        self._skipped, self.ignored = skipped, ignored

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Path and fault of each picture of the folder that was left out; the training part has them all."""
        return self._skipped

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of each image."""
        return self.pictures.shape

    def path(self, row: int) -> Path:
        """Return where a picture lies."""
        return self.pictures.root / self.pictures.paths[int(self.numbers[row])]

    def read(self, rows: Host) -> Host:
        """Return the images of these numbers, decoded by as many threads as xpcnn computes with.

        Raises
        ------
        DataError
            When a picture cannot be read, naming it.
        """
        found, faults = self.pictures.read(self.numbers[np.asarray(rows)])
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise DataError(f"{faults[0][1].rstrip('.')}{more}; {ADVICE}.")
        return found

    def fingerprint(self) -> str:
        """Return the digest of classes, labels, paths within the folder, sizes of the files and shape of the images."""
        pictures = self.pictures
        paths = "\0".join(pictures.paths[number] for number in self.numbers)
        return digest(pictures.shape, self.classes, self.labels, pictures.sizes[self.numbers], paths)


def load_folder(
    path: str | Path,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    validation: float = 0.2,
    seed: int = 0,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> tuple[FolderSource, FolderSource]:
    """Return the training and the test part of a folder of pictures, see the module's description.

    Parameters
    ----------
    path : path
        The folder.
    image_size, channels, validation, seed, skip_bad, progress
        See `load_dataset`.

    Raises
    ------
    DataError
        When the folder has no classes, a class has no pictures, or a picture of the sample cannot be read.
    XpcnnError
        When an option is wrong.
    """
    root = Path(path)
    size = _check(image_size, channels)
    listing = list_folder(root)
    shape = _shape(listing, size, channels, skip_bad=skip_bad)
    pictures = Pictures(root, listing.paths, np.array(listing.sizes, dtype=np.int64), shape)
    labels, classes = np.array(listing.labels, dtype=np.int64), listing.classes
    numbers, skipped = _readable(pictures, progress) if skip_bad else (np.arange(len(labels)), ())
    if listing.split is None:
        rows = stratified(labels[numbers], validation, seed)
    else:
        split = int(np.searchsorted(numbers, listing.split))
        rows = np.arange(split), np.arange(split, len(numbers))
    train, test = (numbers[part] for part in rows)
    _check_parts(root, labels[train], test, classes)
    first = FolderSource(pictures, train, labels[train], classes, skipped, listing.ignored)
    return first, FolderSource(pictures, test, labels[test], classes)


def _check(image_size: Any, channels: int | None) -> tuple[int, int] | None:
    """Return height and width, if they are given, or raise what is wrong with the options."""
    if channels not in (None, 1, 3):
        raise XpcnnError(f"channels must be 1 (grey) or 3 (colour) for pictures, not {channels!r}.")
    if image_size is None:
        return None
    pair = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(pair) != 2:
        raise XpcnnError(f"image_size must be one number or height and width, not {image_size!r}.")
    height, width = (whole("image_size", side, 1) for side in pair)
    if max(height, width) > MOST_SIDE:
        raise XpcnnError(f"image_size must be at most {MOST_SIDE} pixels a side, not {image_size!r}.")
    return height, width


def _shape(
    listing: Listing, size: tuple[int, int] | None, channels: int | None, *, skip_bad: bool
) -> tuple[int, int, int]:
    """Return the images' shape: what was asked for, and for the rest what a sample's headers suggest."""
    if size is None or channels is None:
        headers = list(_headers(listing, skip_bad=skip_bad))
        if not headers:
            raise DataError(f"none of the pictures sampled from {listing.root} can be read.")
        if channels is None:
            channels = 1 if all(grey for *_, grey in headers) else 3
        if size is None:
            sizes = {(height, width) for height, width, _ in headers}
            side = min(MOST_SQUARE, median_low([min(height, width) for height, width, _ in headers]))
            size = sizes.pop() if len(sizes) == 1 and max(max(sizes)) <= MOST_NATIVE else (side, side)
    return channels, *size


def _headers(listing: Listing, *, skip_bad: bool) -> Iterator[tuple[int, int, bool]]:
    """Yield height, width and greyness of the first pictures of each class."""
    most = min(SAMPLE, max(1, MOST_SAMPLED // len(listing.classes)))
    seen: Counter[int] = Counter()
    for path, label in zip(listing.paths, listing.labels, strict=True):
        seen[label] += 1
        if seen[label] > most:
            continue
        try:
            yield read_header(listing.root / path)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{str(error).rstrip('.')}; {ADVICE}.") from None


def _readable(pictures: Pictures, progress: Progress | None) -> tuple[Host, tuple[tuple[str, str], ...]]:
    """Decode every picture once; return the numbers of the good ones, and path and fault of the others."""
    count, faults = len(pictures.paths), []
    for start in range(0, count, CHECKED_TOGETHER):
        faults += pictures.read(np.arange(start, min(count, start + CHECKED_TOGETHER)))[1]
        if progress:
            progress(min(count, start + CHECKED_TOGETHER), count, "pictures checked")
    good = np.ones(count, dtype=bool)
    good[[number for number, _ in faults]] = False
    paths = [str(pictures.root / pictures.paths[number]) for number, _ in faults]
    reasons = [fault.removeprefix(path).strip() for path, (_, fault) in zip(paths, faults, strict=True)]
    return np.flatnonzero(good), tuple(zip(paths, reasons, strict=True))


def _check_parts(root: Path, labels: Host, test: Host, classes: tuple[str, ...]) -> None:
    """Raise unless every class has pictures to train on, and there are some to test on."""
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise DataError(f"the class {classes[int(counts.argmin())]} of {root} has no readable picture to train on.")
    if not len(test):
        raise DataError(f"{root} has too few pictures: none is left to test on.")
