"""The inner steps in standard Array API calls: they run on every backend and define what the fast versions do.

A window step and its adjoint: ``window_slices`` and ``add_slices``, ``im2col`` and ``col2im``. Columns are laid out
``(C·K, B·O)``, K kernel elements by O windows per image, so that one matrix product convolves a block of B images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import array_api_extra as xpx
from array_api_compat import device

from xpcnn.backend import Array, Namespace
from xpcnn.kernels.augmentation import augment as augment
from xpcnn.kernels.window import Window

Arrays = tuple[Array, ...]
Step = Callable[[slice], tuple[Arrays, Arrays]]

FOLDS = True  # whether prediction scales weights to spare a pass of batch normalisation
BLOCK_BYTES = 1 << 28  # temporaries of one block of images; NumPy's version takes what fits a core's cache


def pad(x: Array, win: Window, fill: float, xp: Namespace) -> Array:
    """Return the part of x that the windows cover, with ``fill`` outside the image: (N, C, *extent)."""
    if not win.is_padded:
        return x
    padded = xp.full((*x.shape[:2], *win.extent), fill, dtype=x.dtype, device=device(x))
    into, out_of = win.inside
    return xpx.at(padded, (..., *into)).set(x[(..., *out_of)], copy=None, xp=xp)


def copied(x: Array, xp: Namespace) -> Array:
    """Return x, a view, as memory in its own order where that pays."""
    return x


def window_slices(x: Array, win: Window, fill: float, xp: Namespace) -> list[Array]:
    """Return, for every kernel element, the inputs it meets: K arrays (N, C, *out)."""
    padded = pad(x, win, fill, xp)
    return [padded[(..., *piece)] for piece in win.slices]


def add_slices(parts: Iterable[Array], like: Array, win: Window, xp: Namespace) -> Array:
    """Adjoint of `window_slices`: add each kernel element's part (N, C, *out) to the inputs it met."""
    shape = (like.shape[0], like.shape[1])
    total = xp.zeros((*shape, *win.extent), dtype=like.dtype, device=device(like))
    for part, piece in zip(parts, win.slices, strict=True):
        total = xpx.at(total, (..., *piece)).add(part, copy=None, xp=xp)
    if win.extent == win.size and not any(win.before):
        return total
    into, out_of = win.inside
    dx = xp.zeros((*shape, *win.size), dtype=like.dtype, device=device(like))
    return xpx.at(dx, (..., *out_of)).set(total[(..., *into)], copy=None, xp=xp)


def im2col(x: Array, win: Window, xp: Namespace) -> Array:
    """Lay the windows of x (B, C, *size) out as columns (C·K, B·O)."""
    pieces = [xp.moveaxis(piece, 0, 1) for piece in window_slices(x, win, 0.0, xp)]  # K × (C, B, *out)
    return xp.reshape(xp.stack(pieces, axis=1), (x.shape[1] * win.taps, x.shape[0] * prod(win.out)))


def col2im(cols: Array, batch: int, channels: int, win: Window, xp: Namespace) -> Array:
    """Adjoint of `im2col`: add columns (C·K, B·O) up into images (B, C, *size)."""
    cols = xp.reshape(cols, (channels, win.taps, batch, *win.out))
    parts = (xp.moveaxis(cols[:, k, ...], 0, 1) for k in range(win.taps))  # K × (B, C, *out)
    return add_slices(parts, xp.moveaxis(cols[:, 0, ...], 0, 1), win, xp)


def engine(work: str, x: Array, axes: int | None = None) -> Any:
    """Return a module of the backend's that does a whole op on such arrays, or None: then the op is put together.

    The works are ``convolution``, ``pooled`` (convolution, ReLU and max pooling) and ``norm`` (batch normalisation);
    ``axes`` counts spatial ones.
    """
    return None


def capability(device: Any) -> int | None:
    """Return a GPU's compute capability times 10, such as 90; None where CUDA's kernels do not compute."""
    return None


def half_dtype(xp: Namespace) -> Any:
    """Return bfloat16's dtype where models may compute in it, or None."""
    return getattr(xp, "bfloat16", None)


def takes_half(op: str, x: Array) -> bool:
    """Whether an op of this name computes on such half-precision arrays itself; else it is given float32."""
    return False


def cast(arrays: Sequence[Array], dtype: Any, xp: Namespace) -> list[Array]:
    """Return arrays of a floating dtype, new ones where they were of another."""
    return [array if array.dtype == dtype else xp.astype(array, dtype) for array in arrays]


def rowwise_engine(x: Array, win: Window) -> Any:
    """Return what convolves by rows of the kernel, where that takes less than columns of all of it, or None."""
    return None


def first_max(parts: Sequence[Array], first: Array | None, xp: Namespace) -> tuple[Array, Array]:
    """Return the elementwise maximum of K arrays and the number of the first array that attains it.

    ``first`` (broadcasting to the arrays; 0 if None) is the number to report where all arrays are minus infinity.
    """
    best = parts[0]
    index = xp.zeros(best.shape, dtype=index_dtype(len(parts), xp), device=device(best))
    if first is not None:
        index = index + xp.astype(first, index.dtype)
    for number, part in enumerate(parts[1:], start=1):
        index = xp.where(part > best, xp.full((), number, dtype=index.dtype, device=device(best)), index)
        best = xp.maximum(best, part)
    return (xp.asarray(best, copy=True) if len(parts) == 1 else best), index


