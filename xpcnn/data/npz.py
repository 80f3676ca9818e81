"""Data sets in NumPy's .npz files: bounded, nothing unpickled.

Arrays: ``x_train, y_train, x_test, y_test`` (Keras's names) or ``images, labels, test_images, test_labels``; without
the test arrays a part of the training images is split off. ``classes``, an array of texts, may name the classes.

Images are uint8, (N, H, W) or of four axes; then the channels are the second axis or the last, whichever of the two has
the length 1 or 3 (or ``channels``, if that is given). If both have it, or neither, the file is refused.
"""

from __future__ import annotations

import tokenize
import warnings
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from xpcnn.data.dataset import Dataset, stratified
from xpcnn.errors import DataError

Host = np.ndarray[Any, Any]

CAP = 1 << 32  # bytes of an array
MOST_RATIO = 200  # times what it takes in the file
MOST_CLASSES = 100_000
NAMES = (("x_train", "y_train", "x_test", "y_test"), ("images", "labels", "test_images", "test_labels"))
_FREE = 1 << 26  # bytes that are not yet suspicious, however small they were packed
_CHUNK = 1 << 22
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
_BAD_HEADER = (ValueError, TypeError, KeyError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)


def read_npz(
    path: str | Path, *, channels: int | None = None, validation: float = 0.2, seed: int = 0, cap: int = CAP
) -> tuple[Dataset, Dataset]:
    """Read the training and the test part of an .npz file.

    Parameters
    ----------
    path : path
        The file; which arrays it must hold stands in the module's description.
    channels : int, optional
        How many channels the images have.
    validation : float
        The share of each class to test on, if the file has no test arrays.
    seed : int
        What decides which those are.
    cap : int
        The most bytes of an array to accept.

    Raises
    ------
    DataError
        When the file is missing, corrupt, truncated, of another kind or too large, or its arrays do not fit. Nothing is
        allocated from what a header claims before the file has been found to be able to hold it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file.")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _arrays(archive, path, cap)
    except _BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not an .npz file, or it is truncated or corrupt ({error}).") from None
    names, classes = _names(arrays, path), arrays.pop("classes", None)
    parts = []
    for images, labels in (names[:2], names[2:]):
        if images in arrays:
            x = _images(arrays.pop(images), f"{images} in {path}", channels)
            parts.append((x, _labels(arrays.pop(labels), f"{labels} in {path}", len(x))))
    return _parts(parts, classes, path, validation, seed)


def _arrays(archive: zipfile.ZipFile, path: Path, cap: int) -> dict[str, Host]:
    """Read the arrays with known names."""
    wanted, found = {f"{name}.npy" for name in (*NAMES[0], *NAMES[1], "classes")}, {}
    for info in archive.infolist():
        if info.filename not in wanted:
            continue
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise DataError(f"{path} has {name} twice.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{name} in {path} is compressed in a way that NumPy does not use.")
        most = min(cap + 16_384, max(_FREE, MOST_RATIO * info.compress_size))
        if info.file_size > most:
            raise DataError(f"{name} in {path} unpacks to {info.file_size:,} bytes, more than the {most:,} accepted.")
        with archive.open(info) as file:
            found[name] = _array(file, info.file_size, f"{name} in {path}")
    return found


def _array(file: IO[bytes], size: int, name: str) -> Host:
    """Read one .npy stream of a known size."""
    shape, by_columns, dtype, start = _header(file, name)
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, which are never unpickled; save it as numbers or texts.")
    count = prod(shape)
    if count * dtype.itemsize != size - start:
        raise DataError(f"{name} claims the shape {shape} of {dtype}, but has {size - start:,} bytes of values.")
    content = bytearray()
    while chunk := file.read(_CHUNK):  # to the end, where the checksum is compared
        content += chunk
    if len(content) != size - start:
        raise DataError(f"{name} is truncated.")
    flat = np.frombuffer(content, dtype=dtype, count=count) if content else np.empty(0, dtype)
    return flat.reshape(shape[::-1]).T if by_columns else flat.reshape(shape)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether columns come first, dtype, and the number of bytes before the values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers as Python 2 wrote them
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, by_columns, dtype = read(file)
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"the shape {shape}")
    except _BAD_HEADER as error:
        raise DataError(f"{name} is not an array that can be read ({' '.join(str(error).split())[:100]}).") from None
    return shape, by_columns, dtype, file.tell()


def _names(arrays: dict[str, Host], path: Path) -> tuple[str, str, str, str]:
    """Return the names of images and labels to use, or raise saying what is missing."""
    for names in NAMES:
        train, test = [name in arrays for name in names[:2]], [name in arrays for name in names[2:]]
        if any(train) or any(test):
            if not all(train) or any(test) != all(test):
                missing = [name for name in (names if any(test) else names[:2]) if name not in arrays]
                raise DataError(f"{path} has no {' and no '.join(missing)}.")
            return names
    raise DataError(f"{path} has neither x_train and y_train nor images and labels.")


def _images(images: Host, name: str, channels: int | None) -> Host:
    """Return images as (N, C, H, W)."""
    if images.dtype != np.uint8:
        raise DataError(f"{name} has the type {images.dtype}; images are uint8, from 0 to 255.")
    if 0 in images.shape:
        raise DataError(f"{name} holds no images (shape {images.shape}).")
    if images.ndim not in (3, 4):
        raise DataError(f"{name} has the shape {images.shape}; images are (N, H, W), (N, C, H, W) or (N, H, W, C).")
    if images.ndim == 3:
        images = images[:, None]
    else:
        allowed = (1, 3) if channels is None else (channels,)
        second, last = (images.shape[axis] in allowed for axis in (1, 3))
        if second == last:
            which = "both the second and the last have" if second else "neither the second nor the last has"
            advice = "save it with its channels alone of that length" if second else "give the number with --channels"
            raise DataError(
                f"{name} has the shape {images.shape}: which axis is the channels' cannot be told, since {which} "
                f"the length {' or '.join(map(str, allowed))}; {advice}."
            )
        images = images if second else images.transpose(0, 3, 1, 2)
    if channels not in (None, images.shape[1]):
        raise DataError(f"{name} has {images.shape[1]} channels, but channels={channels} was asked for.")
    return np.ascontiguousarray(images)


def _labels(labels: Host, name: str, count: int) -> Host:
    """Return labels as (N,)."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name} has the type {labels.dtype}; labels are whole numbers, one for each image.")
    if labels.shape not in ((count,), (count, 1)):
        raise DataError(f"{name} has the shape {labels.shape}; for {count:,} images it must be ({count},).")
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{name} has the label {wrong}; labels lie from 0 to {MOST_CLASSES - 1:,}.")
    return labels.reshape(count).astype(np.int64)


def _parts(
    parts: list[tuple[Host, Host]], classes: Host | None, path: Path, validation: float, seed: int
) -> tuple[Dataset, Dataset]:
    """Return the two parts as data sets, splitting the only one."""
    most = max(int(labels.max()) for _, labels in parts)
    names = tuple(map(str, range(most + 1))) if classes is None else tuple(map(str, classes.ravel().tolist()))
    if classes is not None and (classes.dtype.kind != "U" or classes.ndim != 1 or len(set(names)) != len(names)):
        raise DataError(f"classes in {path} must be an array (K,) of different texts.")
    if most >= len(names):
        raise DataError(f"{path} has the label {most}, but classes names {len(names)}.")
    if len(parts) == 1:
        images, labels = parts[0]
        parts = [(images[rows], labels[rows]) for rows in stratified(labels, validation, seed)]
    train, test = (Dataset(images, labels, names) for images, labels in parts)
    if not len(test):
        raise DataError(f"{path} has no class of two images, so that none can be split off for testing.")
    if train.image_shape != test.image_shape:
        raise DataError(f"{path} has images {train.image_shape} for training and {test.image_shape} for testing.")
    return train, test
