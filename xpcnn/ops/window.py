"""From the options people write (stride, padding, dilation, center) to the geometry of sliding windows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from xpcnn.errors import XpcnnError, whole
from xpcnn.kernels import Window
from xpcnn.ops._check import remembered

Ints = tuple[int, ...]
AXES = {1: "N, C, L", 2: "N, C, H, W", 3: "N, C, D, H, W"}
MODES = ("cross-correlation", "convolution")


def conv_output_size(
    size: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int:
    """Return the number of windows along one axis.

    ``floor((size + before + after - dilation * (kernel - 1) - 1) / stride) + 1`` [1]_; with ``ceil_mode`` the quotient
    is rounded up, and a last window that would start in the padding after the input is dropped, as PyTorch does.

    Parameters
    ----------
    size, kernel : int
        Input pixels and kernel elements along the axis.
    stride, dilation : int
        Pixels from one window to the next, and from one kernel element to the next.
    padding : int or (before, after)
        Pixels added at the two ends.
    ceil_mode : bool
        Round up instead of down (pooling only).

    Returns
    -------
    int
        The number of windows; 0 when the kernel does not fit.

    Raises
    ------
    XpcnnError
        For a number that is not whole or out of range.

    References
    ----------
    .. [1] V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016, relationship 14.
    """
    size, kernel = whole("size", size, 0), whole("kernel", kernel, 1)
    stride, dilation = whole("stride", stride, 1), whole("dilation", dilation, 1)
    ((before, after),) = padding_pairs([padding], (size,), (kernel,), (stride,), (dilation,))
    room = size + before + after - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return max(0, room // stride + 1)
    out = -(-room // stride) + 1  # a window that does not fit still counts if its overhang is below the stride
    return max(0, out - 1 if (out - 1) * stride >= size + before else out)


@remembered
def conv_window(
    size: Ints,
    kernel: Ints,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mode: str = "cross-correlation",
    center: Any = None,
    ceil_mode: bool = False,
) -> Window:
    """Return the windows that the options ask for, or raise saying which sizes do not fit.

    Raises
    ------
    XpcnnError
        For an option out of range, or a kernel larger than the padded input.
    """
    n = len(size)
    strides = ints("stride", stride, n, 1)
    dilations = ints("dilation", dilation, n, 1)
    _check_sizes(size, kernel)
    if mode not in MODES:
        raise XpcnnError(f"mode must be 'cross-correlation' or 'convolution', not {mode!r}.")
    if center is not None:
        if any(map(any, padding_pairs(padding, size, kernel, strides, dilations))) or padding == "same":
            raise XpcnnError(f"center fixes the padding, so padding must be left at 0, not {padding!r}.")
        return _centered(size, kernel, strides, dilations, mode, ints("center", center, n, 0))
    pairs = padding_pairs(padding, size, kernel, strides, dilations)
    out = tuple(
        conv_output_size(*sizes, stride=s, padding=p, dilation=d, ceil_mode=ceil_mode)
        for sizes, s, p, d in zip(zip(size, kernel, strict=True), strides, pairs, dilations, strict=True)
    )
    if any(o < 1 for o in out):
        spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
        padded = tuple(s + sum(p) for s, p in zip(size, pairs, strict=True))
        dilated = f" (dilated to {spans})" if spans != tuple(kernel) else ""
        raise XpcnnError(
            f"the kernel {tuple(kernel)}{dilated} is larger than the padded input {padded} (input {tuple(size)}); "
            f"use a smaller kernel or more padding."
        )
    return Window(tuple(size), tuple(kernel), strides, dilations, tuple(p[0] for p in pairs), out)


@remembered
def transposed_window(
    size: Ints, kernel: Ints, *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, dilation: Any = 1
) -> Window:
    """Return the windows of the convolution that a transposed one of these options is the adjoint of.

    Raises
    ------
    XpcnnError
        For an option out of range, or an output without pixels.
    """
    n = len(size)
    strides, dilations = ints("stride", stride, n, 1), ints("dilation", dilation, n, 1)
    extra = ints("output_padding", output_padding, n, 0)
    _check_sizes(size, kernel)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise XpcnnError(
            f"output_padding {output_padding!r} must be smaller than the stride {strides} or the dilation {dilations}."
        )
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    if padding == "same":
        if any(extra):
            raise XpcnnError("padding 'same' makes size * stride pixels, so output_padding must be left at 0.")
        out = tuple(m * s for m, s in zip(size, strides, strict=True))
        before = tuple(max(0, span - s) // 2 for span, s in zip(spans, strides, strict=True))
    else:
        pairs = padding_pairs(padding, size, kernel, strides, dilations)
        before = tuple(pair[0] for pair in pairs)
        axes = zip(size, strides, pairs, spans, extra, strict=True)
        out = tuple((m - 1) * s - sum(pair) + span + e for m, s, pair, span, e in axes)
    if min(out) < 1:
        raise XpcnnError(
            f"the input {tuple(size)} with kernel {tuple(kernel)}, stride {strides} and padding {padding!r} makes an "
            f"output without pixels, {tuple(out)}; use less padding or a larger kernel."
        )
    return Window(out, tuple(kernel), strides, dilations, before, tuple(size))


def padding_pairs(padding: Any, size: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> list[tuple[int, int]]:
    """Return (before, after) per axis from an int, ints, pairs, ``"valid"`` or ``"same"``."""
    n = len(size)
    if isinstance(padding, str):
        if padding == "valid":
            return [(0, 0)] * n
        if padding == "same":
            return [_same(*axis) for axis in zip(size, kernel, stride, dilation, strict=True)]
        raise XpcnnError(f"padding must be 'valid', 'same' or numbers, not {padding!r}.")
    if _is_int(padding):
        padding = (padding,) * n
    if not isinstance(padding, Sequence) or len(padding) != n:
        raise XpcnnError(f"padding must be one int or {n} entries (ints or (before, after)), not {padding!r}.")
    pairs = [(p, p) if _is_int(p) else p for p in padding]
    for pair in pairs:
        whole = isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_int, pair))
        if not whole or min(pair) < 0:
            raise XpcnnError(
                f"padding must be whole numbers of 0 or more, alone or as (before, after), not {padding!r}."
            )
    return [(operator.index(a), operator.index(b)) for a, b in pairs]


def ints(name: str, value: Any, n: int, least: int) -> Ints:
    """Return n ints from one int or n of them, each at least ``least``."""
    values = (value,) * n if _is_int(value) else value
    whole = isinstance(values, Sequence) and not isinstance(values, str) and all(map(_is_int, values))
    if not whole or len(values) != n or min(values) < least:
        raise XpcnnError(f"{name} must be one int or {n} ints, each at least {least}, not {value!r}.")
    return tuple(map(operator.index, values))


def index_dtype(xp: Any) -> Any:
    """Return the namespace's own integers: int64, but int32 in JAX where its 64-bit types are off."""
    return xp.arange(1).dtype


