"""Convolutions in C: geometry in plain numbers goes down, arrays go down by address."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.native import depthwise
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, address, plain, shares
from xpcnn.kernels.window import Window

Pair = tuple[int, int]

LOOKS = 2  # the geometry is two-dimensional
MOST_PIXELS = 1 << 18  # of a plane that depthwise convolution holds for sixteen channels at once


class Conv(ctypes.Structure):
    """``Conv`` of conv.c, which explains the fields."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("images", "channels", "height", "width", "groups", "filters", "rows", "cols"),
                *("row_stride", "col_stride", "taps", "weight_filter", "weight_channel", "weight_group"),
                *("into_height", "into_width", "into_row_stride", "into_col_stride", "into_row", "into_col"),
                *("pool_rows", "pool_cols"),
            )
        ),
        ("tap", ctypes.c_void_p),
    ]


class Pooled(ctypes.Structure):
    """``Pooled`` of conv.c: the gradient of a pooled image."""

    _fields_ = [("dy", ctypes.c_void_p), ("active", ctypes.c_void_p), ("place", ctypes.c_void_p)]


def forward(x: Floats, weight: Floats, bias: Floats | None, win: Window, groups: int) -> Floats:
    """Return the convolution (N, F, *out) of images (N, C, *size) with filters (F, C / groups, *kernel)."""
    if _is_depthwise(x, weight, win, groups):
        return depthwise.forward(x, weight, bias, win)
    y: Floats = memory.empty((x.shape[0], weight.shape[0], *win.out), np.float32)
    shapes = x.shape[0], x.shape[1], weight.shape[0], groups
    if y.size:
        _run_forward(forward_of(win, *shapes), x, None, weight, bias, y, work(x, weight, win))
    return y


def backward(
    dy: Floats, x: Floats, weight: Floats, win: Window, groups: int, need_dx: bool
) -> tuple[Floats | None, Floats, Floats]:
    """Return (dx, dweight, dbias)."""
    if _is_depthwise(x, weight, win, groups):
        return depthwise.backward(dy, x, weight, win, need_dx)
    shapes = x.shape[0], x.shape[1], weight.shape[0], groups
    cost = work(x, weight, win)
    dweight, dbias = run_gradient(forward_of(win, *shapes), x, dy, None, weight, cost)
    return input_gradient(dy, None, weight, win, shapes, cost) if need_dx else None, dweight, dbias


def input_gradient(
    dy: Floats,
    pooled: Pooled | None,
    weight: Floats,
    win: Window,
    shapes: tuple[int, int, int, int],
    cost: int,
    pool: Pair = (1, 1),
) -> Floats:
    """Return dx: for the inputs of each residue of the stride, a convolution of dy with some of the kernel."""
    residues = _residues(win, *shapes, pool)
    whole = len(residues) == prod(map(min, win.stride, win.size))  # else some inputs are never seen
    shape = shapes[0], shapes[1], *win.size
    dx: Floats = memory.empty(shape, np.float32) if whole else np.zeros(shape, np.float32)
    if dx.size:
        for conv in residues:
            _run_forward(conv, dy, pooled, weight, None, dx, cost)
    return dx


def _is_depthwise(x: Floats, weight: Floats, win: Window, groups: int) -> bool:
    """Whether every channel has one filter of its own, of planes that may be held sixteen channels at a time."""
    return (
        prod(win.size) <= MOST_PIXELS
        and groups == x.shape[1] == weight.shape[0]
        and groups > 1
        and len(win.size) == LOOKS
        and 0 not in (*x.shape, *win.out)
    )


def work(x: Floats, weight: Floats, win: Window) -> int:
    """Return how many multiply-adds a convolution takes."""
    return x.shape[0] * weight.size * prod(win.out)


def _run_forward(
    conv: Conv, x: Floats, pooled: Pooled | None, weight: Floats, bias: Floats | None, y: Floats, cost: int
) -> None:
    parts = shares(cost)
    x, weight, bias = plain(x, weight, bias)
    space = memory.empty((function("conv_forward_workspace", ctypes.c_int64)(ctypes.byref(conv), parts),), np.float32)
    source = None if pooled is None else ctypes.byref(pooled)
    addresses = address(x), source, *map(address, (weight, bias, y, space))
    function("conv_forward")(ctypes.byref(conv), *addresses, parts)


