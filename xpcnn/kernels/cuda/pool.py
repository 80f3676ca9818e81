"""Pooling on CUDA, one launch each way: the maximum and its place, means of windows, means of whole images."""

from __future__ import annotations

from math import prod

from xpcnn.backend import Array
from xpcnn.kernels.cuda import layout, runtime
from xpcnn.kernels.window import Window

PLACES = {"uint8": "unsigned char", "int32": "int"}
Pairs = list[tuple[int, int]]  # of padding before and after, one for each axis


def max_forward(x: Array, win: Window, backwards: bool) -> tuple[Array, Array]:
    """Return the windows' maxima (N, C, *out) and which kernel element held each, the first or, backwards, the last."""
    last = layout.is_channels_last(x)
    x = layout.settled(x, last)
    shape = (*x.shape[:2], *win.out)
    y, places = layout.empty(shape, x.dtype, last), layout.empty(shape, _place(win), last)
    sizes = y.size, _step(x, last), int(backwards), *win.as_three_axes()
    runtime.launch(_text(win, x, y), "max_pool", runtime.blocks_for(y.size), x, y, places, *sizes)
    return y, places


def max_backward(dy: Array, places: Array, win: Window) -> Array:
    """Return dx: each dy goes to the input that was its window's maximum."""
    last = layout.is_channels_last(places)
    dy, places = layout.settled(dy, last), layout.settled(places, last)
    dx = layout.empty((*dy.shape[:2], *win.size), dy.dtype, last)
    sizes = dx.size, _step(dx, last), *win.as_three_axes()
    runtime.launch(_text(win, dy, dx), "max_pool_backward", runtime.blocks_for(dx.size), dy, places, dx, *sizes)
    return dx


def avg_forward(x: Array, win: Window, outside: Pairs) -> Array:
    """Return the windows' means (N, C, *out) of what lies in the image and in so much padding around it."""
    last = layout.is_channels_last(x)
    x = layout.settled(x, last)
    y = layout.empty((*x.shape[:2], *win.out), x.dtype, last)
    sizes = y.size, _step(x, last), *_flat(outside), *win.as_three_axes()
    runtime.launch(_text(win, x, y), "avg_pool", runtime.blocks_for(y.size), x, y, *sizes)
    return y


def avg_backward(dy: Array, win: Window, outside: Pairs) -> Array:
    """Return dx: each dy is spread evenly over what its mean was taken of."""
    last = layout.is_channels_last(dy)
    dy = layout.settled(dy, last)
    dx = layout.empty((*dy.shape[:2], *win.size), dy.dtype, last)
    sizes = dx.size, _step(dx, last), *_flat(outside), *win.as_three_axes()
    runtime.launch(_text(win, dy, dx), "avg_pool_backward", runtime.blocks_for(dx.size), dy, dx, *sizes)
    return dx


def mean_forward(x: Array) -> Array:
    """Return each channel's mean (N, C)."""
    last = layout.is_channels_last(x)
    x, area = layout.settled(x, last), prod(x.shape[2:])
    y = runtime.empty(x.shape[:2], x.dtype)
    rows = runtime.THREADS // (1 if last else layout.power_of_two(-(-area // 4), runtime.THREADS))
    text = runtime.text("pool.cu", **runtime.types(x), INDEX=runtime.index(x))
    runtime.launch(text, "global_mean", -(-y.size // rows), x, y, y.size, area, _step(x, last), rows)
    return y


def mean_backward(dy: Array, shape: tuple[int, ...]) -> Array:
    """Return dx of a shape (N, C, ...): each dy is spread evenly over its channel."""
    dx = runtime.empty(shape, dy.dtype)
    text = runtime.text("pool.cu", **runtime.types(dy), INDEX=runtime.index(dx))
    arguments = runtime.contiguous(dy), dx, dx.size, prod(shape[2:]), 1
    runtime.launch(text, "global_mean_backward", runtime.blocks_for(dx.size), *arguments)
    return dx


def _text(win: Window, *arrays: Array) -> str:
    """Return the kernels' source."""
    return runtime.text("pool.cu", **runtime.types(arrays[0]), INDEX=runtime.index(*arrays), PLACE=PLACES[_place(win)])


def _place(win: Window) -> str:
    """Return the dtype that numbers a kernel's elements, as the agnostic steps have it."""
    return "uint8" if win.taps <= 256 else "int32"


def _step(x: Array, last: bool) -> int:
    """Return how far apart neighbouring pixels are."""
    return int(x.shape[1]) if last else 1


def _flat(outside: Pairs) -> tuple[int, ...]:
    """Return the pairs of three axes: missing ones come first."""
    return tuple(n for pair in [(0, 0)] * (3 - len(outside)) + outside for n in pair)
