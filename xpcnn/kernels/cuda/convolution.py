"""Convolution by cuDNN; else by columns and products, or in groups by kernels that read the images themselves."""

from __future__ import annotations

from math import prod
from typing import Any

from xpcnn.backend import Array
from xpcnn.kernels.cuda import cudnn, grouped, runtime, windows
from xpcnn.kernels.cuda.sums import add_up, chunks_of, wide
from xpcnn.kernels.reference import BLOCK_BYTES, blocks
from xpcnn.kernels.window import Window

FEW_PIXELS = 64  # of output, below which an image's product is too small for one of its own


def forward(x: Array, weight: Array, bias: Array | None, win: Window, groups: int) -> Array:
    """Return the convolution (N, F, *out) of images (N, C, *size) with filters (F, C / groups, *kernel)."""
    if engine := _engine(x, weight, win, groups):
        return engine.forward(x, weight, bias, win, groups)
    x, w, filters = runtime.contiguous(x), _matrix(weight), weight.shape[0]
    y = runtime.empty((x.shape[0], filters, *win.out), x.dtype)
    pixels = prod(win.out)
    if not y.size:
        return y
    by_image = pixels >= FEW_PIXELS
    for rows in _blocks(x, win):
        images, part = x[rows], y[rows]
        batch = images.shape[0]
        cols = _columns(images, win, by_image)
        shape = (batch, filters, pixels) if by_image else (filters, batch * pixels)
        made = part.reshape(shape) if by_image else runtime.empty(shape, x.dtype)
        runtime.matmul(w, cols, made)
        if bias is not None or not by_image:
            _finish(made, bias, part, moved=not by_image)
    return y


def backward(
    dy: Array, x: Array, weight: Array, win: Window, groups: int, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias): dW = dY·im2col(X)ᵀ over all images, db = Σ dY, dX = col2im(Wᵀ·dY)."""
    if engine := _engine(x, weight, win, groups):
        return engine.backward(dy, x, weight, win, groups, need_dx)
    dy, x, w = runtime.contiguous(dy), runtime.contiguous(x), _matrix(weight)
    dx = runtime.empty(x.shape, x.dtype) if need_dx else None
    dweight, dbias = (runtime.empty(shape, weight.dtype) for shape in (weight.shape, weight.shape[:1]))
    cuts = _blocks(x, win) if dy.size else []
    chunks = chunks_of(weight.shape[0], dy[cuts[0]].size) if cuts else 0
    sums = runtime.empty((chunks * len(cuts), weight.shape[0]), wide(x))
    terms = runtime.empty((len(cuts), weight.size), wide(x)) if len(cuts) != 1 else dweight
    for number, rows in enumerate(cuts):
        g = _by_filter(dy[rows], sums[number * chunks : (number + 1) * chunks])  # (F, B·O)
        cols = _columns(x[rows], win, by_image=False)  # (C·K, B·O)
        runtime.matmul(g, cols.T, (terms[number] if len(cuts) > 1 else terms).reshape(w.shape))
        if dx is not None:
            _input_gradient(w, dy[rows], g, cols, dx[rows], win)
    if terms is not dweight:
        add_up(terms, dweight)
    add_up(sums, dbias)
    if dx is not None and not cuts:
        windows.col2im(runtime.empty((weight[0].size, 0), x.dtype), dx, win)  # nothing but zeros
    return dx, dweight, dbias


def _engine(x: Array, weight: Array, win: Window, groups: int) -> Any:
    """Return what convolves such images better than columns do, or None."""
    if cudnn.fits(x, weight, win, groups):
        return cudnn
    return grouped if groups > 1 else None


def _input_gradient(w: Array, dy: Array, g: Array, cols: Array, dx: Array, win: Window) -> None:
    """Write dX to dx, from dY as it is or with the filters first; the columns are not needed any more."""
    if _is_by_pixels(win):
        runtime.matmul(w.T, dy.reshape(*dy.shape[:2], prod(win.out)), dx.reshape(*dx.shape[:2], prod(win.size)))
        return
    runtime.matmul(w.T, g, cols)
    windows.col2im(cols, dx, win)


def _columns(images: Array, win: Window, by_image: bool) -> Array:
    """Return (B, C·K, O) or (C·K, B·O); images of whom each pixel is a window are columns already."""
    if by_image and _is_by_pixels(win):
        return images.reshape(*images.shape[:2], prod(win.size))
    return windows.im2col(images, win, by_image)


def _is_by_pixels(win: Window) -> bool:
    """Whether windows are the single pixels, all of them."""
    return win.taps == 1 and win.out == win.size and not win.is_padded


def _blocks(x: Array, win: Window) -> list[slice]:
    """Cut the images so that one block's columns stay within the budget."""
    return blocks(x.shape[0], x.shape[1] * win.taps * prod(win.out) * x.dtype.itemsize, BLOCK_BYTES)


def _matrix(weight: Array) -> Array:
    """Return filters as (F, C·K)."""
    return runtime.contiguous(weight).reshape(weight.shape[0], prod(weight.shape[1:]))


def _finish(made: Array, bias: Array | None, y: Array, moved: bool) -> None:
    """Write products to y with their bias, from (B, F, O) or, moved, from (F, B·O)."""
    bias = None if bias is None else runtime.contiguous(bias)
    sizes = y.size, *y.shape[:2], prod(y.shape[2:]), int(moved)
    runtime.launch(_text(y), "finish", runtime.blocks_for(y.size), made, bias, y, *sizes)


def _by_filter(dy: Array, sums: Array) -> Array:
    """Return dY as (F, B·O), and write each row's sum in as many parts as ``sums`` has."""
    batch, filters = dy.shape[:2]
    pixels, chunks = prod(dy.shape[2:]), sums.shape[0]
    moved = runtime.empty((filters, batch * pixels), dy.dtype)
    runtime.launch(_text(dy), "by_filter", filters * chunks, dy, moved, sums, batch, filters, pixels, chunks)
    return moved


def _text(x: Array) -> str:
    return runtime.text("convolution.cu", **runtime.types(x), INDEX=runtime.index(x))
