"""Convolution, ReLU and max pooling in one step, in C."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.native import convolution as conv
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Bytes, Floats, address, plain, shares
from xpcnn.kernels.native.convolution import Pair, Pooled
from xpcnn.kernels.window import Window

MOST_PLACES = 256  # of a pooling window: they are bytes


class Places(ctypes.Structure):
    """``Places`` of conv.c: which tap of the patch a kernel element meets at each place of the pooling window."""

    _fields_ = [("places", ctypes.c_int64), ("taps", ctypes.c_int64), ("tap_of", ctypes.c_void_p)]


def fits(weight: Floats, pool: Pair) -> bool:
    """Whether this computes such filters and pooling windows, faster than one step after another."""
    return prod(pool) <= MOST_PLACES


def forward(
    x: Floats, weight: Floats, bias: Floats | None, win: Window, patch: Window, pool: Pair
) -> tuple[Floats, Bytes, Bytes]:
    """Return y (N, F, *patch.out), where it is above 0, and where in the pooling window each maximum was."""
    shape = x.shape[0], weight.shape[0], *patch.out
    y, active, place = memory.empty(shape, np.float32), memory.empty(shape, bool), memory.empty(shape, np.uint8)
    if not y.size:
        return y, active, place
    described = conv.forward_of(patch, x.shape[0], x.shape[1], weight.shape[0], 1)
    places, parts = _places(win, patch, pool), shares(conv.work(x, weight, win))
    x, weight, bias = plain(x, weight, bias)
    both = ctypes.byref(described), ctypes.byref(places)
    space = memory.empty((function("conv_pool_workspace", ctypes.c_int64)(*both, parts),), np.float32)
    function("conv_pool_forward")(*both, *map(address, (x, weight, bias, y, active, place, space)), parts)
    return y, active, place


def backward(
    dy: Floats, active: Bytes, place: Bytes, x: Floats, weight: Floats, win: Window, pool: Pair, need_dx: bool
) -> tuple[Floats | None, Floats, Floats]:
    """Return (dx, dweight, dbias); the unpooled image's gradient is laid out a few images at a time."""
    dy, active, place = plain(dy, active, place)
    pooled = Pooled(address(dy), address(active), address(place))
    shapes, cost = (x.shape[0], x.shape[1], weight.shape[0], 1), conv.work(x, weight, win)
    described = conv.forward_of(win, *shapes, pool)
    dweight, dbias = conv.run_gradient(described, x, None, pooled, weight, cost)
    return conv.input_gradient(dy, pooled, weight, win, shapes, cost, pool) if need_dx else None, dweight, dbias


@lru_cache(256)
def _places(win: Window, patch: Window, pool: Pair) -> Places:
    """Describe which tap of the patch a kernel element meets at each place."""
    table: Any = np.array(
        [
            [
                (u * win.stride[0] + a) * patch.kernel[1] + v * win.stride[1] + b
                for a, b in product(*map(range, win.kernel))
            ]
            for u, v in product(*map(range, pool))
        ],
        np.int32,
    )
    places = Places(len(table), win.taps, table.ctypes.data)
    places.table = table  # keeps it alive
    return places
