"""Data sets by name: shipped, found in a directory, downloaded, or one's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from xpcnn.data.cifar import has_cifar, read_cifar
from xpcnn.data.dataset import CLASSES, SHIPPED, Dataset, Source
from xpcnn.data.download import Progress, Remote, cache_directory, fetch
from xpcnn.data.folder import load_folder
from xpcnn.data.idx import read_idx
from xpcnn.data.npz import read_npz
from xpcnn.errors import DataError, XpcnnError

NAMES = (*CLASSES, "folder:PATH", "npz:PATH")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION_MIRRORS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
_CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
FILES = {
    "fashion-mnist": tuple(
        Remote(f"{name}.gz", size, sha256, tuple(f"{mirror}{name}.gz" for mirror in _FASHION_MIRRORS))
        for name, size, sha256 in zip(
            IDX_FILES,
            (26_421_880, 29_515, 4_422_102, 5_148),
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
            strict=True,
        )
    ),
    "cifar10": (
        Remote(
            "cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            tuple(f"{mirror}cifar-10-binary.tar.gz" for mirror in _CIFAR_MIRRORS),
        ),
    ),
    "cifar100": (
        Remote(
            "cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            tuple(f"{mirror}cifar-100-binary.tar.gz" for mirror in _CIFAR_MIRRORS),
        ),
    ),
}


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    validation: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> tuple[Source, Source]:
    """Return a data set's training and test part.

    Parameters
    ----------
    name : str
        ``mnist``, which ships with the package; ``fashion-mnist``, ``cifar10`` or ``cifar100``, which are looked for in
        ``data_dir``, then in the cache (the directory that the environment variable ``XPCNN_DATA`` names, else the
        platform's), and are downloaded into the cache otherwise; ``folder:PATH``, pictures in one directory per class;
        ``npz:PATH``, arrays in a file. Relative paths start from the working directory.
    data_dir : path, optional
        A directory with the files of a named data set.
    image_size : int or (int, int), optional
        Height and width in pixels that a folder's pictures are brought to.
    channels : int, optional
        1 for grey, 3 for colour; for ``npz:`` the number of channels that the images have.
    validation : float
        The share of each class that is tested on, where a folder or file has no test part of its own.
    seed : int
        What decides which images those are.
    skip_bad : bool
        Leave pictures of a folder out that cannot be read; the training part's ``skipped`` names them.
    progress : callable, optional
        Called with (done, total or None, name): the bytes of a download, or the pictures that have been checked.

    Returns
    -------
    train, test : Source
        Their images are uint8 (C, H, W).

    Raises
    ------
    DataError
        When the name is unknown, or a file is missing or wrong.
    XpcnnError
        When an option is wrong, or the data set does not have it.
    """
    kind, colon, path = name.partition(":")
    path = os.path.expanduser(path)
    if colon and kind in ("folder", "npz") and not path:
        raise DataError(f"dataset {name!r} names no path; write {kind}:PATH.")
    if kind == "folder" and colon:
        return load_folder(path, image_size, channels, validation, seed, skip_bad=skip_bad, progress=progress)
    if kind == "npz" and colon:
        parts = read_npz(path, channels=channels, validation=validation, seed=seed)
    elif name in CLASSES:
        parts = _read_named(name, data_dir, progress)
    else:
        raise DataError(f"dataset must be one of {', '.join(NAMES)}, not {name!r}.")
    _check_shape(name, parts[0].image_shape, image_size, channels)
    return parts


def _check_shape(
    name: str, shape: tuple[int, ...], image_size: int | tuple[int, int] | None, channels: int | None
) -> None:
    """Raise unless the images are as asked for."""
    size = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
    if (image_size is not None and size != shape[1:]) or channels not in (None, shape[0]):
        raise XpcnnError(f"the images of {name} are {shape}; image_size and channels can be chosen for folder: only.")


def _read_named(name: str, data_dir: str | Path | None, progress: Progress | None) -> tuple[Dataset, Dataset]:
    """Read a named data set from where it lies, downloading it if it lies nowhere."""
    cifar = name in ("cifar10", "cifar100")
    directory = _directory(name, data_dir, progress, cifar=cifar)
    if cifar:
        return read_cifar(name, directory)
    train, test = (_read_part(directory, part, CLASSES[name]) for part in ("train", "t10k"))
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = " and ".join("×".join(map(str, part.images.shape[2:])) for part in (train, test))
        raise DataError(f"{directory} has training and test images of different sizes ({sizes}).")
    return train, test


def _directory(name: str, data_dir: str | Path | None, progress: Progress | None, *, cifar: bool) -> Path:
    """Return the directory that has a data set, or part of it, downloading it into the cache if there is none."""
    if data_dir is not None:
        directory = Path(data_dir)
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise DataError(f"the data directory {directory} {what}.")
        if name == "mnist" or (has_cifar(name, directory) if cifar else _has_idx(directory)):
            return directory
    if name == "mnist":
        return SHIPPED
    cached = cache_directory() / name
    if not (cifar and has_cifar(name, cached)):
        have = set(os.listdir(cached)) if cached.is_dir() else set()
        lacking = [file for file in FILES[name] if not have & {file.name, file.name.removesuffix(".gz")}]
        if lacking:
            fetch(lacking, cached, progress)
    return cached


def _has_idx(directory: Path) -> bool:
    """Say whether a directory has one of the four files."""
    return any((directory / f"{stem}{suffix}").exists() for stem in IDX_FILES for suffix in ("", ".gz"))


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
