"""NumPy's versions of the inner steps: few passes over memory, in blocks that stay in a core's cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

from xpcnn.backend import Array, Namespace
from xpcnn.kernels import augmentation, memory, native, threads
from xpcnn.kernels.reference import FOLDS as FOLDS
from xpcnn.kernels.reference import Arrays, Step, blocks, index_dtype, sum_in_order
from xpcnn.kernels.reference import capability as capability
from xpcnn.kernels.reference import cast as cast
from xpcnn.kernels.reference import sum_axes as sum_axes
from xpcnn.kernels.reference import takes_half as takes_half
from xpcnn.kernels.window import Window

BLOCK_BYTES = 8 << 20  # a few second-level caches: fewer, longer calls outweigh a little spilling
PIECE = 1 << 14  # elements of each array at a time in elementwise work
LARGE = 64  # pixels of an image's output
FEW_CHANNELS = 8
LONG_RUN = 64  # pixels of one row in all images
WORTH_FLOPS = 1 << 22  # of a matrix product that is worth sharing out
WORTH_PACKING = 1 << 15  # multiply-adds of a product that is worth a call of our own
FEW_ROWS = 5  # fewer are a product with vectors, which packing does not help
WORKS = {"convolution", "elementwise", "loss", "norm", "pooled", "prediction", "product"}  # of `xpcnn.kernels.native`
AUGMENTED = (np.uint8, np.float32)  # what images may be for the native augmentation
MOST_AUGMENTED = 1 << 28  # their most bytes
WORTH_A_THREAD = 1 << 20  # bytes of temporaries that each thread must get to be worth waking


def filled(shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    """Return an array of one value."""
    array = memory.empty(shape, dtype)
    array.fill(value)
    return array


def copied(x: Array, xp: Namespace) -> Array:
    """Return x, a view, as memory in its own order."""
    copy = memory.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def pad(x: Array, win: Window, fill: float, xp: Namespace) -> Array:
    """Return the part of x that the windows cover, with ``fill`` outside the image: (N, C, *extent)."""
    if not win.is_padded:
        return x
    padded = filled((*x.shape[:2], *win.extent), fill, x.dtype)
    into, out_of = win.inside
    padded[(..., *into)] = x[(..., *out_of)]
    return padded


def window_slices(x: Array, win: Window, fill: float, xp: Namespace) -> list[Array]:
    """Return, for every kernel element, a view of the inputs it meets: K arrays (N, C, *out)."""
    padded = pad(x, win, fill, xp)
    return [padded[(..., *piece)] for piece in win.slices]


def add_slices(parts: Iterable[Array], like: Array, win: Window, xp: Namespace) -> Array:
    """Adjoint of `window_slices`: add each kernel element's part (N, C, *out) to the inputs it met."""
    total = filled((*like.shape[:2], *(win.extent if win.is_padded else win.size)), 0, like.dtype)
    for part, piece in zip(parts, win.slices, strict=True):
        total[(..., *piece)] += part
    if not win.is_padded:
        return total
    into, out_of = win.inside
    dx = filled((*like.shape[:2], *win.size), 0, like.dtype)
    dx[(..., *out_of)] = total[(..., *into)]
    return dx


def im2col(x: Array, win: Window, xp: Namespace) -> Array:
    """Lay the windows of x (B, C, *size) out as columns (C·K, B·O): one copy of one strided view."""
    batch, channels = x.shape[:2]
    padded = pad(x, win, 0.0, xp)
    per_image, per_channel, *per_pixel = padded.strides
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (channels, *win.kernel, batch, *win.out),
        (
            per_channel,
            *(step * d for step, d in zip(per_pixel, win.dilation, strict=True)),
            per_image,
            *(step * s for step, s in zip(per_pixel, win.stride, strict=True)),
        ),
        writeable=False,
    )
    cols = memory.empty(windows.shape, x.dtype)
    cols[...] = windows
    return cols.reshape(channels * win.taps, batch * prod(win.out))


def col2im(cols: Array, batch: int, channels: int, win: Window, xp: Namespace) -> Array:
    """Adjoint of `im2col`: add columns (C·K, B·O) up into images (B, C, *size)."""
    cols = cols.reshape(channels, win.taps, batch, *win.out)
    parts = (np.moveaxis(cols[:, tap], 0, 1) for tap in range(win.taps))  # K × (B, C, *out)
    return add_slices(parts, np.moveaxis(cols[:, 0], 0, 1), win, xp)


def engine(work: str, x: Array, axes: int | None = None) -> Any:
    """Return the module of `xpcnn.kernels.native` that does a work on float32 arrays, where there is a C compiler."""
    if work not in WORKS or x.dtype != np.float32 or (axes is not None and axes > 2) or native.library() is None:
        return None
    return _module(f"xpcnn.kernels.native.{work}")


