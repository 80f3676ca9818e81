"""Transposed convolution in one, two and three dimensions: a convolution's input gradient as an op of its own."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError, whole
from xpcnn.kernels import Window
from xpcnn.ops import _check, half
from xpcnn.ops.conv import column_bytes, conv_backward, conv_forward
from xpcnn.ops.reduction import sum_over
from xpcnn.ops.window import AXES, transposed_window

Arrays = tuple[Array, ...]


class ConvTransposeSaved(NamedTuple):
    """What a transposed convolution's backward needs."""

    x: Array
    weight: Array
    has_bias: bool
    win: Window  # of the convolution whose input is this op's output
    groups: int


@half.forward
def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    xp: Namespace | None = None,
) -> tuple[Array, ConvTransposeSaved]:
    """Spread images by filters: ``y[n, f, i·s + a·d - p, ...] += weight[c, f, a, b] · x[n, c, i, ...]``, plus bias.

    It is the adjoint of `conv2d` with the same weight and options: ``⟨conv2d(u, w), x⟩ = ⟨u, conv_transpose2d(x, w)⟩``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images, of any floating dtype.
    weight : array (C, F / groups, KH, KW)
        Filters.
    bias : array (F,), optional
        Added to every pixel of a filter's output.
    stride, dilation : int or (int, int)
        Pixels between the places of neighbouring inputs, and between kernel elements.
    padding : int, (int, int), ((before, after), (before, after)), "valid" or "same"
        Pixels cut off the output's edges; "same" makes ``H · stride`` rows.
    output_padding : int or (int, int)
        Rows added after the output, fewer than the stride or the dilation: which of the sizes that a strided
        convolution would bring to H is meant.
    groups : int
        The channels are cut into this many groups, each with filters of its own.

    Returns
    -------
    y : array (N, F, OH, OW)
        ``OH = (H - 1)·stride - before - after + dilation·(KH - 1) + output_padding + 1``.
    saved : ConvTransposeSaved

    Raises
    ------
    XpcnnError
        When shapes, dtypes or options do not fit together; the message names both sizes.

    References
    ----------
    V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4.
    """
    return _conv_transpose(2, x, weight, bias, stride, padding, output_padding, dilation, groups, xp)


@half.backward
def conv_transpose2d_backward(
    dy: Array, saved: ConvTransposeSaved, *, need_dx: bool = True, xp: Namespace | None = None
) -> tuple[Array | None, Array, Array | None]:
    """Return ``(dx, dweight, dbias)``: dX is the convolution of dY, dW is that convolution's weight gradient.

    Parameters
    ----------
    dy : array (N, F, OH, OW)
    saved : ConvTransposeSaved
        From the forward call.
    need_dx : bool
        Without it dx is None and the work for it is spared.
    """
    x, weight, has_bias, win, groups = saved
    xp = _check.namespace(xp, dy=dy, weight=weight)
    _check.same_shape("dy", dy, (x.shape[0], weight.shape[1] * groups, *win.size), "the shape of y")
    dx = conv_forward(dy, weight, None, win, groups, xp) if need_dx else None
    _, dweight, _ = conv_backward(x, dy, weight, win, groups, False, xp)
    dbias = xp.reshape(sum_over(dy, (0, *range(2, dy.ndim)), xp), (-1,)) if has_bias else None
    return dx, dweight, dbias


@half.forward
def conv_transpose1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    xp: Namespace | None = None,
) -> tuple[Array, ConvTransposeSaved]:
    """Spread signals (N, C, L) by filters (C, F / groups, K); options as in `conv_transpose2d`."""
    return _conv_transpose(1, x, weight, bias, stride, padding, output_padding, dilation, groups, xp)


@half.forward
def conv_transpose3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    xp: Namespace | None = None,
) -> tuple[Array, ConvTransposeSaved]:
    """Spread volumes (N, C, D, H, W) by filters (C, F / groups, KD, KH, KW); options as in `conv_transpose2d`."""
    return _conv_transpose(3, x, weight, bias, stride, padding, output_padding, dilation, groups, xp)


conv_transpose1d_backward = conv_transpose3d_backward = conv_transpose2d_backward


def _conv_transpose(
    n: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
    xp: Namespace | None,
) -> tuple[Array, ConvTransposeSaved]:
    """Check, place the windows, return Y = col2im(Wᵀ·X) + b, a block of images at a time."""
    xp = _check.namespace(xp, {"bias": bias}, x=x, weight=weight)
    _check_shapes(n, x, weight, bias, groups)
    win = transposed_window(
        x.shape[2:], weight.shape[2:], stride=stride, padding=padding, output_padding=output_padding, dilation=dilation
    )
    k = kernels.of(xp)
    channels, filters = x.shape[1], weight.shape[1] * groups
    w_t = xp.reshape(weight, (groups, channels // groups, weight.shape[1] * win.taps)).mT  # (G, F/G·K, C/G)

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]
        columns = images.shape[0] * prod(win.out)  # B·O, of the inputs
        g = xp.reshape(xp.moveaxis(images, 1, 0), (groups, channels // groups, columns))
        cols = xp.reshape(k.matmul(w_t, g, xp), (filters * win.taps, columns))  # (F·K, B·O)
        y = k.col2im(cols, images.shape[0], filters, win, xp)  # (B, F, *size)
        if bias is not None:
            y = k.add_bias(y, bias, 1, xp)
        return (y,), ()

    (y,), _ = k.map_blocks(block, x.shape[0], column_bytes(x, filters + channels // win.taps, win), xp)
    return y, ConvTransposeSaved(x, weight, bias is not None, win, groups)


def _check_shapes(n: int, x: Array, weight: Array, bias: Array | None, groups: int) -> None:
    """Raise unless images, filters, bias and groups fit together, naming both numbers."""
    _check.rank("x", x, AXES[n])
    _check.rank("weight", weight, AXES[n].replace("N, C", "C, F/groups").replace("D", "KD").replace("L", "K"))
    if x.shape[1] % whole("groups", groups, 1):
        raise XpcnnError(f"groups={groups} must divide x's {x.shape[1]} channels.")
    if weight.shape[0] != x.shape[1]:
        raise XpcnnError(
            f"x has {x.shape[1]} channels (shape {tuple(x.shape)}), but weight of shape {tuple(weight.shape)} takes "
            f"{weight.shape[0]}."
        )
    if bias is not None:
        _check.same_shape("bias", bias, (weight.shape[1] * groups,), "one per filter")
