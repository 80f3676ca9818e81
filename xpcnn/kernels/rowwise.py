"""NumPy's convolution: a product for each row of the kernel, with columns for one row only.

The rows of a kernel meet the same rows of an image, each further down by the dilation. So the columns of one kernel
row, made for every row of the image, hold those of all others too: ``Y = Σ_a W_a·cols[:, a·step:]``. That is a third
of a 3×3 kernel's copies. dX of a convolution of stride 1 is the convolution of dY with the flipped kernel: more copies
again, where the adjoint of columns would have to add.

Pixels are in one of two orders. Narrow images are laid out (C, *size, B), because long runs of memory copy well. Wide
ones are (C, B, *size), which takes no transposing; there the last windows of an image run into the next image and are
computed in vain.
"""

from __future__ import annotations

from functools import cached_property
from math import prod

import numpy as np

from xpcnn.backend import Array, Namespace
from xpcnn.kernels import memory
from xpcnn.kernels.numpy_cpu import col2im, filled, im2col, map_blocks, matmul
from xpcnn.kernels.reference import Arrays
from xpcnn.kernels.window import Ints, Window

WIDE = 24  # pixels of an output row from which on it copies well by itself
PIXELS = 16384  # of output in a block of images: Python between short calls keeps the other threads waiting
MOST_IMAGES = 64  # in a block


def forward(
    x: Array, weight: Array, bias: Array | None, win: Window, groups: int, xp: Namespace = np, *, flipped: bool = False
) -> Array:
    """Return Y = Σ_a W_a·columns_a(X) + b; ``flipped`` makes it dX of dY, with the weight of the convolution."""
    layout = Layout(win)
    w = _by_parts(weight, layout.parts, groups, flipped)  # (R, G, F/G, C/G·K/R)
    filters = w.shape[1] * w.shape[2]

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows]
        first, *others = layout.columns(images)
        y = matmul(w[0], _grouped(first, groups), xp)  # (G, F/G, columns)
        for number, columns in enumerate(others, start=1):
            y += matmul(w[number], _grouped(columns, groups), xp)
        y = y.reshape(filters, first.shape[1])
        if bias is not None:
            y += bias[:, None]
        return (layout.images(y, images.shape[0]),), ()

    (y,), _ = map_blocks(block, x.shape[0], layout.bytes(x, filters), xp, layout.most_images)
    return y


