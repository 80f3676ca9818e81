"""CUDA's versions of the inner steps, for CuPy arrays; the others are the agnostic reference."""

from __future__ import annotations

from math import prod

from xpcnn.backend import Array, Namespace
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.reference import (
    BLOCK_BYTES,
    add,
    add_slices,
    copied,
    elementwise,
    engine,
    first_max,
    first_max_backward,
    keep,
    map_blocks,
    matmul,
    pad,
    relu,
    rowwise_engine,
    sum_rows,
    window_slices,
)
from xpcnn.kernels.window import Window

__all__ = [
    "BLOCK_BYTES",
    "add",
    "add_slices",
    "col2im",
    "copied",
    "elementwise",
    "engine",
    "first_max",
    "first_max_backward",
    "im2col",
    "keep",
    "map_blocks",
    "matmul",
    "pad",
    "relu",
    "rowwise_engine",
    "sum_rows",
    "window_slices",
]


def im2col(x: Array, win: Window, xp: Namespace) -> Array:
    """Lay the windows of x (B, C, *size) out as columns (C·K, B·O), in one kernel."""
    batch, channels = x.shape[:2]
    cols = runtime.empty((channels * win.taps, batch * prod(win.out)), x.dtype)
    _move("im2col", x, cols, batch, channels, win)
    return cols


def col2im(cols: Array, batch: int, channels: int, win: Window, xp: Namespace) -> Array:
    """Adjoint of `im2col`: add columns (C·K, B·O) up into images (B, C, *size), each pixel gathering its own."""
    dx = runtime.empty((batch, channels, *win.size), cols.dtype)
    _move("col2im", cols, dx, batch, channels, win)
    return dx


def _move(name: str, source: Array, target: Array, batch: int, channels: int, win: Window) -> None:
    """Run a kernel with one thread per element of its target."""
    text = runtime.text("windows.cu", **runtime.types(target), INDEX=runtime.index(source, target))
    arguments = runtime.contiguous(source), target, target.size, batch, channels, 0, *win.as_three_axes()
    runtime.launch(text, name, runtime.blocks_for(target.size), *arguments)
