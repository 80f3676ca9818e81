"""Augmentation: random changes of training images, drawn on the host and applied to whole batches on any backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace, upload_like
from xpcnn.errors import XpcnnError, whole
from xpcnn.kernels import augmentation as columns
from xpcnn.kernels.augmentation import COLUMNS, Stages
from xpcnn.random import Key

__all__ = ["COLUMNS", "Augment"]

Host = np.ndarray[Any, Any]
Doubles = np.ndarray[Any, np.dtype[np.float64]]

PIECE = 4096  # rows of a table that are drawn at a time, which stay in a core's cache
LIMITS = {  # the most of each real number
    "rotate": 180.0,
    "translate": 1.0,
    "scale": 0.9,
    "brightness": 1.0,
    "contrast": 1.0,
    "mixup": 1000.0,
    "cutmix": 1000.0,
}


@dataclass(frozen=True)
class Augment:
    """Which random changes are made to training images; all are off by default.

    They come in this order: flip, scale, rotate, translate and crop, which together are one map of positions, so that
    pixels are interpolated (bilinearly) once or, with crop and flip alone, not at all; contrast and brightness; cutout;
    mixup and cutmix. What comes from outside the image is 0, black.

    Parameters
    ----------
    crop : int
        Pixels of zeros to pad each side with before a crop of the image's size is taken anywhere: a shift by -crop to
        crop whole pixels along each axis.
    flip : bool
        Mirror half of the images left to right.
    rotate : float
        About the centre, by an angle uniform in ±rotate, in degrees up to 180.
    translate : float
        Along each axis by a share of its size, uniform in ±translate; by fractions of pixels, too.
    scale : float
        By a factor uniform in [1 - scale, 1 + scale], up to 0.9.
    brightness : float
        Add a share of the full range, uniform in ±brightness, and clip. Bytes range from 0 to 255, floats from 0 to 1.
    contrast : float
        Multiply distances from mid-grey by a factor uniform in [1 - contrast, 1 + contrast], and clip.
    cutout : int
        Side in pixels of a square, about a pixel anywhere in the image, that is erased to 0. (T. DeVries and G. W.
        Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.)
    mixup : float
        Mix each image with its partner, which is the image in its place in the reversed batch: λ·x + (1-λ)·partner with
        λ from Beta(mixup, mixup), and targets alike. (H. Zhang et al., "mixup: beyond empirical risk minimization",
        2018.)
    cutmix : float
        Replace a box by the partner's pixels, of area 1-λ with λ from Beta(cutmix, cutmix) as far as it lies within the
        image; targets are mixed by the area that it really has. (S. Yun et al., "CutMix", 2019.) With mixup, too, each
        image gets the one or the other, by the toss of a coin.

    Raises
    ------
    XpcnnError
        When a number is not allowed.

    Notes
    -----
    Bytes stay bytes, rounded to the nearest (halves up) after positions, colours and mixing each, and are the same on
    every backend. Floats stay floats.
    """

    crop: int = 0
    flip: bool = False
    rotate: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no such number."""
        for name in ("crop", "cutout"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0))
        if not isinstance(self.flip, bool):
            raise XpcnnError(f"flip must be True or False, not {self.flip!r}.")
        for name, most in LIMITS.items():
            object.__setattr__(self, name, _real(name, getattr(self, name), most))

    def __bool__(self) -> bool:
        """Whether anything is on."""
        return any(getattr(self, field.name) for field in fields(self))

    @property
    def stages(self) -> Stages:
        """What is to be done to a batch."""
        return Stages(
            shift=bool(self.crop or self.flip),
            warp=bool(self.rotate or self.translate or self.scale),
            colour=bool(self.brightness or self.contrast),
            cutout=bool(self.cutout),
            mix=self.mixes,
        )

    @property
    def mixes(self) -> bool:
        """Whether targets become probabilities (N, K)."""
        return bool(self.mixup or self.cutmix)

    def draw(self, key: Key, count: int, image_shape: Sequence[int]) -> Host:
        """Draw all random numbers for so many images.

        Parameters
        ----------
        key : Key
            Of the purpose and the epoch. What one option draws does not depend on the others, nor a row on the count.
        count : int
            How many images.
        image_shape : (C, H, W)
            One image's.

        Returns
        -------
        array (count, COLUMNS) of float32
            A row for each image.

        Raises
        ------
        XpcnnError
            When images have another shape, or are smaller than what is cut off or out.
        """
        height, width = self._size(image_shape)
        table = np.empty((whole("count", count, 0), COLUMNS), np.float32)
        shares = {name: _shares(key, name, count, getattr(self, name)) for name in ("mixup", "cutmix")}
        for start in range(0, count, PIECE):
            here, rows = replace(key, row=key.row + start), slice(start, start + PIECE)
            part = np.empty((COLUMNS, len(table[rows])), np.float32)  # whose columns are contiguous
            self._draw_changes(here, part, height, width)
            self._draw_mixing(here, part, {name: share[rows] for name, share in shares.items()}, height, width)
            table[rows] = part.T
        return table

    def apply(self, images: Array, targets: Any, table: Any, classes: int) -> tuple[Array, Any]:
        """Return a batch's images and targets after all changes; what is given stays as it is.

        Parameters
        ----------
        images : array (N, C, H, W)
            uint8, or floats.
        targets : array (N,) or (N, K)
            Labels or probabilities, of the same library and device.
        table : array (N, COLUMNS) of float32
            From `draw`; on the host or the device.
        classes : int
            K, which labels become probabilities of, with mixup or cutmix.

        Returns
        -------
        images : array (N, C, H, W)
            Of the same dtype.
        targets : array
            As given or, with mixup or cutmix, probabilities (N, K) of float32 (or of the dtype they had).
        """
        xp = array_namespace(images)
        table = upload_like(table, images) if isinstance(table, np.ndarray) else table
        if images.dtype != xp.uint8 and not xp.isdtype(images.dtype, "real floating"):
            raise XpcnnError(f"augmentation takes images of uint8 or floats, not {images.dtype}.")
        if len(images.shape) != 4 or tuple(table.shape) != (images.shape[0], COLUMNS):
            raise XpcnnError(
                f"augmentation needs images (N, C, H, W) and a table (N, {COLUMNS}), "
                f"got shapes {tuple(images.shape)} and {tuple(table.shape)}."
            )
        images = kernels.of(xp).augment(images, table, self.stages, xp)
        return images, _mixed_targets(targets, table[:, columns.SHARE], classes, xp) if self.mixes else targets

    def _size(self, image_shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width, or raise."""
        if len(image_shape) != 3:
            raise XpcnnError(f"augmentation needs images (C, H, W), not of shape {tuple(image_shape)}.")
        _, height, width = image_shape
        for name, side in (("crop", self.crop), ("cutout", self.cutout)):
            if side > min(height, width) - (name == "crop"):
                raise XpcnnError(f"{name}={side} is too much for images of {height}×{width} pixels.")
        return height, width

    def _draw_changes(self, key: Key, table: Host, height: int, width: int) -> None:
        """Fill in what happens to each image by itself: columns (COLUMNS, count)."""
        count = table.shape[1]
        for column, numbers in enumerate(self._affine(key, count, height, width)):
            table[column] = numbers
        gain = 1.0 + self.contrast * _signed(key, "contrast", count, self.contrast)
        table[columns.GAIN] = gain
        table[columns.OFFSET] = 0.5 * (1.0 - gain) + self.brightness * _signed(
            key, "brightness", count, self.brightness
        )
        table[columns.CUTOUT] = 0.0
        if self.cutout:
            table[columns.CUTOUT] = _boxes(key.child("cutout"), self.cutout, self.cutout, count, height, width)

    def _affine(self, key: Key, count: int, height: int, width: int) -> list[Any]:
        """Return the maps from output to input positions: six numbers for each image, or for all."""
        x, y = (width - 1) / 2, (height - 1) / 2
        right, down = np.floor((2 * self.crop + 1) * _uniform(key, "crop", count, self.crop, 2)) - self.crop
        across, along = self.translate * _signed(key, "translate", count, self.translate, 2)
        dx, dy = x + right + width * across, y + down + height * along  # where the image's centre comes to lie
        turn = math.radians(self.rotate) * _signed(key, "rotate", count, self.rotate)
        zoom = 1.0 / (1.0 + self.scale * _signed(key, "scale", count, self.scale))
        mirror = np.where(_uniform(key, "flip", count, self.flip) < 0.5, -1.0, 1.0) if self.flip else 1.0
        cosine, sine = zoom * np.cos(turn), zoom * np.sin(turn)
        a, b = mirror * cosine, mirror * sine
        return [a, b, x - a * dx - b * dy, -sine, cosine, y + sine * dx - cosine * dy]

    def _draw_mixing(self, key: Key, table: Host, shares: dict[str, Doubles], height: int, width: int) -> None:
        """Fill in the columns of mixup and cutmix, of which each image gets one."""
        table[columns.MIX] = table[columns.SHARE] = 1.0
        table[columns.BOX] = 0.0
        if not self.mixes:
            return
        count = table.shape[1]
        cut = _uniform(key, "mix", count, True) < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        share = np.rint(np.where(cut, 1.0, shares["mixup"]) * columns.ONE) / columns.ONE
        table[columns.MIX] = table[columns.SHARE] = share
        if self.cutmix:
            side = np.sqrt(np.where(cut, 1.0 - shares["cutmix"], 0.0))
            high, wide = np.rint(side * height), np.rint(side * width)
            top, left, bottom, right = _boxes(key.child("cutmix", "place"), high, wide, count, height, width)
            table[columns.BOX] = top, left, bottom, right
            table[columns.SHARE] = share * (1.0 - (bottom - top) * (right - left) / (height * width))


def _shares(key: Key, purpose: str, count: int, alpha: float) -> Doubles:
    """Draw λ from Beta(alpha, alpha) for each image; without an alpha, return ones."""
    return key.child(purpose).generator().beta(alpha, alpha, count) if alpha else np.ones(count)


def _boxes(key: Key, high: Any, wide: Any, count: int, height: int, width: int) -> Doubles:
    """Return boxes of so many pixels about any pixel, as far as they lie within the image: (4, count)."""
    size = np.array([[height], [width]])
    sides = np.array([np.broadcast_to(high, count), np.broadcast_to(wide, count)])
    first = np.floor(key.uniform((count, 2)).T.astype(np.float64) * size) - np.floor(0.5 * sides)
    return np.concatenate([np.clip(first, 0, size), np.clip(first + sides, 0, size)])


def _uniform(key: Key, purpose: str, count: int, wanted: Any, numbers: int = 0) -> Any:
    """Draw from [0, 1), (count,) or (numbers, count); where nothing is wanted, return halves for all images."""
    if not wanted:
        return np.full((numbers, 1), 0.5) if numbers else np.float64(0.5)
    return key.child(purpose).uniform((count, numbers) if numbers else (count,)).T.astype(np.float64)


def _signed(key: Key, purpose: str, count: int, wanted: Any, numbers: int = 0) -> Any:
    """Draw from [-1, 1); where nothing is wanted, return zeros."""
    return 2.0 * _uniform(key, purpose, count, wanted, numbers) - 1.0


def _mixed_targets(targets: Array, share: Array, classes: int, xp: Namespace) -> Array:
    """Return the targets mixed with their partners' by the images' own shares (N,)."""
    if not xp.isdtype(targets.dtype, "real floating"):
        names = xp.arange(whole("classes", classes, 1), dtype=xp.int64, device=device(targets))
        targets = xp.astype(xp.astype(targets, xp.int64)[:, None] == names[None, :], xp.float32)
    own = xp.astype(share, targets.dtype)[:, None]
    return own * targets + (1.0 - own) * xp.flip(targets, axis=0)


def _real(name: str, value: object, most: float) -> float:
    """Return a number from 0 to ``most`` as a float, or raise."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not 0 <= value <= most
    ):
        raise XpcnnError(f"{name} must be a number from 0 to {most:g}, not {value!r}.")
    return float(value)
