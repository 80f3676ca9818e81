"""Pooling to a given size, or to one number per channel."""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_extra as xpx
from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError, whole
from xpcnn.ops import _check, half
from xpcnn.ops.window import AXES, index_dtype

Bins = list[slice]


class AdaptivePoolSaved(NamedTuple):
    """What `adaptive_avg_pool2d_backward` needs."""

    kin: Array
    shape: tuple[int, ...]
    rows: Bins
    columns: Bins


class GlobalPoolSaved(NamedTuple):
    """What the backward of global pooling needs."""

    kin: Array
    shape: tuple[int, ...]
    indices: Array | None = None  # of the maxima: flat positions in their planes (N, C), int64


@half.forward
def adaptive_avg_pool2d(x: Array, output_size: Any, *, xp: Namespace | None = None) -> tuple[Array, AdaptivePoolSaved]:
    """Average images over an even grid of bins: bin i of n covers the rows from ⌊i·H/n⌋ to before ⌈(i + 1)·H/n⌉.

    Bins overlap by a row where n does not divide H, as PyTorch's do.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images, of any floating dtype.
    output_size : int or (int or None, int or None)
        Rows and columns of the output; None keeps an axis as it is.

    Returns
    -------
    y : array (N, C, OH, OW)
    saved : AdaptivePoolSaved
    """
    xp = _check.namespace(xp, x=x)
    _check_image(x)
    size = tuple(x.shape[2:])
    rows, columns = map(bins, size, adaptive_size(size, output_size))
    if len(rows) == len(columns) == 1:
        planes = xp.reshape(x, (*x.shape[:2], size[0] * size[1]))
        y = (xp.sum(planes, axis=2) / (size[0] * size[1]))[:, :, None, None]
    else:
        tall = xp.stack([xp.mean(x[:, :, piece, :], axis=2) for piece in rows], axis=2)  # (N, C, OH, W)
        y = xp.stack([xp.mean(tall[..., piece], axis=3) for piece in columns], axis=3)
    return y, AdaptivePoolSaved(_check.kin(x, xp), tuple(x.shape), rows, columns)


@half.backward
def adaptive_avg_pool2d_backward(dy: Array, saved: AdaptivePoolSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: each dy is spread evenly over its bin."""
    kin, shape, rows, columns = saved
    xp = _check.namespace(xp, dy=dy, x=kin)
    _check.same_shape("dy", dy, (*shape[:2], len(rows), len(columns)), "the shape of y")
    tall = xp.zeros((*shape[:2], len(rows), shape[3]), dtype=dy.dtype, device=device(dy))
    for j, piece in enumerate(columns):
        tall = xpx.at(tall, (..., piece)).add(dy[..., j, None] / (piece.stop - piece.start), copy=None, xp=xp)
    dx = xp.zeros(shape, dtype=dy.dtype, device=device(dy))
    for i, piece in enumerate(rows):
        share = tall[:, :, i, None, :] / (piece.stop - piece.start)
        dx = xpx.at(dx, (slice(None), slice(None), piece, slice(None))).add(share, copy=None, xp=xp)
    return dx


@half.forward
def global_avg_pool2d(x: Array, *, xp: Namespace | None = None) -> tuple[Array, GlobalPoolSaved]:
    """Average each channel of images (N, C, H, W) to one number: (N, C).

    M. Lin, Q. Chen, S. Yan, "Network in network", 2014, section 3.2.
    """
    xp = _check.namespace(xp, x=x)
    _check_image(x)
    engine = kernels.of(xp).engine("pool", x)
    y = engine.mean_forward(x) if engine else xp.mean(x, axis=(2, 3))
    return y, GlobalPoolSaved(_check.kin(x, xp), tuple(x.shape))


@half.backward
def global_avg_pool2d_backward(dy: Array, saved: GlobalPoolSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx (N, C, H, W): each dy is spread evenly over its channel."""
    xp = _check_dy(dy, saved, xp)
    if engine := kernels.of(xp).engine("pool", dy):
        return engine.mean_backward(dy, saved.shape)
    share = dy[:, :, None, None] / (saved.shape[2] * saved.shape[3])
    return xp.zeros(saved.shape, dtype=dy.dtype, device=device(dy)) + share


@half.forward
def global_max_pool2d(x: Array, *, xp: Namespace | None = None) -> tuple[Array, GlobalPoolSaved]:
    """Take the largest value of each channel of images (N, C, H, W): (N, C); on ties the first wins.

    ``saved.indices`` gives each maximum's flat position in its plane.
    """
    xp = _check.namespace(xp, x=x)
    _check_image(x)
    pixels = x.shape[2] * x.shape[3]
    flat = xp.reshape(x, (*x.shape[:2], pixels))
    y = xp.max(flat, axis=2)
    there = (flat == y[..., None]) | xp.isnan(flat)
    beyond = xp.full((), pixels - 1, dtype=index_dtype(xp), device=device(x))
    indices = xp.min(xp.where(there, _numbers(pixels, x, xp), beyond), axis=2)
    return y, GlobalPoolSaved(_check.kin(x, xp), tuple(x.shape), indices)


@half.backward
def global_max_pool2d_backward(dy: Array, saved: GlobalPoolSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx (N, C, H, W): each dy goes to the pixel that was its channel's maximum."""
    xp = _check_dy(dy, saved, xp)
    chosen = saved.indices[..., None] == _numbers(saved.shape[2] * saved.shape[3], dy, xp)  # type: ignore[index]
    zero = xp.zeros((), dtype=dy.dtype, device=device(dy))
    return xp.reshape(xp.where(chosen, dy[..., None], zero), saved.shape)


def _numbers(count: int, like: Array, xp: Namespace) -> Array:
    """Return 0, 1, 2, ..."""
    return xp.arange(count, dtype=index_dtype(xp), device=device(like))


def _check_image(x: Array) -> None:
    """Raise unless x holds images with pixels."""
    _check.rank("x", x, AXES[2])
    if not x.shape[2] * x.shape[3]:
        raise XpcnnError(f"x of shape {tuple(x.shape)} has images without pixels.")


def _check_dy(dy: Array, saved: GlobalPoolSaved, xp: Namespace | None) -> Namespace:
    """Return the namespace, or raise unless dy has y's shape and dtype."""
    xp = _check.namespace(xp, dy=dy, x=saved.kin)
    _check.same_shape("dy", dy, saved.shape[:2], "the shape of y")
    return xp


def adaptive_size(size: tuple[int, ...], output_size: Any) -> tuple[int, ...]:
    """Return the output's rows and columns from an int or a pair; None keeps an axis."""
    pair = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    if len(pair) != 2:
        raise XpcnnError(f"output_size must be a whole number above 0, or a pair of them or None, not {output_size!r}.")
    return tuple(n if out is None else whole("output_size", out, 1) for n, out in zip(size, pair, strict=True))


def bins(size: int, out: int) -> Bins:
    """Return the slices of one axis that PyTorch's adaptive pooling averages."""
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
