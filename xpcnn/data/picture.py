"""From a picture file to what a model takes: number of channels, size and polarity.

The rule, in order:

1. The picture is turned as its EXIF data say; transparency is laid on white.
2. One channel: grey by luma (ITU-R 601); three: RGB.
3. Polarity (one channel only): if the median of the outermost pixels is brighter than mid-grey, the picture is dark
   ink on light ground and is inverted, since MNIST's digits are light on black.
4. Size: a picture of exactly the model's size is used pixel by pixel. Any other is, with ``center=True`` (how MNIST
   was made), cropped to its ink, scaled to fit 20/28 of the frame and placed with its centre of mass in the middle;
   otherwise scaled to fit the frame and padded with the median colour of its border.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.errors import DataError, XpcnnError

Host = np.ndarray[Any, Any]

READERS = ("Png", "Jpeg", "Bmp", "Gif", "WebP")
FORMATS = tuple(map(str.upper, READERS))
MOST_PIXELS = 50_000_000
ORIENTATION = 0x0112  # EXIF's tag
POLARITIES = ("auto", "keep", "invert")
MNIST_BOX = 20 / 28  # the share of the frame that MNIST's digits were scaled to
FAINT = 0.15  # of the range between ground and ink: what lies below is ground (paper, noise)


def read_picture(
    path: str | Path, shape: tuple[int, int, int], *, polarity: str = "auto", center: bool = False
) -> Host:
    """Read a picture as one uint8 image of a model's input shape.

    Parameters
    ----------
    path : path
        A PNG, JPEG, BMP, GIF or WebP file of at most 50 million pixels.
    shape : (C, H, W)
        The model's input shape, C being 1 or 3.
    polarity : {"auto", "keep", "invert"}
        What to do about dark ink on light ground, see the module's rule.
    center : bool
        Crop to the ink and centre it as MNIST's makers did.

    Returns
    -------
    numpy.ndarray
        uint8 (C, H, W).

    Raises
    ------
    DataError
        When the file is missing, not a picture, truncated or too large.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise XpcnnError(f"pictures have 1 or 3 channels, but the model takes {channels}.")
    if polarity not in POLARITIES:
        raise XpcnnError(f"polarity must be one of {', '.join(POLARITIES)}, not {polarity!r}.")
    centered = center and channels == 1
    image = _open(Path(path), "L" if channels == 1 else "RGB", 0 if centered else max(height, width))
    if polarity == "invert" or (polarity == "auto" and channels == 1 and _ground(image) > 127):
        image = 255 - image
    if image.shape[:2] != (height, width):
        image = _centered(image, height, width) if centered else _fitted(image, height, width)
    return image[None] if channels == 1 else np.ascontiguousarray(np.moveaxis(image, 2, 0))


def read_fitted(path: str | Path, shape: tuple[int, int, int]) -> Host:
    """Read a picture as it is: what `read_picture` does with ``polarity="keep"``, for training on many of them."""
    channels, height, width = shape
    image = _open(Path(path), "L" if channels == 1 else "RGB", max(height, width))
    if image.shape[:2] != (height, width):
        image = _fitted(image, height, width)
    return image[None] if channels == 1 else np.moveaxis(image, 2, 0)