def backward(
    dy: Array, x: Array, weight: Array, win: Window, groups: int, need_dx: bool, xp: Namespace = np
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias): dW_aᵀ = columns_a(X)·dYᵀ, db = Σ dY, dX as the module says."""
    layout = Layout(win)
    channels, filters = x.shape[1], weight.shape[0]
    adjoint = adjoint_window(win)
    w = _by_parts(weight, layout.parts, groups)

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows]
        batch = images.shape[0]
        g = layout.pixels(dy[rows])  # (F, columns)
        dbias, g = g.sum(axis=1), _grouped(g, groups)
        dw = np.stack([matmul(_grouped(columns, groups), g.mT, xp) for columns in layout.columns(images)])
        if not need_dx or adjoint:
            return (), (dw, dbias)
        shape = channels * win.taps // layout.parts, g.shape[2]  # (C·K/R, columns)
        parts = [matmul(w_a.mT, g, xp).reshape(shape) for w_a in w]
        return (layout.add_columns(parts, batch, channels),), (dw, dbias)

    results = map_blocks(block, x.shape[0], layout.bytes(x, filters), xp, layout.most_images)
    (dw, dbias), dx = results[1], results[0][0] if results[0] else None
    if need_dx and adjoint:
        dx = forward(dy, weight, None, adjoint, groups, flipped=True)
    dw = dw.reshape(layout.parts, groups, channels // groups, win.taps // layout.parts, filters // groups)
    return dx, np.ascontiguousarray(dw.transpose(1, 4, 2, 0, 3)).reshape(weight.shape), dbias


def adjoint_window(win: Window) -> Window | None:
    """Return the windows over dY whose convolution is dX; None where the adjoint of columns does as well or must do."""
    before = tuple(span - 1 - b for span, b in zip(win.span, win.before, strict=True))
    if win.taps == 1 or max(win.stride) > 1 or min(before) < 0:
        return None
    return Window(win.out, win.kernel, win.stride, win.dilation, before, win.size)


class Layout:
    """How the pixels of a block of images follow each other in columns."""

    def __init__(self, win: Window) -> None:
        self.win = win
        self.wide = win.out[-1] >= WIDE
        self.parts = win.kernel[0] if win.stride[0] == 1 else 1  # rows of the kernel, or all of it at once
        self.most_images = max(1 if self.wide else 4, min(MOST_IMAGES, PIXELS // prod(win.out)))

    @cached_property
    def out(self) -> Ints:
        """Where windows of a single kernel row are: at every row of the padded image that any kernel row meets."""
        return (self.win.extent[0], *self.win.out[1:]) if self.parts > 1 else self.win.out

    def columns(self, x: Array) -> list[Array]:
        """Return for each row of the kernel its columns (C·K/R, columns): views of one array."""
        (into, out_of), batch = self.win.inside, x.shape[0]
        padded = memory.empty((x.shape[1], *self._placed(self.win.extent, batch)), x.dtype)
        images = self._images_of(padded)  # (B, C, *extent)
        for axis, part in enumerate(into, start=2):
            images[(slice(None),) * axis + (slice(part.start),)] = 0
            images[(slice(None),) * axis + (slice(part.stop, None),)] = 0
        images[(..., *into)] = x[(..., *out_of)]
        cols = im2col(padded[None], self._row_window(batch), np)
        step, count = self._steps(batch)
        return [cols[:, a * step : a * step + count] for a in range(self.parts)]

    def add_columns(self, parts: list[Array], batch: int, channels: int) -> Array:
        """Adjoint of `columns`: add the kernel rows' columns up into images (B, C, *size)."""
        (step, count), window, cols = self._steps(batch), self._row_window(batch), parts[0]
        if len(parts) > 1:
            cols = filled((len(cols), prod(window.out)), 0, cols.dtype)
            for a, part in enumerate(parts):
                cols[:, a * step : a * step + count] += part
        total = self._images_of(col2im(cols, 1, channels, window, np)[0])  # (B, C, *extent)
        if self.win.extent == self.win.size and not any(self.win.before):
            return total
        into, out_of = self.win.inside
        dx = filled((batch, channels, *self.win.size), 0, total.dtype)
        dx[(..., *out_of)] = total[(..., *into)]
        return dx

    def pixels(self, dy: Array) -> Array:
        """Return (F, columns) from images (B, F, *out), zeros at the windows computed in vain."""
        batch, filters = dy.shape[:2]
        pixels = memory.empty((filters, *self._placed(self.out if self.wide else self.win.out, batch)), dy.dtype)
        images = self._images_of(pixels)
        images[:, :, : self.win.out[0]] = dy
        images[:, :, self.win.out[0] :] = 0
        return pixels.reshape(filters, prod(pixels.shape[1:]))[:, : self._steps(batch)[1]]

    def images(self, y: Array, batch: int) -> Array:
        """Return images (B, F, *out) from pixels (F, columns), as a view."""
        if not self.wide:
            return self._images_of(y.reshape(y.shape[0], *self.win.out, batch))
        steps = [prod(self.out[axis:]) * y.itemsize for axis in range(len(self.out) + 1)]
        return np.lib.stride_tricks.as_strided(
            y, (batch, y.shape[0], *self.win.out), (steps[0], y.strides[0], *steps[1:]), writeable=False
        )

    def bytes(self, x: Array, filters: int) -> int:
        """Return the bytes that one image's columns and products take."""
        columns = x.shape[1] * self.win.taps // self.parts + filters
        return columns * prod(self.out) * x.itemsize

    def _placed(self, size: Ints, batch: int) -> Ints:
        """Return where the images' numbers stand among the axes."""
        return (batch, *size) if self.wide else (*size, batch)

    def _images_of(self, array: Array) -> Array:
        """Return images (B, C, *size) of an array that holds them in this layout, as a view."""
        return np.moveaxis(array, 1 if self.wide else -1, 0)

    def _steps(self, batch: int) -> tuple[int, int]:
        """Return how far one kernel row's columns lie behind the last one's, and how many they are."""
        if not batch:
            return 0, 0
        step = self.win.dilation[0] * prod(self.out[1:]) * (1 if self.wide else batch)
        return step, prod(self.out) * batch - (self.parts - 1) * step

    def _row_window(self, batch: int) -> Window:
        """Return the windows of one kernel row (or of all) over padded images laid out, the batch as an axis."""
        win = self.win
        kernel = (1, *win.kernel[1:]) if self.parts > 1 else win.kernel
        fields = (win.extent, batch), (kernel, 1), (win.stride, 1), (win.dilation, 1), ((0,) * len(kernel), 0)
        return Window(*(self._placed(size, one) for size, one in (*fields, (self.out, batch))))


def _by_parts(weight: Array, parts: int, groups: int, flipped: bool = False) -> Array:
    """Return the weight (R, G, F/G, C/G·K/R) by rows of the kernel; flipped, with filters and channels exchanged."""
    w = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)  # (G, F/G, C/G, K)
    if flipped:
        w = w[..., ::-1].swapaxes(1, 2)
    w = w.reshape(*w.shape[:3], parts, -1).transpose(3, 0, 1, 2, 4)
    return np.ascontiguousarray(w).reshape(*w.shape[:3], -1)


def _grouped(a: Array, groups: int) -> Array:
    """Cut rows into groups: (G, rows / G, columns)."""
    return a.reshape(groups, a.shape[0] // groups, a.shape[1])
