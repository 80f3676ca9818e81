"""Augmentation of a batch in standard Array API calls: it runs on every backend and defines what the fast versions do.

All that chance decides about an image is one row of a float32 table. Positions are whole numbers of 2⁻¹⁶ pixels and
the weights of an interpolation of 2⁻¹¹, and bytes are computed in whole numbers, rounded to the nearest with halves up
after each stage: the same bytes come out everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import device

from xpcnn.backend import Array, Namespace

AFFINE = slice(0, 6)  # x_in = m0·x + m1·y + m2, y_in = m3·x + m4·y + m5, in pixels
GAIN, OFFSET = 6, 7  # y = gain·x + offset, in shares of the full range
CUTOUT = slice(8, 12)  # top, left, bottom, right of what is erased
MIX = 12  # share of the image itself, before the box
BOX = slice(13, 17)  # top, left, bottom, right of what comes from the partner
SHARE = 17  # of the image's own target
COLUMNS = 18

POSITION_BITS = 16
WEIGHT_BITS = 11
ONE = 1 << POSITION_BITS
ROUNDED = 1 << (POSITION_BITS - WEIGHT_BITS - 1)  # half of a weight's unit
FULL = 255  # the full range of bytes; floats lie from 0 to 1


class Stages(NamedTuple):
    """Which stages there are, in their order; what a table's row says of the others does not matter."""

    shift: bool = False  # by whole pixels, with or without a flip: nothing is interpolated
    warp: bool = False  # any affine map
    colour: bool = False  # gain and offset
    cutout: bool = False
    mix: bool = False  # with the batch in reverse order

    @property
    def bits(self) -> int:
        """The stages as one number, the first of them its lowest bit."""
        return sum(on << place for place, on in enumerate(self))


def augment(images: Array, table: Array, stages: Stages, xp: Namespace) -> Array:
    """Return a batch (N, C, H, W) after the stages, by a table (N, COLUMNS) on the same device."""
    if stages.warp or stages.shift:
        images = _warped(images, table, stages.warp, xp)
    if stages.colour:
        images = _coloured(images, table, xp)
    if stages.cutout:
        images = xp.where(_within(images, table[:, CUTOUT], xp), _zero(images, xp), images)
    return _mixed(images, table, xp) if stages.mix else images


def _warped(images: Array, table: Array, smooth: bool, xp: Namespace) -> Array:
    """Fetch every pixel from where the map says, with zeros outside the image."""
    m = [_column(_fixed(table[:, k], ONE, xp)) for k in range(6)]
    x = xp.arange(images.shape[3], dtype=xp.int64, device=device(images))[None, None, :]
    y = xp.arange(images.shape[2], dtype=xp.int64, device=device(images))[None, :, None]
    column = m[0] * x + m[1] * y + (m[2] + ROUNDED)  # (N, H, W)
    row = m[3] * x + m[4] * y + (m[5] + ROUNDED)
    left, top = column >> POSITION_BITS, row >> POSITION_BITS
    if not smooth:
        return _fetched(images, top, left, xp)
    right_share, lower_share = _weight(images, column, xp), _weight(images, row, xp)
    upper = _between(
        _wide(_fetched(images, top, left, xp), xp), _wide(_fetched(images, top, left + 1, xp), xp), right_share
    )
    top = top + 1
    lower = _between(
        _wide(_fetched(images, top, left, xp), xp), _wide(_fetched(images, top, left + 1, xp), xp), right_share
    )
    value = _between(upper, lower, lower_share)
    return value if _is_real(images, xp) else _rounded(value, 2 * WEIGHT_BITS, images, xp)


def _fetched(images: Array, top: Array, left: Array, xp: Namespace) -> Array:
    """Return the pixels at positions (N, H, W), zero outside the image."""
    count, channels, height, width = images.shape
    inside = (top >= 0) & (top < height) & (left >= 0) & (left < width)
    place = xp.clip(top, 0, height - 1) * width + xp.clip(left, 0, width - 1)
    planes = xp.arange(count * channels, dtype=xp.int64, device=device(images)) * (height * width)
    index = xp.reshape(planes, (count, channels, 1, 1)) + place[:, None, :, :]
    pixels = xp.take(xp.reshape(images, (-1,)), xp.reshape(index, (-1,)), axis=0)
    return xp.where(inside[:, None, :, :], xp.reshape(pixels, images.shape), _zero(images, xp))


