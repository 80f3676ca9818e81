"""Convolution, ReLU and max pooling in one step, for the first layers of small networks.

Max pooling commutes with the bias and with ReLU, and a pooled pixel sees one patch of the input. So the columns are
those of the pooled pixels, the filters are laid out at every place of the pooling window, and one matrix product
gives all the values of which the maximum is taken: fewer bytes than the columns of every unpooled pixel.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import array_api_extra as xpx
from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.kernels import Window
from xpcnn.ops import _check, half
from xpcnn.ops.conv import check_shapes
from xpcnn.ops.window import conv_window, ints

FEW_COLUMNS = 256  # C·KH·KW, beyond which the multiplications outweigh the moving

Arrays = tuple[Array, ...]
Places = list[tuple[slice, ...]]


class ConvPoolSaved(NamedTuple):
    """What `conv2d_relu_max_pool2d_backward` needs."""

    x: Array
    weight: Array
    active: Array  # (N, F, *out): where the maximum was above 0
    place: Array  # (N, F, *out): where in the pooling window the maximum was
    has_bias: bool
    win: Window  # of a pooled pixel's patch
    places: Places  # of the filter within the patch
    conv: Window  # of the convolution
    pool: tuple[int, int]


@half.forward_beside(taken=lambda given: pays(given["x"], given["weight"], given.get("pool_size", 2)))
def conv2d_relu_max_pool2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    pool_size: Any = 2,
    xp: Namespace | None = None,
) -> tuple[Array, ConvPoolSaved]:
    """Compute ``max_pool2d(relu(conv2d(x, weight, bias)), pool_size)`` without the unpooled image.

    Parameters
    ----------
    x : array (N, C, H, W)
    weight : array (F, C, KH, KW)
    bias : array (F,), optional
    stride, padding
        Of the convolution, as in `conv2d`.
    pool_size : int or (int, int)
        The pooling window, which is also its stride.

    Returns
    -------
    y : array (N, F, PH, PW)
    saved : ConvPoolSaved
    """
    xp = _check.namespace(xp, {"bias": bias}, x=x, weight=weight)
    check_shapes(2, x, weight, bias, 1)
    conv = conv_window(x.shape[2:], weight.shape[2:], stride=stride, padding=padding)
    pooling = conv_window(conv.out, ints("pool_size", pool_size, 2, 1), stride=pool_size)
    win, places = _pooled(conv, pooling)
    pool = pooling.kernel[0], pooling.kernel[1]
    k = kernels.of(xp)
    filters = weight.shape[0]
    if engine := _engine(x, weight, pool, xp):
        y, active, place = engine.forward(x, weight, bias, conv, win, pool)
        return y, ConvPoolSaved(x, weight, active, place, bias is not None, win, places, conv, pool)
    w = _spread(weight, win, places, xp)  # (P·F, C·K')

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]
        batch, columns = images.shape[0], images.shape[0] * prod(win.out)
        z = xp.reshape(k.matmul(w, k.im2col(images, win, xp), xp), (len(places), filters, columns))
        y, place = k.first_max([z[p, ...] for p in range(len(places))], None, xp)  # (F, B·O)
        if bias is not None:
            y = k.add_bias(y, bias, 0, xp)
        y, active = k.relu(y, xp)
        return tuple(xp.moveaxis(xp.reshape(a, (filters, batch, *win.out)), 0, 1) for a in (y, active, place)), ()

    (y, active, place), _ = k.map_blocks(block, x.shape[0], _bytes(weight, win, places), xp)
    return y, ConvPoolSaved(x, weight, active, place, bias is not None, win, places, conv, pool)


@half.backward
def conv2d_relu_max_pool2d_backward(
    dy: Array, saved: ConvPoolSaved, *, need_dx: bool = True, xp: Namespace | None = None
) -> tuple[Array | None, Array, Array | None]:
    """Return the gradients ``(dx, dweight, dbias)``; without ``need_dx`` dx is None and its work is spared."""
    x, weight, active, place, has_bias, win, places, conv, pool = saved
    xp = _check.namespace(xp, dy=dy, weight=weight)
    expected = (x.shape[0], weight.shape[0], *win.out)
    _check.same_shape("dy", dy, expected, "the shape of y")
    for name, kept in (("saved.active", active), ("saved.place", place)):
        _check.same_shape(name, kept, expected, "the shape of y")
    _check.same_shape("saved.x", x, (x.shape[0], weight.shape[1], *conv.size), "the images that were convolved")
    k = kernels.of(xp)
    if engine := _engine(x, weight, pool, xp):
        dx, dweight, dbias = engine.backward(dy, active, place, x, weight, conv, pool, need_dx)
        return dx, dweight, dbias if has_bias else None
    filters, channels = weight.shape[:2]
    w_t = _spread(weight, win, places, xp).T  # (C·K', P·F)

    def rows_by_filter(a: Array) -> Array:
        return xp.reshape(xp.moveaxis(a, 1, 0), (filters, a.shape[0] * prod(win.out)))  # (F, B·O)

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]
        g = rows_by_filter(k.keep(dy[rows, ...], active[rows, ...], xp))
        dz = k.first_max_backward(g, rows_by_filter(place[rows, ...]), len(places), xp)
        dz = xp.reshape(dz, (len(places) * filters, g.shape[1]))  # (P·F, B·O)
        sums = k.matmul(dz, k.im2col(images, win, xp).T, xp), xp.sum(g, axis=1)
        if not need_dx:
            return (), sums
        return (k.col2im(k.matmul(w_t, dz, xp), images.shape[0], channels, win, xp),), sums

    dx, (dw, dbias) = k.map_blocks(block, x.shape[0], _bytes(weight, win, places), xp)
    dw = xp.reshape(dw, (len(places), filters, channels, *win.kernel))
    dweight = sum(dw[(p, ..., *spot)] for p, spot in enumerate(places))
    return dx[0] if need_dx else None, dweight, dbias if has_bias else None


def pays(x: Array, weight: Array, pool_size: Any) -> bool:
    """Whether one step is faster than three; without an engine it adds multiplications to move fewer columns."""
    xp = _check.namespace(None, x=x, weight=weight)
    if engine := kernels.of(xp).engine("pooled", x):
        rows, columns = ints("pool_size", pool_size, 2, 1)
        return bool(engine.fits(weight, (rows, columns)))
    return prod(weight.shape[1:]) <= FEW_COLUMNS


def _engine(x: Array, weight: Array, pool: tuple[int, int], xp: Namespace) -> Any:
    """Return the backend's engine, if it has one for such images, filters and pooling windows."""
    engine = kernels.of(xp).engine("pooled", x) if x.shape[1] else None
    return engine if engine and engine.fits(weight, pool) else None


