"""Labelled images that are read by their numbers, and the classes of the named data sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.errors import XpcnnError
from xpcnn.random import Key

Host = np.ndarray[Any, Any]

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CIFAR100 = tuple(_CIFAR100.split())
CLASSES = {"mnist": DIGITS, "fashion-mnist": FASHION, "cifar10": CIFAR10, "cifar100": CIFAR100}
SHIPPED = Path(__file__).parent / "mnist"
_AT_ONCE = 1000  # images


class Source:
    """Labelled images that are read by their numbers: what training, evaluation and reports take.

    Attributes
    ----------
    labels : numpy.ndarray (N,)
        Integers from 0 to the number of classes - 1.
    classes : tuple of str
        The classes' names; empty if they have none.
    """

    labels: Host
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of each image."""
        raise NotImplementedError

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Path and fault of each image that was left out because it cannot be read."""
        return ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Host) -> Host:
        """Return the images (len(rows), C, H, W) of these numbers, uint8, in their order; several threads may read."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a hexadecimal text that is the same wherever the same data lie, and differs for other data."""
        raise NotImplementedError


@dataclass(frozen=True)
class Dataset(Source):
    """Images (N, C, H, W), uint8 or already normalised floats, and integer labels (N,).

    Raises
    ------
    XpcnnError
        When shapes or types do not fit, or a label lies outside the classes.
    """

    images: Host
    labels: Host
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that images and labels belong together."""
        images, labels = self.images, self.labels
        if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels):
            raise XpcnnError(
                f"a data set needs images (N, ...) and labels (N,), got shapes {images.shape} and {labels.shape}."
            )
        if labels.dtype.kind not in "iu":
            raise XpcnnError(f"labels must be integers, got dtype {labels.dtype}.")
        if self.classes and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            wrong = labels.max() if labels.max() >= len(self.classes) else labels.min()
            raise XpcnnError(f"labels must lie from 0 to {len(self.classes) - 1}, but there is a {wrong}.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of each image."""
        return tuple(self.images.shape[1:])

    def read(self, rows: Host) -> Host:
        """Return a copy of the images of these numbers."""
        return self.images[rows]

    def fingerprint(self) -> str:
        """Return the BLAKE2b digest of shape, type, classes, labels and pixels."""
        return digest(self.images.shape, self.images.dtype, self.classes, self.labels, self.images)

    def first(self, count: int) -> Dataset:
        """Return the first ``count`` examples."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])


class Part(Source):
    """Some neighbouring rows of another source, read where they are wanted."""

    def __init__(self, whole: Source, rows: slice) -> None:
        self._whole, self._first = whole, rows.start
        self.labels, self.classes = whole.labels[rows], whole.classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of each image."""
        return self._whole.image_shape

    def read(self, rows: Host) -> Host:
        """Read from the other source."""
        return self._whole.read(rows + self._first)


def digest(*parts: Any) -> str:
    """Return a hexadecimal BLAKE2b digest of arrays' values (labels whatever their type) and of other things' text."""
    state = blake2b(digest_size=20)
    for part in parts:
        if isinstance(part, np.ndarray):
            part = part.astype("<i8") if part.dtype.kind in "iu" and part.ndim == 1 else part
            for start in range(0, len(part), _AT_ONCE):
                state.update(np.ascontiguousarray(part[start : start + _AT_ONCE]).data)
        else:
            state.update(repr(part).encode())
    return state.hexdigest()


def stratified(labels: Host, share: float, seed: int) -> tuple[Host, Host]:
    """Return the rows of a training and of a test part, both in order, with that share of each class in the test part.

    Of a class of n images, ``round(share * n)`` are tested, but at least one stays for training and, from two images
    on, at least one for testing. The same seed gives the same parts.

    Raises
    ------
    XpcnnError
        When the share does not lie between 0 and 1.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise XpcnnError(f"validation must be a share of the images above 0 and below 1, such as 0.2, not {share!r}.")
    tested = np.zeros(len(labels), dtype=bool)
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.unique(labels))
    for rows in np.split(by_class, starts[1:]):
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        if count > 0:
            key = Key(seed).child("validation", int(labels[rows[0]]))
            tested[key.generator().permutation(rows)[:count]] = True
    return np.flatnonzero(~tested), np.flatnonzero(tested)