_module = lru_cache(import_module)


def half_dtype(xp: Namespace) -> Any:
    """Return None: NumPy has no bfloat16, and what adds it computes one number at a time."""
    return None


def rowwise_engine(x: Array, win: Window) -> Any:
    """Return the convolution by rows of the kernel; small images, few images or channels do not repay its products."""
    pays = prod(win.out) >= LARGE and x.shape[1] >= FEW_CHANNELS and x.shape[0] * win.out[-1] >= LONG_RUN
    return _module("xpcnn.kernels.rowwise") if pays else None


def first_max(parts: Sequence[Array], first: Array | None, xp: Namespace) -> tuple[Array, Array]:
    """Return the elementwise maximum of K arrays and the number of the first array that attains it.

    ``first`` (broadcasting to the arrays; 0 if None) is the number to report where all arrays are minus infinity.
    """
    shape, dtype = parts[0].shape, index_dtype(len(parts), np)
    index: Array = np.zeros(shape, dtype=dtype)
    if first is not None:
        index += first.astype(dtype)
    best = parts[0]
    better, change = memory.empty(shape, bool), memory.empty(shape, dtype)
    values = memory.empty(shape, best.dtype)
    for number, part in enumerate(parts[1:], start=1):
        np.greater(part, best, out=better)
        if number == 1 and first is None:
            np.add(index, better, out=index)
        else:
            np.subtract(dtype(number), index, out=change)  # index += better * (number - index):
            np.multiply(change, better, out=change)  # a masked copy would take ten times as long
            np.add(index, change, out=index)
        best = np.maximum(best, part, out=values)
    return np.array(best) if len(parts) == 1 else best, index


