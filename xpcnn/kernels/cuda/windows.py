"""Columns of windows and their adjoint, by one kernel each."""

from __future__ import annotations

from math import prod

from xpcnn.backend import Array
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.window import Window


def im2col(x: Array, win: Window, by_image: bool = False) -> Array:
    """Lay the windows of x (B, C, *size) out as columns (C·K, B·O), or (B, C·K, O)."""
    batch, channels = x.shape[:2]
    depth, pixels = channels * win.taps, prod(win.out)
    cols = runtime.empty((batch, depth, pixels) if by_image else (depth, batch * pixels), x.dtype)
    _run("im2col", x, cols, batch * channels * pixels, (batch, channels, int(by_image)), win)
    return cols


def col2im(cols: Array, dx: Array, win: Window, by_image: bool = False) -> None:
    """Adjoint of `im2col`: write to dx (B, C, *size) what each pixel gathers."""
    _run("col2im", cols, dx, dx.size, (*dx.shape[:2], int(by_image)), win)


def _run(name: str, source: Array, target: Array, total: int, sizes: tuple[int, ...], win: Window) -> None:
    text = runtime.text("windows.cu", **runtime.types(target), INDEX=runtime.index(source, target))
    arguments = runtime.contiguous(source), target, total, *sizes, *win.as_three_axes()
    runtime.launch(text, name, runtime.blocks_for(total), *arguments)