def run_gradient(
    conv: Conv, x: Floats, dy: Floats | None, pooled: Pooled | None, weight: Floats, cost: int
) -> tuple[Floats, Floats]:
    """Return dweight and dbias from dy, or from the gradient of the pooled image."""
    parts = shares(cost)
    dweight, dbias = np.zeros(weight.shape, np.float32), np.zeros(weight.shape[0], np.float32)
    if not x.size or not conv.rows * conv.cols:
        return dweight, dbias
    x, dy = plain(x, dy)
    space = memory.empty((function("conv_gradient_workspace", ctypes.c_int64)(ctypes.byref(conv), parts),), np.float32)
    source = None if pooled is None else ctypes.byref(pooled)
    addresses = address(x), address(dy), source, *map(address, (dweight, dbias, space))
    function("conv_gradient")(ctypes.byref(conv), *addresses, parts)
    return dweight, dbias


def two_axes(win: Window) -> Window:
    """Return a one-dimensional window as a two-dimensional one of one row."""
    if len(win.size) == LOOKS:
        return win
    fields = (win.size, win.kernel, win.stride, win.dilation, win.before, win.out)
    return Window(*((filler, *values) for filler, values in zip((1, 1, 1, 1, 0, 1), fields, strict=True)))


@lru_cache(1024)
def forward_of(win: Window, images: int, channels: int, filters: int, groups: int, pool: Pair = (1, 1)) -> Conv:
    """Describe a convolution; with ``pool``, only the windows that the pooling looks at."""
    win = two_axes(win)
    rows, cols = (o // p * p for o, p in zip(win.out, pool, strict=True))
    taps = [
        (a * win.dilation[0] - win.before[0], b * win.dilation[1] - win.before[1], place)
        for place, (a, b) in enumerate(product(*map(range, win.kernel)))
    ]
    each, own = channels // groups, filters // groups
    steps = each * win.taps, win.taps, own * each * win.taps
    target = rows, cols, 1, 1, 0, 0
    return _described(images, each, win.size, groups, own, (rows, cols), win.stride, taps, steps, target, pool)


@lru_cache(1024)
def _residues(win: Window, images: int, channels: int, filters: int, groups: int, pool: Pair = (1, 1)) -> list[Conv]:
    """Describe dx: for every residue of the stride that any window sees, a convolution of dy with stride 1."""
    win = two_axes(win)
    found = []
    each, own = channels // groups, filters // groups
    steps = win.taps, each * win.taps, own * each * win.taps
    out = tuple(o // p * p for o, p in zip(win.out, pool, strict=True))
    for residue in product(*map(range, win.stride)):
        axes = [_met(axis, residue[axis], win) for axis in range(LOOKS)]
        taps = [(r, c, a * win.kernel[1] + b) for a, r in axes[0] for b, c in axes[1]]
        rows, cols = (-(-(n - q) // s) for n, q, s in zip(win.size, residue, win.stride, strict=True))
        target = *win.size, *win.stride, *residue
        if taps and rows > 0 and cols > 0:
            found.append(_described(images, own, out, groups, each, (rows, cols), (1, 1), taps, steps, target, pool))
    return found


def _met(axis: int, residue: int, win: Window) -> list[tuple[int, int]]:
    """Return, for inputs of a residue, each kernel element that meets them and how far on its window is."""
    places = [(k, residue + win.before[axis] - k * win.dilation[axis]) for k in range(win.kernel[axis])]
    return [(k, place // win.stride[axis]) for k, place in places if place % win.stride[axis] == 0]


def _described(
    images: int,
    channels: int,
    size: Sequence[int],
    groups: int,
    filters: int,
    windows: tuple[int, int],
    stride: Sequence[int],
    taps: list[tuple[int, int, int]],
    steps: tuple[int, int, int],
    target: Sequence[int],
    pool: tuple[int, int],
) -> Conv:
    """Make the structure; it keeps its taps alive."""
    table = np.array(taps, np.int32)
    conv = Conv(images, channels, *size, groups, filters, *windows, *stride, len(taps), *steps, *target, *pool)
    conv.tap, conv.table = table.ctypes.data, table
    return conv
