"""Max pooling in one, two and three dimensions: the maximum of shifted slices, and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.kernels import Window
from xpcnn.ops import _check, half
from xpcnn.ops.window import AXES, conv_window, index_dtype, ints, padding_pairs


class MaxPoolSaved(NamedTuple):
    """What max pooling's backward needs."""

    kin: Array
    offset: Array  # (N, C, *out): which kernel element held the maximum
    win: Window

    @property
    def indices(self) -> Array:
        """Each maximum's flat position in its unpadded plane (N, C, *out), int64; -1 if its window meets no pixel."""
        xp = _check.namespace(None, x=self.kin)
        rest = xp.astype(self.offset, index_dtype(xp))
        flat = xp.zeros_like(rest)
        inside = rest >= 0
        step = 1
        for axis in reversed(range(len(self.win.size))):
            element, rest = rest % self.win.kernel[axis], rest // self.win.kernel[axis]
            place = window_starts(self.win, axis, self.offset, rest.dtype, xp) + element * self.win.dilation[axis]
            inside = inside & (place >= 0) & (place < self.win.size[axis])
            flat = flat + step * place
            step *= self.win.size[axis]
        return xp.where(inside, flat, xp.full((), -1, dtype=flat.dtype, device=device(flat)))


@half.forward
def max_pool2d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, MaxPoolSaved]:
    """Take the largest value of each window of each channel; on ties the first wins, and NaN spreads to y.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images, float32 or float64.
    kernel_size : int or (int, int)
        The window, in pixels.
    stride : int or (int, int), optional
        Pixels between windows; the kernel's size by default.
    padding : int, (int, int), ((before, after), (before, after)), "valid" or "same"
        Counts as minus infinity, so it never wins; must be smaller than the dilated kernel.
    dilation : int or (int, int)
        Pixels between a window's elements.
    ceil_mode : bool
        Keep a last window that hangs over the padded edge.
    mode, center
        As in `conv2d`: "convolution" meets the inputs in reverse order, ``center`` fixes the padding.

    Returns
    -------
    y : array (N, C, OH, OW)
    saved : MaxPoolSaved
        ``saved.indices`` gives each maximum's flat position in its input plane.

    Raises
    ------
    XpcnnError
        When shapes or options do not fit together.
    """
    return _max_pool(2, x, kernel_size, stride, padding, dilation, ceil_mode, mode, center, xp)


@half.backward
def max_pool2d_backward(dy: Array, saved: MaxPoolSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: each dy goes to the input that was its window's maximum, and to no other."""
    xp = _check.namespace(xp, dy=dy, x=saved.kin)
    _check.same_shape("dy", dy, saved.offset.shape, "the shape of y")
    k = kernels.of(xp)
    if engine := k.engine("pool", dy):
        return engine.max_backward(dy, saved.offset, saved.win)
    parts = (k.keep(dy, saved.offset == tap, xp) for tap in range(saved.win.taps))
    return k.add_slices(parts, dy, saved.win, xp)


@half.forward
def max_pool1d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, MaxPoolSaved]:
    """Max-pool signals (N, C, L); options as in `max_pool2d`."""
    return _max_pool(1, x, kernel_size, stride, padding, dilation, ceil_mode, mode, center, xp)


@half.forward
def max_pool3d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, MaxPoolSaved]:
    """Max-pool volumes (N, C, D, H, W); options as in `max_pool2d`."""
    return _max_pool(3, x, kernel_size, stride, padding, dilation, ceil_mode, mode, center, xp)


max_pool1d_backward = max_pool3d_backward = max_pool2d_backward


def _max_pool(
    n: int,
    x: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    mode: str,
    center: Any,
    xp: Namespace | None,
) -> tuple[Array, MaxPoolSaved]:
    """Check, place the windows, take the maximum of the shifted slices in n dimensions."""
    xp = _check.namespace(xp, x=x)
    _check.rank("x", x, AXES[n])
    win = pool_window(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode, mode, center)
    k, backwards = kernels.of(xp), mode == "convolution"
    if engine := k.engine("pool", x):
        y, offset = engine.max_forward(x, win, backwards)
        return y, MaxPoolSaved(_check.kin(x, xp), offset, win)
    slices = k.window_slices(x, win, -float("inf"), xp)
    first = _first_inside(win, backwards, x, xp) if win.is_padded else None
    y, rank = k.first_max(slices[::-1] if backwards else slices, first, xp)
    return y, MaxPoolSaved(_check.kin(x, xp), win.taps - 1 - rank if backwards else rank, win)


def _first_inside(win: Window, backwards: bool, like: Array, xp: Namespace) -> Array:
    """Return the rank of each window's first element inside the image: where an image of -inf has its maximum."""
    rank, step = 0, 1
    for axis in reversed(range(len(win.size))):
        start, d, last = window_starts(win, axis, like, xp.int32, xp), win.dilation[axis], win.kernel[axis] - 1
        if backwards:
            element = last - (win.size[axis] - 1 - start) // d
        else:
            element = (d - 1 - start) // d  # ceil(-start / d)
        least, most = (xp.full((), bound, dtype=element.dtype, device=device(like)) for bound in (0, last))
        rank = rank + step * xp.minimum(xp.maximum(element, least), most)
        step *= win.kernel[axis]
    return rank  # (*out)


def window_starts(win: Window, axis: int, like: Array, dtype: Any, xp: Namespace) -> Array:
    """Return the input position of each window's first element along one axis, shaped to broadcast over (*out)."""
    starts = xp.arange(win.out[axis], dtype=dtype, device=device(like)) * win.stride[axis] - win.before[axis]
    return xp.reshape(starts, tuple(-1 if a == axis else 1 for a in range(len(win.size))))


@_check.remembered
def pool_window(
    size: tuple[int, ...],
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    mode: str = "cross-correlation",
    center: Any = None,
) -> Window:
    """Return pooling windows; padding must stay below the dilated kernel, so that a window can meet the image."""
    n = len(size)
    kernel = ints("kernel_size", kernel_size, n, 1)
    stride = kernel if stride is None else stride
    if center is None:
        strides, dilations = ints("stride", stride, n, 1), ints("dilation", dilation, n, 1)
        pairs = padding_pairs(padding, tuple(size), kernel, strides, dilations)
        spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
        if any(max(pair) >= span for pair, span in zip(pairs, spans, strict=True)):
            raise XpcnnError(f"padding {padding!r} must be smaller than the (dilated) kernel {spans}.")
    return conv_window(
        tuple(size), kernel, stride=stride, padding=padding, dilation=dilation, mode=mode, center=center,
        ceil_mode=ceil_mode,
    )  # fmt: skip
