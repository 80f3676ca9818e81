"""Convolution in one, two and three dimensions: columns of windows, one matrix product, and its gradient."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError, whole
from xpcnn.kernels import Window
from xpcnn.ops import _check, depthwise, half, pointwise
from xpcnn.ops.window import AXES, conv_window

Arrays = tuple[Array, ...]


class ConvSaved(NamedTuple):
    """What a convolution's backward needs."""

    x: Array
    weight: Array
    has_bias: bool
    win: Window
    groups: int
    flipped: bool


def conv_forward(x: Array, weight: Array, bias: Array | None, win: Window, groups: int, xp: Namespace) -> Array:
    """Return Y = W·im2col(X) + b, a block of images at a time: (N, C, *size) -> (N, F, *out)."""
    k = kernels.of(xp)
    if x.shape[1] and (engine := k.engine("convolution", x, len(win.size))):
        return engine.forward(x, weight, bias, win, groups)
    if way := _shortcut(x, win, groups, xp):
        return way.forward(x, weight, bias, win, groups, xp)
    channels, filters = x.shape[1], weight.shape[0]
    w = xp.reshape(weight, (groups, filters // groups, weight.shape[1] * win.taps))  # (G, F/G, C/G·K)

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]  # (B, C, *size)
        columns = images.shape[0] * prod(win.out)  # B·O
        cols = xp.reshape(k.im2col(images, win, xp), (groups, channels // groups * win.taps, columns))
        y = xp.reshape(k.matmul(w, cols, xp), (filters, columns))  # (F, B·O)
        if bias is not None:
            y = k.add_bias(y, bias, 0, xp)
        return (xp.moveaxis(xp.reshape(y, (filters, images.shape[0], *win.out)), 0, 1),), ()  # (B, F, *out)

    (y,), _ = k.map_blocks(block, x.shape[0], column_bytes(x, channels + filters // win.taps, win), xp)
    return y


def conv_backward(
    dy: Array, x: Array, weight: Array, win: Window, groups: int, need_dx: bool, xp: Namespace
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias): dW = dY·im2col(X)ᵀ, db = Σ dY, dX = col2im(Wᵀ·dY)."""
    k = kernels.of(xp)
    if x.shape[1] and (engine := k.engine("convolution", x, len(win.size))):
        return engine.backward(dy, x, weight, win, groups, need_dx)
    if way := _shortcut(x, win, groups, xp):
        return way.backward(dy, x, weight, win, groups, need_dx, xp)
    channels, filters = x.shape[1], weight.shape[0]
    w_t = xp.reshape(weight, (groups, filters // groups, weight.shape[1] * win.taps)).mT  # (G, C/G·K, F/G)

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]
        batch, columns = images.shape[0], images.shape[0] * prod(win.out)
        cols = xp.reshape(k.im2col(images, win, xp), (groups, channels // groups * win.taps, columns))
        g = xp.reshape(xp.moveaxis(dy[rows, ...], 1, 0), (groups, filters // groups, columns))  # (G, F/G, B·O)
        sums = k.matmul(g, cols.mT, xp), xp.sum(g, axis=-1)  # dW (G, F/G, C/G·K), db (G, F/G)
        if not need_dx:
            return (), sums
        dcols = xp.reshape(k.matmul(w_t, g, xp), (channels * win.taps, columns))  # (C·K, B·O)
        return (k.col2im(dcols, batch, channels, win, xp),), sums

    dx, (dweight, dbias) = k.map_blocks(block, x.shape[0], column_bytes(x, 2 * channels + filters // win.taps, win), xp)
    return dx[0] if need_dx else None, xp.reshape(dweight, weight.shape), xp.reshape(dbias, (filters,))


def _shortcut(x: Array, win: Window, groups: int, xp: Namespace) -> Any:
    """Return the module that convolves such images with fewer copies than columns take, or None."""
    if pointwise.fits(win):
        return pointwise
    if depthwise.fits(x, win, groups):
        return depthwise
    return kernels.of(xp).rowwise_engine(x, win)


@half.forward
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, ConvSaved]:
    """Convolve images with filters: ``y[n, f, i, j] = bias[f] + Σ weight[f, c, a, b] · x[n, c, i·s + a·d - p, ...]``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images, float32 or float64.
    weight : array (F, C / groups, KH, KW)
        Filters.
    bias : array (F,), optional
        Added to every pixel of a filter's output.
    stride, dilation : int or (int, int)
        Pixels between windows, and between kernel elements within one.
    padding : int, (int, int), ((before, after), (before, after)), "valid" or "same"
        Zeros around the image; "same" makes ``ceil(H / stride)`` rows.
    groups : int
        The channels are cut into this many groups, each with filters of its own.
    mode : {"cross-correlation", "convolution"}
        "convolution" flips the kernel on both axes.
    center : (int, int), optional
        The kernel's central element, which then meets input ``i · stride``; it fixes the padding, and an output row
        exists while any of its inputs lies in the image and ``i < H``.

    Returns
    -------
    y : array (N, F, OH, OW)
    saved : ConvSaved
        What `conv2d_backward` needs.

    Raises
    ------
    XpcnnError
        When shapes, dtypes or options do not fit together; the message names both sizes.

    References
    ----------
    K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural networks for document processing", 2006.
    """
    return _conv(2, x, weight, bias, stride, padding, dilation, groups, mode, center, xp)


@half.backward
def conv2d_backward(
    dy: Array, saved: ConvSaved, *, need_dx: bool = True, xp: Namespace | None = None
) -> tuple[Array | None, Array, Array | None]:
    """Return the gradients ``(dx, dweight, dbias)`` of `conv2d`.

    Parameters
    ----------
    dy : array (N, F, OH, OW)
        The loss's gradient with respect to y.
    saved : ConvSaved
        From the forward call.
    need_dx : bool
        Without it dx is None and the work for it is spared (a network's first layer).
    """
    xp = _check.namespace(xp, dy=dy, weight=saved.weight)
    expected = (saved.x.shape[0], saved.weight.shape[0], *saved.win.out)
    _check.same_shape("dy", dy, expected, "the shape of y")
    images = (saved.x.shape[0], saved.groups * saved.weight.shape[1], *saved.win.size)
    _check.same_shape("saved.x", saved.x, images, "the images that were convolved")
    dx, dweight, dbias = conv_backward(dy, saved.x, saved.weight, saved.win, saved.groups, need_dx, xp)
    if saved.flipped:
        dweight = _flip(dweight, xp)
    return dx, dweight, dbias if saved.has_bias else None


@half.forward
def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, ConvSaved]:
    """Convolve signals (N, C, L) with filters (F, C / groups, K); options as in `conv2d`."""
    return _conv(1, x, weight, bias, stride, padding, dilation, groups, mode, center, xp)


@half.forward
def conv3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "cross-correlation",
    center: Any = None,
    xp: Namespace | None = None,
) -> tuple[Array, ConvSaved]:
    """Convolve volumes (N, C, D, H, W) with filters (F, C / groups, KD, KH, KW); options as in `conv2d`."""
    return _conv(3, x, weight, bias, stride, padding, dilation, groups, mode, center, xp)


conv1d_backward = conv3d_backward = conv2d_backward


def _conv(
    n: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    mode: str,
    center: Any,
    xp: Namespace | None,
) -> tuple[Array, ConvSaved]:
    """Check, place the windows, convolve in n dimensions."""
    xp = _check.namespace(xp, {"bias": bias}, x=x, weight=weight)
    check_shapes(n, x, weight, bias, groups)
    win = conv_window(
        x.shape[2:], weight.shape[2:], stride=stride, padding=padding, dilation=dilation, mode=mode, center=center
    )
    flipped = mode == "convolution"
    if flipped:
        weight = _flip(weight, xp)
    y = conv_forward(x, weight, bias, win, groups, xp)
    return y, ConvSaved(x, weight, bias is not None, win, groups, flipped)


def check_shapes(n: int, x: Array, weight: Array, bias: Array | None, groups: int) -> None:
    """Raise unless images, filters, bias and groups fit together, naming both numbers."""
    _check.rank("x", x, AXES[n])
    _check.rank("weight", weight, AXES[n].replace("N, C", "F, C/groups").replace("D", "KD").replace("L", "K"))
    whole("groups", groups, 1)
    channels, filters = x.shape[1], weight.shape[0]
    if channels % groups or filters % groups or not filters:
        raise XpcnnError(f"groups={groups} must divide both x's {channels} channels and the {filters} filters.")
    if weight.shape[1] != channels // groups:
        raise XpcnnError(
            f"x has {channels} channels (shape {tuple(x.shape)}), but weight of shape {tuple(weight.shape)} with "
            f"groups={groups} takes {weight.shape[1] * groups}."
        )
    if bias is not None:
        _check.same_shape("bias", bias, (filters,), "one per filter")


def _flip(weight: Array, xp: Namespace) -> Array:
    """Reverse a kernel's spatial axes."""
    return xp.flip(weight, axis=tuple(range(2, weight.ndim)))


def column_bytes(x: Array, channels: int, win: Window) -> int:
    """Bytes that one image's columns take, with ``channels`` counting everything laid out like them."""
    return channels * win.taps * prod(win.out) * (8 if _check.dtype_name(x) == "float64" else 4)