def matmul(a: Array, b: Array, xp: Namespace) -> Array:
    """Multiply matrices, or stacks of them (..., M, K) and (..., K, N); a single pair takes the plain 2-D product."""
    if a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0] == 1:
        return xp.matmul(a[0, ...], b[0, ...])[None, ...]
    return xp.matmul(a, b)


def sum_rows(x: Array, xp: Namespace) -> Array:
    """Add up along axis 0, which stays with length 1."""
    return xp.sum(x, axis=0, keepdims=True)


def sum_axes(x: Array, axes: Sequence[int], xp: Namespace) -> Array:
    """Add up along some axes, which stay with length 1."""
    return xp.sum(x, axis=tuple(axes), keepdims=True)


def elementwise(rule: Callable[..., Arrays], arrays: Sequence[Array], xp: Namespace) -> Arrays:
    """Return ``rule(xp, *arrays)``, where each result's element depends on the same element of the arrays alone.

    The rule computes with the namespace that it is given, which may be one of symbols.
    """
    return rule(xp, *arrays)


def relu(x: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return max(x, 0), and where that is above 0."""
    y = xp.maximum(x, xp.zeros((), dtype=x.dtype, device=device(x)))
    return y, y > 0


def clip(x: Array, low: float, high: float, xp: Namespace, factor: float = 1.0, shift: float = 0.0) -> Array:
    """Return ``factor·x + shift`` held within bounds, either of which may be infinite."""
    return xp.clip(x if (factor, shift) == (1.0, 0.0) else x * factor + shift, low, high)


def hard_swish(x: Array, xp: Namespace) -> Array:
    """Return ``x · min(max(x + 3, 0), 6) / 6``."""
    return x * (xp.clip(x + 3.0, 0.0, 6.0) / 6.0)


def mixed(old: Array | None, new: Array, share: float) -> Array | None:
    """Return ``(1 - share)·old + share·new``, or None without an old one."""
    return None if old is None else (1.0 - share) * old + share * new


def add(a: Array, b: Array, xp: Namespace) -> Array:
    """Return a + b, of one shape or of shapes that broadcast."""
    return a + b


def multiply(a: Array, b: Array, xp: Namespace) -> Array:
    """Return a · b, of one shape or of shapes that broadcast."""
    return a * b


def add_bias(y: Array, bias: Array, axis: int, xp: Namespace) -> Array:
    """Add a bias (C,) along an axis of y: in place where the namespace can, so y must be the caller's own."""
    y += xp.reshape(bias, tuple(-1 if i == axis % y.ndim else 1 for i in range(y.ndim)))
    return y


def keep(x: Array, mask: Array, xp: Namespace, scale: float | None = None) -> Array:
    """Return x where the mask is true, times the scale if given, and 0 elsewhere."""
    kept = xp.where(mask, x, xp.zeros((), dtype=x.dtype, device=device(x)))
    return kept if scale is None else kept * scale


def first_max_backward(dy: Array, index: Array, count: int, xp: Namespace) -> Array:
    """Adjoint of `first_max`: each dy in the array that held the maximum, 0 in the others: (count, *dy.shape)."""
    return xp.stack([keep(dy, index == number, xp) for number in range(count)])


def map_blocks(
    step: Step, rows: int, bytes_per_row: int, xp: Namespace, most: int | None = None
) -> tuple[Arrays, Arrays]:
    """Run ``step`` over blocks of rows; join its first results along axis 0 and add its second results in order.

    A block has at most ``most`` rows, if given.
    """
    budget = BLOCK_BYTES if most is None else min(BLOCK_BYTES, most * bytes_per_row)
    results = [step(block) for block in blocks(rows, bytes_per_row, budget)]
    if len(results) == 1:
        return results[0]
    joined = tuple(xp.concat(pieces, axis=0) for pieces in zip(*(pieces for pieces, _ in results), strict=True))
    return joined, sum_in_order([terms for _, terms in results])


def blocks(rows: int, bytes_per_row: int, budget: int, workers: int = 1) -> list[slice]:
    """Cut rows into nearly equal blocks within a budget of bytes each, a multiple of the workers where it can be."""
    most = max(1, budget // max(1, bytes_per_row))
    count = -(-rows // most)
    count = max(1, min(rows, -(-count // workers) * workers))
    edges = [rows * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def sum_in_order(results: list[Arrays]) -> Arrays:
    """Add tuples of arrays elementwise, first to last."""
    totals = results[0]
    for more in results[1:]:
        totals = tuple(total + term for total, term in zip(totals, more, strict=True))
    return totals


def index_dtype(count: int, xp: Namespace) -> Any:
    """Return the dtype that numbers ``count`` things: one byte if that is enough, else four."""
    return xp.uint8 if count <= 256 else xp.int32
