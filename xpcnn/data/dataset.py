"""Labelled images in memory, and the named data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.data.idx import read_idx
from xpcnn.errors import DataError, XpcnnError

Host = np.ndarray[Any, Any]

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CLASSES = {"mnist": DIGITS, "fashion-mnist": FASHION}
SHIPPED = Path(__file__).parent / "mnist"


@dataclass(frozen=True)
class Dataset:
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

    def first(self, count: int) -> Dataset:
        """Return the first ``count`` examples."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])


def load_dataset(name: str, data_dir: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """Return a named data set's training and test part.

    Parameters
    ----------
    name : {"mnist", "fashion-mnist"}
        MNIST ships with the package; Fashion-MNIST needs ``data_dir``.
    data_dir : path, optional
        A directory with the four IDX files, plain or with ``.gz``.

    Raises
    ------
    DataError
        When the name is unknown, or a file is missing or wrong.
    """
    if name not in CLASSES:
        raise DataError(f"dataset must be one of {', '.join(CLASSES)}, not {name!r}.")
    if data_dir is None and name != "mnist":
        raise DataError(
            f"{name} is not shipped: download its four files (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
            f"t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz) and name their directory with --data-dir."
        )
    directory = SHIPPED if data_dir is None else Path(data_dir)
    if not directory.is_dir():
        raise DataError(f"the data directory {directory} {'is a file' if directory.exists() else 'does not exist'}.")
    train, test = _read_part(directory, "train", CLASSES[name]), _read_part(directory, "t10k", CLASSES[name])
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = " and ".join("×".join(map(str, part.images.shape[2:])) for part in (train, test))
        raise DataError(f"{directory} has training and test images of different sizes ({sizes}).")
    return train, test


def _read_part(directory: Path, part: str, classes: Sequence[str]) -> Dataset:
    """Read images and labels of one part and check that they belong together."""
    images_path = _find(directory, f"{part}-images-idx3-ubyte")
    labels_path = _find(directory, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if not len(images) or 0 in images.shape:
        raise DataError(f"{images_path} holds no images (shape {images.shape}).")
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels.")
    if labels.max() >= len(classes):
        raise DataError(f"{labels_path} has the label {labels.max()}, but there are {len(classes)} classes.")
    return Dataset(images[:, None], labels, tuple(classes))


def _find(directory: Path, stem: str) -> Path:
    """Return the file, plain or compressed, or raise saying what was looked for."""
    for name in (stem, f"{stem}.gz"):
        if (directory / name).exists():
            return directory / name
    raise DataError(f"{directory} has neither {stem} nor {stem}.gz.")
