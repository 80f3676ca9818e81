"""Convolution, ReLU and max pooling in one kernel, for small filters; its gradients in two or three."""

from __future__ import annotations

from math import prod

import numpy as np

from xpcnn.backend import Array
from xpcnn.kernels import policy
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.cuda.sums import add_up, chunks_of, wide
from xpcnn.kernels.window import Window

Pair = tuple[int, int]

THREADS = 128  # of pooled.cu's blocks
MOST_COLUMNS = 256  # C·KH·KW: the weights of a thread's filters lie in a block's own memory
MOST_PLACES = 16  # of a pooling window, and
LONGEST = 16  # pixels of a kernel's side: a thread keeps sums for each
TILE = 31  # elements of a kernel that a thread adds up gradients of
ENOUGH_THREADS = 1 << 15  # for the largest GPUs, with a few results each


def fits(weight: Array, pool: Pair) -> bool:
    """Whether this is faster than convolution, ReLU and pooling one after another, and not barred by the policy."""
    if policy.current().convolution == "cudnn":
        return False
    small = prod(weight.shape[1:]) <= MOST_COLUMNS and max(weight.shape[2:]) <= LONGEST
    return small and prod(pool) <= MOST_PLACES


def forward(
    x: Array, weight: Array, bias: Array | None, win: Window, patch: Window, pool: Pair
) -> tuple[Array, Array, Array]:
    """Return y (N, F, *patch.out), where it is above 0, and where in the pooling window each maximum was."""
    filters, pixels = weight.shape[0], x.shape[0] * prod(patch.out)
    shape = x.shape[0], filters, *patch.out
    y, active, place = runtime.empty(shape, x.dtype), runtime.empty(shape, np.bool_), runtime.empty(shape, np.uint8)
    given = runtime.contiguous(x), runtime.contiguous(weight), None if bias is None else runtime.contiguous(bias)
    blocks = -(-pixels // THREADS) * -(-filters // _filters_at_once(y, pool))
    arrays = *given, y, active, place
    runtime.launch(_text(x, y, win, pool), "pooled_forward", blocks, *arrays, *_sizes(x, y, win), threads=THREADS)
    return y, active, place


def backward(
    dy: Array, active: Array, place: Array, x: Array, weight: Array, win: Window, pool: Pair, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias)."""
    dy, active, place, x, w = (runtime.contiguous(array) for array in (dy, active, place, x, weight))
    filters, channels = weight.shape[:2]
    text, sizes = _text(x, dy, win, pool), _sizes(x, dy, win)
    tiles = filters * channels * -(-win.kernel[0] // (TILE // win.kernel[1]))
    chunks = chunks_of(tiles, dy.size // filters * tiles)
    parts = runtime.empty((chunks, weight.size + filters), wide(x))
    arrays = dy, active, place, x, parts
    runtime.launch(text, "pooled_weights", tiles * chunks, *arrays, *sizes, chunks, threads=THREADS)
    dweight, dbias = (runtime.empty(shape, weight.dtype) for shape in (weight.shape, (filters,)))
    add_up(parts, dweight, dbias)
    if not need_dx:
        return None, dweight, dbias
    dx = runtime.empty(x.shape, x.dtype)
    threads = x.shape[0] * -(-channels // _channels_at_once(x)) * prod(win.size)
    arrays = dy, active, place, w, dx
    runtime.launch(text, "pooled_images", -(-threads // THREADS), *arrays, *sizes, threads=THREADS)
    return dx, dweight, dbias


def _filters_at_once(y: Array, pool: Pair) -> int:
    """Return for how many filters one thread computes a pooled pixel: 4, 2 or 1."""
    each = 4 if prod(pool) <= 4 else 2 if prod(pool) <= 8 else 1
    while each > 1 and y.size < each * ENOUGH_THREADS:
        each //= 2
    return each


def _channels_at_once(x: Array) -> int:
    """Return of how many channels one thread computes dx at a pixel."""
    return -(-x.shape[1] // -(-x.shape[1] // 4))


def _sizes(x: Array, y: Array, win: Window) -> tuple[int, ...]:
    return (*x.shape[:2], y.shape[1], *win.size, *win.before, *y.shape[2:])


def _text(x: Array, y: Array, win: Window, pool: Pair) -> str:
    """Return the source for windows of such a size."""
    names = "KH", "KW", "SH", "SW", "PH", "PW", "FILTERS", "CHANNELS"
    numbers = *win.kernel, *win.stride, *pool, _filters_at_once(y, pool), _channels_at_once(x)
    macros = {name: str(number) for name, number in zip(names, numbers, strict=True)}
    return runtime.text("pooled.cu", **runtime.types(x), INDEX=runtime.index(x, y), **macros)
