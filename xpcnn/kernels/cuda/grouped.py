"""Convolution in groups of channels, depthwise ones above all: straight from the images."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.cuda.sums import add_up, chunks_of, wide
from xpcnn.kernels.window import Window


def forward(x: Array, weight: Array, bias: Array | None, win: Window, groups: int) -> Array:
    """Return the convolution (N, F, *out) of images (N, C, *size) with filters (F, C / groups, *kernel)."""
    y = runtime.empty((x.shape[0], weight.shape[0], *win.out), x.dtype)
    bias = None if bias is None else runtime.contiguous(bias)
    arrays = runtime.contiguous(x), runtime.contiguous(weight), bias, y
    _run(
        "grouped_forward", runtime.blocks_for(y.size), (x, weight, y), *arrays, y.size, *_sizes(weight, groups), win=win
    )
    return y


def backward(
    dy: Array, x: Array, weight: Array, win: Window, groups: int, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias)."""
    dy, x, w = (runtime.contiguous(array) for array in (dy, x, weight))
    sizes, filters, weights = _sizes(weight, groups), weight.shape[0], weight.size
    dweight, dbias = (runtime.empty(shape, weight.dtype) for shape in (weight.shape, weight.shape[:1]))
    chunks = chunks_of(weights, dy.size // filters * weights)
    parts = runtime.empty((chunks, weights + filters), wide(x))
    _run("grouped_weights", weights * chunks, (x, dy), dy, x, parts, x.shape[0], chunks, *sizes, win=win)
    add_up(parts, dweight, dbias)
    if not need_dx:
        return None, dweight, dbias
    dx = runtime.empty(x.shape, x.dtype)
    _run("grouped_images", runtime.blocks_for(dx.size), (x, dy, weight), dy, w, dx, dx.size, *sizes, win=win)
    return dx, dweight, dbias


def _sizes(weight: Array, groups: int) -> tuple[int, int, int]:
    """Return the groups, and the channels and filters of each."""
    return groups, weight.shape[1], weight.shape[0] // groups


def _run(name: str, blocks: int, sized: tuple[Array, ...], *arguments: Array | int | None, win: Window) -> None:
    text = runtime.text("grouped.cu", **runtime.types(sized[0]), INDEX=runtime.index(*sized))
    runtime.launch(text, name, blocks, *arguments, *win.as_three_axes())