def _check_sizes(size: Ints, kernel: Ints) -> None:
    """Raise unless there are pixels and kernel elements on every axis."""
    if min(size) < 1:
        raise XpcnnError(f"the input {tuple(size)} has no pixels.")
    if min(kernel) < 1:
        raise XpcnnError(f"the kernel {tuple(kernel)} has no elements.")


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the padding that makes ``ceil(size / stride)`` windows; an odd pixel goes after."""
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2


def _centered(size: Ints, kernel: Ints, stride: Ints, dilation: Ints, mode: str, center: Ints) -> Window:
    """Return windows whose kernel element ``center`` meets input ``o * stride``, while any element meets the image."""
    if any(c >= k for c, k in zip(center, kernel, strict=True)):
        raise XpcnnError(f"center {center} must lie inside the kernel {tuple(kernel)}.")
    if mode == "convolution":  # the flipped kernel's central element
        center = tuple(k - 1 - c for c, k in zip(center, kernel, strict=True))
    before = tuple(c * d for c, d in zip(center, dilation, strict=True))
    out = tuple(map(_rows_in_sight, size, before, stride, dilation))
    return Window(tuple(size), tuple(kernel), stride, dilation, before, out)


def _rows_in_sight(n: int, before: int, stride: int, dilation: int) -> int:
    """Return the number of windows before the first that meets no input, at most n."""
    out = min(n, (n - 1 + before) // stride + 1)
    if dilation > n:  # then the image may lie between two elements
        return next((i for i in range(out) if i * stride % dilation >= n), out)
    return out


def _is_int(value: Any) -> bool:
    """Whether a value is a whole number (NumPy's included), and not a bool or an array."""
    return not isinstance(value, bool) and hasattr(value, "__index__") and not getattr(value, "shape", ())