@lru_cache(1024)
def _pooled(conv: Window, pool: Window) -> tuple[Window, Places]:
    """Return the windows of the pooled pixels' patches, and the filter's places within a patch."""
    kernel = tuple(k + (p - 1) * s for k, p, s in zip(conv.kernel, pool.kernel, conv.stride, strict=True))
    stride = tuple(p * s for p, s in zip(pool.stride, conv.stride, strict=True))
    places = [
        tuple(slice(u * s, u * s + k) for u, s, k in zip(offset, conv.stride, conv.kernel, strict=True))
        for offset in product(*map(range, pool.kernel))
    ]
    return Window(conv.size, kernel, stride, conv.dilation, conv.before, pool.out), places


def _spread(weight: Array, win: Window, places: Places, xp: Namespace) -> Array:
    """Lay the filters out at every place within the patch, zeros around them: (P·F, C·K')."""
    filters, channels = weight.shape[:2]
    shape = (len(places), filters, channels, *win.kernel)
    w = xp.zeros(shape, dtype=weight.dtype, device=device(weight))
    for p, spot in enumerate(places):
        w = xpx.at(w, (p, ..., *spot)).set(weight, copy=None, xp=xp)
    return xp.reshape(w, (len(places) * filters, channels * win.taps))


def _bytes(weight: Array, win: Window, places: Places) -> int:
    """Bytes that one image's columns and products take."""
    rows = weight.shape[1] * win.taps + len(places) * weight.shape[0]
    return rows * prod(win.out) * (8 if _check.dtype_name(weight) == "float64" else 4)