def _weight(images: Array, position: Array, xp: Namespace) -> Array:
    """Return the share of the next pixel: of 1 for floats, of 2¹¹ for bytes."""
    weight = (position >> (POSITION_BITS - WEIGHT_BITS)) & ((1 << WEIGHT_BITS) - 1)
    if _is_real(images, xp):
        return xp.astype(weight, images.dtype)[:, None, :, :] * 2.0**-WEIGHT_BITS
    return xp.astype(weight, xp.int32)[:, None, :, :]


def _between(a: Array, b: Array, weight: Array) -> Array:
    """Interpolate linearly; whole numbers get larger by 2¹¹."""
    whole = 1.0 if "float" in str(weight.dtype) else 1 << WEIGHT_BITS
    return a * (whole - weight) + b * weight


def _coloured(images: Array, table: Array, xp: Namespace) -> Array:
    """Return gain·x + offset, within the range."""
    if _is_real(images, xp):
        gain, offset = (xp.astype(_column(table[:, k], 3), images.dtype) for k in (GAIN, OFFSET))
        return xp.clip(gain * images + offset, 0.0, 1.0)
    gain = _column(_fixed(table[:, GAIN], ONE, xp), 3)
    offset = _column(_fixed(table[:, OFFSET], FULL * ONE, xp), 3)
    return _rounded(gain * xp.astype(images, xp.int64) + offset, POSITION_BITS, images, xp)


def _mixed(images: Array, table: Array, xp: Namespace) -> Array:
    """Return each image mixed with its partner, of which a box is taken as it is."""
    partner = xp.flip(images, axis=0)
    if _is_real(images, xp):
        share = xp.astype(_column(table[:, MIX], 3), images.dtype)
        mixed = share * images + (1.0 - share) * partner
    else:
        share = _column(_fixed(table[:, MIX], ONE, xp), 3)
        both = share * xp.astype(images, xp.int64) + (ONE - share) * xp.astype(partner, xp.int64)
        mixed = _rounded(both, POSITION_BITS, images, xp)
    return xp.where(_within(images, table[:, BOX], xp), partner, mixed)


def _within(images: Array, boxes: Array, xp: Namespace) -> Array:
    """Return where pixels lie in their image's box: (N, 1, H, W)."""
    top, left, bottom, right = (_column(boxes[:, k], 3) for k in range(4))
    x = xp.arange(images.shape[3], dtype=xp.float32, device=device(images))
    y = xp.reshape(xp.arange(images.shape[2], dtype=xp.float32, device=device(images)), (-1, 1))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def _fixed(numbers: Array, unit: int, xp: Namespace) -> Array:
    """Return float32 numbers as whole ones of a unit's fraction, halves to even."""
    return xp.astype(xp.round(numbers * float(unit)), xp.int64)


def _rounded(value: Array, bits: int, like: Array, xp: Namespace) -> Array:
    """Return whole numbers with so many bits after the point as bytes."""
    return xp.astype(xp.clip((value + (1 << (bits - 1))) >> bits, 0, FULL), like.dtype)


def _wide(pixels: Array, xp: Namespace) -> Array:
    """Return bytes with room to compute in; floats as they are."""
    return pixels if _is_real(pixels, xp) else xp.astype(pixels, xp.int32)


def _column(numbers: Array, axes: int = 2) -> Array:
    """Return a number for each image (N,) with axes of length 1 after it."""
    return numbers[(slice(None), *(None,) * axes)]


def _is_real(images: Array, xp: Namespace) -> Any:
    return xp.isdtype(images.dtype, "real floating")


def _zero(images: Array, xp: Namespace) -> Array:
    return xp.zeros((), dtype=images.dtype, device=device(images))
