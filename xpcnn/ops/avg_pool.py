"""Average pooling in one, two and three dimensions: the mean of shifted slices, and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.kernels import Window
from xpcnn.ops import _check, half
from xpcnn.ops.pool import pool_window, window_starts
from xpcnn.ops.window import AXES, padding_pairs

Pairs = list[tuple[int, int]]  # of padding before and after, one for each axis


class AvgPoolSaved(NamedTuple):
    """What average pooling's backward needs."""

    kin: Array
    shape: tuple[int, int]  # (N, C)
    counts: Array | float | Pairs  # elements that each mean divides by, (*out) or one for all; an engine's is `outside`
    win: Window


@half.forward
def avg_pool2d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, AvgPoolSaved]:
    """Take the mean of each window of each channel.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images, of any floating dtype.
    kernel_size, stride, padding, dilation, ceil_mode, mode, center
        As in `max_pool2d`.
    count_include_pad : bool
        Whether the padding's zeros count. A window's overhang past the padding, in ceil mode, is never counted; with
        ``center``, everything outside the image is padding.

    Returns
    -------
    y : array (N, C, OH, OW)
    saved : AvgPoolSaved

    Raises
    ------
    XpcnnError
        When shapes or options do not fit together.
    """
    options = stride, padding, dilation, ceil_mode, mode, center
    return _avg_pool(2, x, kernel_size, options, count_include_pad, xp)


@half.backward
def avg_pool2d_backward(dy: Array, saved: AvgPoolSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: each dy, divided by its window's count, goes to every input of the window."""
    kin, shape, counts, win = saved
    xp = _check.namespace(xp, dy=dy, x=kin)
    _check.same_shape("dy", dy, (*shape, *win.out), "the shape of y")
    k = kernels.of(xp)
    if isinstance(counts, list):
        return k.engine("pool", dy).avg_backward(dy, win, counts)
    share = dy / counts
    return k.add_slices([share] * win.taps, share, win, xp)


@half.forward
def avg_pool1d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, AvgPoolSaved]:
    """Average-pool signals (N, C, L); options as in `avg_pool2d`."""
    options = stride, padding, dilation, ceil_mode, mode, center
    return _avg_pool(1, x, kernel_size, options, count_include_pad, xp)


@half.forward
def avg_pool3d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, AvgPoolSaved]:
    """Average-pool volumes (N, C, D, H, W); options as in `avg_pool2d`."""
    options = stride, padding, dilation, ceil_mode, mode, center
    return _avg_pool(3, x, kernel_size, options, count_include_pad, xp)


avg_pool1d_backward = avg_pool3d_backward = avg_pool2d_backward


def _avg_pool(
    n: int, x: Array, kernel_size: Any, options: tuple[Any, ...], count_include_pad: bool, xp: Namespace | None
) -> tuple[Array, AvgPoolSaved]:
    """Check, place the windows, divide the sum of the shifted slices in n dimensions."""
    xp = _check.namespace(xp, x=x)
    _check.rank("x", x, AXES[n])
    win = pool_window(tuple(x.shape[2:]), kernel_size, *options)
    outside = [(0, 0)] * n
    if count_include_pad and options[-1] is not None:
        outside = [(before, extent) for before, extent in zip(win.before, win.extent, strict=True)]
    elif count_include_pad:
        outside = list(padding_pairs(options[1], win.size, win.kernel, win.stride, win.dilation))
    k = kernels.of(xp)
    if engine := k.engine("pool", x):
        return engine.avg_forward(x, win, outside), AvgPoolSaved(_check.kin(x, xp), tuple(x.shape[:2]), outside, win)
    first, *others = k.window_slices(x, win, 0.0, xp)
    total = first + others[0] if others else first
    for part in others[1:]:
        total += part  # in place where the namespace can: the sum is this call's own
    counts = _counts(win, outside, x, xp)
    return total / counts, AvgPoolSaved(_check.kin(x, xp), tuple(x.shape[:2]), counts, win)


def _counts(win: Window, outside: Pairs, like: Array, xp: Namespace) -> Array | float:
    """Return how many elements of each window count: those in the image and in the padding given; at least 1."""
    if not win.is_padded:
        return float(win.taps)
    counts = 1
    for axis, (before, after) in enumerate(outside):
        starts, d, k = window_starts(win, axis, like, xp.int32, xp), win.dilation[axis], win.kernel[axis]
        above = xp.clip((win.size[axis] + after - starts + d - 1) // d, 0, k)  # elements before the far edge
        below = xp.clip((-before - starts + d - 1) // d, 0, k)  # of these, elements before the near edge
        counts = counts * (above - below)
    return xp.astype(xp.clip(counts, 1, None), like.dtype)