def matmul(a: Array, b: Array, xp: Namespace) -> Array:
    """Multiply matrices, or stacks of them (..., M, K) and (..., K, N); the threads share a large pair out."""
    rows, columns = a.shape[-2], b.shape[-1]
    worth = a.ndim == b.ndim == 2 and min(rows, columns) >= FEW_ROWS and rows * columns * a.shape[1] > WORTH_PACKING
    if worth and (products := engine("product", a)):
        return products.matmul(a, b)
    y = memory.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns), dtype=a.dtype)
    parts = threads.thread_count() if a.ndim == b.ndim == 2 and 2 * a.size * columns > WORTH_FLOPS else 1
    longest = max(rows, columns)
    if parts == 1 or longest < 2 * parts:
        return np.matmul(a, b, out=y)
    spans = blocks(longest, 1, -(-longest // parts))
    if rows >= columns:
        threads.run([partial(np.matmul, a[span], b, out=y[span]) for span in spans])
    else:
        threads.run([partial(np.matmul, a, b[:, span], out=y[:, span]) for span in spans])
    return y


def sum_rows(x: Array, xp: Namespace) -> Array:
    """Add up along axis 0, which stays with length 1; a product is more exact down a column than a running sum."""
    ones: Array = np.ones((1, x.shape[0]), x.dtype)
    return np.matmul(ones, x.reshape(x.shape[0], prod(x.shape[1:]))).reshape(1, *x.shape[1:])


def elementwise(rule: Callable[..., Arrays], arrays: Sequence[Array], xp: Namespace) -> Arrays:
    """Return ``rule(xp, *arrays)``, computed in pieces that stay in a core's cache."""
    shape, size = arrays[0].shape, arrays[0].size
    if size <= PIECE:
        return rule(xp, *arrays)
    flat = [np.ravel(array) for array in arrays]
    results: list[Array] = []
    for start in range(0, size, PIECE):
        piece = slice(start, start + PIECE)
        parts = rule(xp, *(array[piece] for array in flat))
        results = results or [memory.empty((size,), part.dtype) for part in parts]
        for whole, part in zip(results, parts, strict=True):
            whole[piece] = part
    return tuple(result.reshape(shape) for result in results)


def relu(x: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return max(x, 0), and where that is above 0."""
    if x.size > PIECE and (passes := engine("elementwise", x)):
        return passes.relu(x)
    y = np.maximum(x, x.dtype.type(0), out=memory.empty(x.shape, x.dtype))
    return y, np.greater(y, 0, out=memory.empty(x.shape, bool))


def clip(x: Array, low: float, high: float, xp: Namespace, factor: float = 1.0, shift: float = 0.0) -> Array:
    """Return ``factor·x + shift`` held within bounds, either of which may be infinite."""
    if x.size > PIECE and (passes := engine("elementwise", x)):
        return passes.clip(x, low, high, factor, shift)
    y = memory.empty(x.shape, x.dtype)
    if (factor, shift) != (1.0, 0.0):
        x = np.multiply(x, x.dtype.type(factor), out=y)
        x += x.dtype.type(shift)
    return np.clip(x, x.dtype.type(low), x.dtype.type(high), out=y)


def hard_swish(x: Array, xp: Namespace) -> Array:
    """Return ``x · min(max(x + 3, 0), 6) / 6``."""
    if x.size > PIECE and (passes := engine("elementwise", x)):
        return passes.hard_swish(x)
    y = clip(x, 0.0, 6.0, xp, shift=3.0)
    y /= x.dtype.type(6.0)
    y *= x
    return y


def add_bias(y: Array, bias: Array, axis: int, xp: Namespace) -> Array:
    """Add a bias (C,) along an axis of y, in place."""
    y += bias.reshape(-1, *(1,) * (y.ndim - 1 - axis % y.ndim))
    return y


def keep(x: Array, mask: Array, xp: Namespace, scale: float | None = None) -> Array:
    """Return x where the mask is true, times the scale if given, and 0 elsewhere."""
    if x.size > PIECE and mask.dtype == np.bool_ and (passes := engine("elementwise", x)):
        kept = passes.keep(x, mask)
    else:
        kept = memory.empty(x.shape, x.dtype)
        bits = f"i{x.dtype.itemsize}"
        np.multiply(x.view(bits), mask, out=kept.view(bits))  # x's bits times 0 or 1, which takes no branches
    if scale is not None:
        np.multiply(kept, x.dtype.type(scale), out=kept)
    return kept


def add(a: Array, b: Array, xp: Namespace) -> Array:
    """Return a + b, of one shape or of shapes that broadcast."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return a + b if a.dtype != b.dtype else np.add(a, b, out=_result(a, b))
    if a.size > PIECE and (passes := engine("elementwise", a)):
        return passes.add(a, b)
    return np.add(a, b, out=memory.empty(a.shape, a.dtype))


def multiply(a: Array, b: Array, xp: Namespace) -> Array:
    """Return a · b, of one shape or of shapes that broadcast."""
    return np.multiply(a, b, out=_result(a, b))


def _result(a: Array, b: Array) -> Array | None:
    """Return memory for a result of two arrays of one dtype, None for NumPy to choose where that is quicker."""
    if max(a.size, b.size) <= PIECE:
        return None
    return memory.empty(a.shape if a.shape == b.shape else np.broadcast_shapes(a.shape, b.shape), a.dtype)


def augment(images: Array, table: Array, stages: augmentation.Stages, xp: Namespace) -> Array:
    """Return a batch (N, C, H, W) after the stages, by a table (N, COLUMNS)."""
    if images.dtype in AUGMENTED and images[:1].nbytes <= MOST_AUGMENTED and native.library() is not None:
        return _module("xpcnn.kernels.native.augmentation").augment(images, table, stages)
    return augmentation.augment(images, table, stages, xp)


def first_max_backward(dy: Array, index: Array, count: int, xp: Namespace) -> Array:
    """Adjoint of `first_max`: each dy in the array that held the maximum, 0 in the others: (count, *dy.shape)."""
    parts = memory.empty((count, *dy.shape), dtype=dy.dtype)
    bits = f"i{dy.dtype.itemsize}"
    for number in range(count):
        np.multiply(dy.view(bits), index == number, out=parts[number].view(bits))
    return parts


def map_blocks(
    step: Step, rows: int, bytes_per_row: int, xp: Namespace, most: int | None = None
) -> tuple[Arrays, Arrays]:
    """Run ``step`` over blocks of rows on all cores; join its first results and add its second results in order.

    A block has at most ``most`` rows, if given.
    """
    workers = max(1, min(threads.thread_count(), rows * bytes_per_row // WORTH_A_THREAD))
    budget = BLOCK_BYTES if most is None else min(BLOCK_BYTES, most * bytes_per_row)
    pieces = blocks(rows, bytes_per_row, budget, workers)
    terms: list[Arrays] = [()] * len(pieces)
    joined: list[Array] = []
    lock = threading.Lock()

    def task(number: int) -> None:
        parts, terms[number] = step(pieces[number])
        with lock:
            if not joined:
                joined.extend(memory.empty((rows, *part.shape[1:]), dtype=part.dtype) for part in parts)
        for whole, part in zip(joined, parts, strict=True):
            whole[pieces[number]] = part

    threads.run([partial(task, number) for number in range(len(pieces))])
    return tuple(joined), sum_in_order(terms)