def read_header(path: str | Path) -> tuple[int, int, bool]:
    """Return a picture's upright height and width and whether it is grey, from its header alone."""
    with _opened(Path(path)) as opened:
        turned = opened.getexif().get(ORIENTATION) in (5, 6, 7, 8)
        grey = opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith(("I", "F"))
        return *((opened.width, opened.height) if turned else (opened.height, opened.width)), grey


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a picture of a known format and a size that is accepted; what goes wrong with it becomes a sentence."""
    from PIL import Image, UnidentifiedImageError

    for reader in READERS:  # else Pillow would import those of all formats there are
        import_module(f"PIL.{reader}ImagePlugin")
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file.")
    try:
        with _QUIET, Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise DataError(f"{path} has {opened.width} × {opened.height} pixels, more than {MOST_PIXELS:,}.")
            yield opened
    except Image.DecompressionBombError:
        raise DataError(f"{path} has more than {MOST_PIXELS:,} pixels.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a picture in one of the formats {', '.join(FORMATS)}.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be decoded: {error}.") from None


class _Quiet:
    """Silences warnings (of sizes that are checked, of odd metadata) while any thread is within."""

    def __init__(self) -> None:
        self.lock, self.inside, self.filters = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.filters.__exit__(None, None, None)


_QUIET = _Quiet()


def _open(path: Path, mode: str, side: int = 0) -> Host:
    """Decode a file, upright and without transparency, as (H, W) or (H, W, 3) uint8.

    A JPEG file may be decoded at a half, a quarter or an eighth of its size, which takes as much less time and memory,
    if no side gets below twice ``side``.
    """
    from PIL import Image, ImageOps

    with _opened(path) as opened:
        if side:
            opened.draft(None, (2 * side, 2 * side))
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith(("I", "F")):  # 16 or 32 bits per pixel
            return _to_eight_bits(np.asarray(picture), mode)
        if "A" in picture.getbands() or "transparency" in picture.info:
            clear = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        return np.asarray(picture.convert(mode))


def _to_eight_bits(values: Host, mode: str) -> Host:
    """Scale 16-bit grey (or floats) to uint8, over 65535, or over 255 if no value is larger than that."""
    most = 65535.0 if values.max(initial=0) > 255 else 255.0
    grey = np.clip(values.astype(np.float64) * (255.0 / most), 0, 255).round().astype(np.uint8)
    return grey if mode == "L" else np.stack([grey] * 3, axis=2)


def _ground(image: Host) -> float:
    """Return the median of the outermost pixels."""
    return float(np.median(_border(image)))


def _border(image: Host) -> Host:
    """Return the outermost pixels, (count,) or (count, 3)."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _fitted(image: Host, height: int, width: int) -> Host:
    """Scale a picture to fit the frame, proportions kept, and pad it with its ground."""
    scale = min(height / image.shape[0], width / image.shape[1])
    small = _resized(image, scale, height, width)
    frame = np.empty((height, width, *image.shape[2:]), dtype=np.uint8)
    frame[:] = np.median(_border(image), axis=0).round()
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    frame[top : top + small.shape[0], left : left + small.shape[1]] = small
    return frame


def _centered(image: Host, height: int, width: int) -> Host:
    """Crop light ink on dark ground, scale it to MNIST's box and put its centre of mass in the frame's middle."""
    ground = _ground(image)
    ink = np.clip(image.astype(np.float64) - ground, 0, None)
    if ink.max(initial=0) < 8:  # nothing but ground
        return np.zeros((height, width), dtype=np.uint8)
    ink *= 255.0 / ink.max()
    ink[ink < 255 * FAINT] = 0
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].round().astype(np.uint8)
    box = (max(1, round(height * MNIST_BOX)), max(1, round(width * MNIST_BOX)))
    small = _resized(ink, min(box[0] / ink.shape[0], box[1] / ink.shape[1]), *box)
    weights = small.astype(np.float64)
    mass = max(weights.sum(), 1.0)
    middle = [(weights.sum(axis=1 - axis) * np.arange(small.shape[axis])).sum() / mass for axis in (0, 1)]
    frame = np.zeros((height, width), dtype=np.uint8)
    top, left = (
        int(np.clip(round(size / 2 - center), 0, size - length))  # in MNIST the centre of mass lies on pixel 14 of 28
        for size, center, length in zip((height, width), middle, small.shape, strict=True)
    )
    frame[top : top + small.shape[0], left : left + small.shape[1]] = small
    return frame


def _resized(image: Host, scale: float, most_high: int, most_wide: int) -> Host:
    """Scale a picture with an antialiasing filter."""
    from PIL import Image

    high = min(most_high, max(1, round(image.shape[0] * scale)))
    wide = min(most_wide, max(1, round(image.shape[1] * scale)))
    return np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=None))
