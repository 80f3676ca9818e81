"""CUDA's versions of the inner steps, for CuPy arrays; the others are the agnostic reference."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import cupy

from xpcnn.backend import Array, Namespace
from xpcnn.kernels.reference import (
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

THREADS = 256
MOST_BLOCKS = 1 << 16


def im2col(x: Array, win: Window, xp: Namespace) -> Array:
    """Lay the windows of x (B, C, *size) out as columns (C·K, B·O), in one kernel."""
    batch, channels = x.shape[:2]
    cols = cupy.empty((channels * win.taps, batch * prod(win.out)), dtype=x.dtype)
    _launch("im2col", cupy.ascontiguousarray(x), cols, batch, channels, win)
    return cols


def col2im(cols: Array, batch: int, channels: int, win: Window, xp: Namespace) -> Array:
    """Adjoint of `im2col`: add columns (C·K, B·O) up into images (B, C, *size), each pixel gathering its own."""
    dx = cupy.empty((batch, channels, *win.size), dtype=cols.dtype)
    _launch("col2im", cupy.ascontiguousarray(cols), dx, batch, channels, win)
    return dx


def _launch(name: str, source: Array, target: Array, batch: int, channels: int, win: Window) -> None:
    """Run a kernel with one thread per element of its target."""
    if not target.size:
        return
    blocks = min(MOST_BLOCKS, -(-target.size // THREADS))
    arguments = (source, target, cupy.int64(target.size), cupy.int32(batch), cupy.int32(channels))
    _kernel(name, target.dtype.char)((blocks,), (THREADS,), (*arguments, *map(cupy.int32, win.as_three_axes())))


@lru_cache
def _kernel(name: str, dtype: str) -> Any:
    """Compile a kernel for a dtype's character (CuPy keeps the binary on disk)."""
    source = Path(__file__).with_name("windows.cu").read_text(encoding="utf-8")
    real = {"f": "float", "d": "double"}[dtype]
    return cupy.RawKernel(source, name, options=("-std=c++17", f"-DREAL={real}"))
