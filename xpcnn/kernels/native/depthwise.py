"""Depthwise convolution in C: one filter per channel."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, address, plain, shares
from xpcnn.kernels.window import Window


class Depthwise(ctypes.Structure):
    """``Depthwise`` of depthwise.c."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("images", "channels", "height", "width", "rows", "cols", "kernel_rows", "kernel_cols"),
            *("row_stride", "col_stride", "row_dilation", "col_dilation", "top", "left"),
        )
    ]


def forward(x: Floats, weight: Floats, bias: Floats | None, win: Window) -> Floats:
    """Return the convolution (N, C, *out) of images (N, C, H, W) with filters (C, 1, KH, KW)."""
    y: Floats = memory.empty((*x.shape[:2], *win.out), np.float32)
    shape, parts = ctypes.byref(described(win, x.shape[0], x.shape[1])), shares(y.size * win.taps)
    x, weight, bias = plain(x, weight, bias)
    space = memory.empty((function("depthwise_workspace", ctypes.c_int64)(shape, parts),), np.float32)
    function("depthwise_forward")(shape, *map(address, (x, weight, bias, y, space)), parts)
    return y


def backward(dy: Floats, x: Floats, weight: Floats, win: Window, need_dx: bool) -> tuple[Floats | None, Floats, Floats]:
    """Return (dx, dweight, dbias)."""
    shape, parts = ctypes.byref(described(win, x.shape[0], x.shape[1])), shares(2 * dy.size * win.taps)
    dx = memory.empty(x.shape, np.float32) if need_dx else None
    dweight, dbias = np.empty(weight.shape, np.float32), np.empty(weight.shape[0], np.float32)
    x, weight, dy = plain(x, weight, dy)
    space = memory.empty((function("depthwise_workspace", ctypes.c_int64)(shape, parts),), np.float32)
    function("depthwise_backward")(shape, *map(address, (x, weight, dy, dx, dweight, dbias, space)), parts)
    return dx, dweight, dbias


@lru_cache(256)
def described(win: Window, images: int, channels: int) -> Depthwise:
    """Make the structure."""
    return Depthwise(images, channels, *win.size, *win.out, *win.kernel, *win.stride, *win.dilation, *win.before)
