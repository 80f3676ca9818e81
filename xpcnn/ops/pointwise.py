"""Convolution by single pixels (1×1 kernels, unpadded): each image is one matrix product, without columns.

A stride skips pixels, so the others are left out before the product.
"""

from __future__ import annotations

from math import prod

import array_api_extra as xpx
from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.kernels import Window
from xpcnn.ops import _check

Arrays = tuple[Array, ...]
FEWEST = 64  # pixels of output that make a product of its own worthwhile; of smaller images columns are made


def fits(win: Window) -> bool:
    """Whether a convolution is by single pixels, of images large enough."""
    return win.taps == 1 and not win.is_padded and prod(win.out) >= FEWEST


def forward(x: Array, weight: Array, bias: Array | None, win: Window, groups: int, xp: Namespace) -> Array:
    """Return Y[n] = W·X[n] + b."""
    k = kernels.of(xp)
    filters = weight.shape[0]
    w = xp.reshape(weight, (groups, filters // groups, weight.shape[1]))

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        y = k.matmul(w, _pixels(x[rows, ...], win, groups, xp), xp)  # (B, G, F/G, O)
        y = xp.reshape(y, (y.shape[0], filters, *win.out))
        return (y if bias is None else k.add_bias(y, bias, 1, xp),), ()

    (y,), _ = k.map_blocks(block, x.shape[0], _bytes(x, weight, win), xp)
    return y


def backward(
    dy: Array, x: Array, weight: Array, win: Window, groups: int, need_dx: bool, xp: Namespace
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias): dW = Σ dY[n]·X[n]ᵀ, db = Σ dY, dX[n] = Wᵀ·dY[n]."""
    k = kernels.of(xp)
    channels, filters = x.shape[1], weight.shape[0]
    w_t = xp.reshape(weight, (groups, filters // groups, weight.shape[1])).mT

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]
        g = xp.reshape(dy[rows, ...], (images.shape[0], groups, filters // groups, prod(win.out)))
        sums = xp.sum(k.matmul(g, _pixels(images, win, groups, xp).mT, xp), axis=0), xp.sum(g, axis=(0, 3))
        if not need_dx:
            return (), sums
        dx = xp.reshape(k.matmul(w_t, g, xp), (images.shape[0], channels, *win.out))
        return (_spread(dx, win, xp),), sums

    dx, (dweight, dbias) = k.map_blocks(block, x.shape[0], _bytes(x, weight, win), xp)
    return dx[0] if need_dx else None, xp.reshape(dweight, weight.shape), xp.reshape(dbias, (filters,))


def _pixels(x: Array, win: Window, groups: int, xp: Namespace) -> Array:
    """Return the pixels that windows meet: (B, G, C/G, O)."""
    met = x if max(win.stride) == 1 else x[(..., *win.slices[0])]
    return xp.reshape(met, (x.shape[0], groups, x.shape[1] // groups, prod(win.out)))


def _spread(met: Array, win: Window, xp: Namespace) -> Array:
    """Adjoint of leaving pixels out: zeros in their places."""
    if max(win.stride) == 1:
        return met
    dx = xp.zeros((*met.shape[:2], *win.size), dtype=met.dtype, device=device(met))
    return xpx.at(dx, (..., *win.slices[0])).set(met, copy=None, xp=xp)


def _bytes(x: Array, weight: Array, win: Window) -> int:
    """Bytes that one image's share takes: what is read, what is written, and its part of dW."""
    numbers = x.shape[1] * prod(win.size) + weight.shape[0] * (prod(win.out) + weight.shape[1])
    return numbers * (8 if _check.dtype_name(x) == "float64" else 4)
