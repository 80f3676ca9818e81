"""CUDA's versions of the inner steps, for CuPy arrays; the others are the agnostic reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from xpcnn.backend import Array, Namespace
from xpcnn.kernels import reference
from xpcnn.kernels.cuda import reduce, runtime, windows
from xpcnn.kernels.cuda.bias import add_bias
from xpcnn.kernels.cuda.fuse import add, clip, elementwise, hard_swish, keep, multiply, relu
from xpcnn.kernels.cuda.half import capability, cast, half_dtype, takes_half
from xpcnn.kernels.reference import (
    BLOCK_BYTES,
    add_slices,
    augment,
    copied,
    first_max,
    first_max_backward,
    map_blocks,
    pad,
    rowwise_engine,
    window_slices,
)
from xpcnn.kernels.window import Window

__all__ = [
    "BLOCK_BYTES",
    "FOLDS",
    "add",
    "add_bias",
    "add_slices",
    "augment",
    "capability",
    "cast",
    "clip",
    "col2im",
    "copied",
    "elementwise",
    "engine",
    "first_max",
    "first_max_backward",
    "half_dtype",
    "hard_swish",
    "im2col",
    "keep",
    "map_blocks",
    "matmul",
    "multiply",
    "pad",
    "relu",
    "rowwise_engine",
    "sum_axes",
    "sum_rows",
    "takes_half",
    "window_slices",
    "without_cudnn",
]


FOLDS = False  # a launch for each array of weights takes longer than one pass

WORKS = {  # module of this package -> the dtypes it takes
    "convolution": tuple(runtime.NAMES),
    "pooled": tuple(runtime.NAMES),
    "norm": tuple(runtime.NAMES),
    "loss": tuple(runtime.NAMES),
    "pool": tuple(runtime.NAMES),
    "optimizer": ("uint8", "float32", "float64", "bfloat16"),
    "capture": ("uint8", "float32", "float64", "bfloat16"),
}


def engine(work: str, x: Array, axes: int | None = None) -> Any:
    """Return the module of this package that does a whole op, or None where there is none for such arrays."""
    if str(x.dtype) not in WORKS.get(work, ()):
        return None
    return _module(f"xpcnn.kernels.cuda.{work}")


_module = lru_cache(import_module)


def without_cudnn() -> str:
    """Return why cuDNN cannot convolve here, or nothing."""
    return str(_module("xpcnn.kernels.cuda.cudnn").missing())


def matmul(a: Array, b: Array, xp: Namespace) -> Array:
    """Multiply matrices, or stacks of them (..., M, K) and (..., K, N)."""
    if min(a.ndim, b.ndim) < 2 or a.dtype != b.dtype or str(a.dtype) not in runtime.NAMES:
        return reference.matmul(a, b, xp)
    stack = a.shape[:-2] if a.shape[:-2] == b.shape[:-2] else np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = runtime.empty((*stack, a.shape[-2], b.shape[-1]), a.dtype)
    runtime.matmul(a, b, out)
    return out


def sum_rows(x: Array, xp: Namespace) -> Array:
    """Add up along axis 0, which stays with length 1."""
    return reduce.sum_rows(x) if str(x.dtype) in runtime.NAMES else reference.sum_rows(x, xp)


def sum_axes(x: Array, axes: Sequence[int], xp: Namespace) -> Array:
    """Add up along some axes, which stay with length 1; one after another."""
    for axis in axes:
        x = xp.moveaxis(sum_rows(xp.moveaxis(x, axis, 0), xp), 0, axis)
    return x


def im2col(x: Array, win: Window, xp: Namespace) -> Array:
    """Lay the windows of x (B, C, *size) out as columns (C·K, B·O), in one kernel."""
    return windows.im2col(x, win)


def col2im(cols: Array, batch: int, channels: int, win: Window, xp: Namespace) -> Array:
    """Adjoint of `im2col`: add columns (C·K, B·O) up into images (B, C, *size), each pixel gathering its own."""
    dx = runtime.empty((batch, channels, *win.size), cols.dtype)
    windows.col2im(cols, dx, win)
    return dx
