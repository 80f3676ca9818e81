"""Depthwise convolution, each channel by itself, as products with banded matrices: no columns, no loop over channels.

A row of a kernel meets a row of an image in ``y[o] = Σ_b w[b]·x[o·s + b·d - p]``: the image's row times a matrix T that
holds the kernel's row in each of its columns, further down by the stride. All rows of all images share T, so that a
channel takes one product for each row of the kernel. T is ``w·S`` and dw is ``dT·Sᵀ`` with a constant S of zeros and
ones, which says where in T each kernel element stands. T's zeros are multiplied too, which matrix products are quick
enough for; but an infinite pixel makes its whole row of outputs NaN.
"""

from __future__ import annotations

from math import prod

from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.kernels import Window
from xpcnn.ops import _check

Arrays = tuple[Array, ...]
LONGEST = 48  # pixels of a row, beyond which multiplying zeros takes longer than laying out columns


def fits(x: Array, win: Window, groups: int) -> bool:
    """Whether a convolution is depthwise, of rows short enough."""
    return groups == x.shape[1] > 1 < win.taps and win.size[-1] <= LONGEST


def forward(x: Array, weight: Array, bias: Array | None, win: Window, groups: int, xp: Namespace) -> Array:
    """Return Y = Σ_a X[a:]·T_a + b over the rows a of the kernel."""
    k = kernels.of(xp)
    channels, repeat = groups, weight.shape[0] // groups  # C, and the filters m of each
    bands = _bands(weight, channels, win, xp)

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]
        first, *others = _rows(images, win, xp)  # (C, O'·B, W)
        y = k.matmul(first, bands[0], xp)  # (C, O'·B, m·OW)
        for part, band in zip(others, bands[1:], strict=True):
            y += k.matmul(part, band, xp)  # in place where the namespace can: y is this block's own
        y = xp.reshape(y, (channels, *win.out[:-1], images.shape[0], repeat, win.out[-1]))
        if bias is not None:
            y += xp.reshape(bias, (channels, *(1,) * len(win.out), repeat, 1))
        y = xp.permute_dims(y, _order(y.ndim, back=True))  # (B, C, m, *out)
        return (xp.reshape(y, (images.shape[0], weight.shape[0], *win.out)),), ()

    (y,), _ = k.map_blocks(block, x.shape[0], _bytes(x, weight, win), xp)
    return y


def backward(
    dy: Array, x: Array, weight: Array, win: Window, groups: int, need_dx: bool, xp: Namespace
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias): dT_a = X[a:]ᵀ·dY, db = Σ dY, dX[a:] += dY·T_aᵀ."""
    k = kernels.of(xp)
    channels, repeat = groups, weight.shape[0] // groups
    bands = [k.copied(band.mT, xp) for band in _bands(weight, channels, win, xp)] if need_dx else []

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        images = x[rows, ...]
        batch = images.shape[0]
        g = xp.reshape(dy[rows, ...], (batch, channels, repeat, *win.out))
        dbias = xp.sum(g, axis=(0, *range(3, g.ndim)))
        g = k.copied(xp.permute_dims(g, _order(g.ndim)), xp)  # (C, *out', B, m, OW)
        g = xp.reshape(g, (channels, prod(win.out[:-1]) * batch, repeat * win.out[-1]))
        sums = xp.stack([k.matmul(part.mT, g, xp) for part in _rows(images, win, xp)]), dbias  # dT (R, C, W, m·OW)
        if not need_dx:
            return (), sums
        lines = _lines(win, batch)
        parts = (xp.reshape(k.matmul(g, band, xp), (channels, 1, *lines.out)) for band in bands)
        dx = k.add_slices(parts, g[:, None, ...], lines, xp)[:, 0, ...]  # (C, *size', B, W)
        return (xp.moveaxis(dx, -2, 0),), sums

    dx, (dt, dbias) = k.map_blocks(block, x.shape[0], _bytes(x, weight, win), xp)
    dt = xp.reshape(dt, (*dt.shape[:3], repeat, win.out[-1]))  # (R, C, W, m, OW)
    dt = xp.permute_dims(dt, (1, 3, 0, 2, 4))
    dt = xp.reshape(dt, (channels, prod(weight.shape[2:-1]) * repeat, win.size[-1] * win.out[-1]))
    dweight = xp.reshape(k.matmul(dt, _places(win, x, xp).T, xp), weight.shape)
    return dx[0] if need_dx else None, dweight, xp.reshape(dbias, (weight.shape[0],))


def _rows(images: Array, win: Window, xp: Namespace) -> list[Array]:
    """Return for each row of the kernel the images' rows that it meets: (C, O'·B, W)."""
    k = kernels.of(xp)
    channels, last = images.shape[1], images.ndim - 1
    lines = _lines(win, images.shape[0])
    x = k.copied(xp.permute_dims(images, (1, *range(2, last), 0, last)), xp)  # (C, *size', B, W)
    parts = k.window_slices(x[:, None, ...], lines, 0.0, xp)
    if max(win.stride[:-1], default=1) > 1:
        parts = [k.copied(part, xp) for part in parts]
    return [xp.reshape(part, (channels, prod(lines.out[:-1]), win.size[-1])) for part in parts]


def _lines(win: Window, batch: int) -> Window:
    """Return the windows of whole rows: over (*size', B, W), with a kernel that has its last axis no more."""
    fields = (win.size, batch, win.size[-1]), (win.kernel, 1, 1), (win.stride, 1, 1), (win.dilation, 1, 1)
    more = (win.before, 0, 0), (win.out, batch, win.size[-1])
    return Window(*((*values[:-1], images, row) for values, images, row in (*fields, *more)))


def _order(ndim: int, back: bool = False) -> tuple[int, ...]:
    """Return the axes that bring (B, C, m, *out', OW) to (C, *out', B, m, OW), or those that bring it back."""
    last = ndim - 1
    return (last - 2, 0, last - 1, *range(1, last - 2), last) if back else (1, *range(3, last), 0, 2, last)


def _bands(weight: Array, channels: int, win: Window, xp: Namespace) -> list[Array]:
    """Return T of each row of the kernel: (C, W, m·OW)."""
    repeat, lines = weight.shape[0] // channels, win.taps // win.kernel[-1]
    w = xp.reshape(weight, (channels, repeat * lines, win.kernel[-1]))  # a stack of small products wakes no threads
    t = kernels.of(xp).matmul(w, _places(win, weight, xp), xp)
    t = xp.reshape(t, (channels, repeat, lines, win.size[-1], win.out[-1]))
    t = xp.permute_dims(t, (2, 0, 3, 1, 4))  # (R, C, W, m, OW)
    return [xp.reshape(t[a, ...], (channels, win.size[-1], repeat * win.out[-1])) for a in range(lines)]


def _places(win: Window, like: Array, xp: Namespace) -> Array:
    """Return S (KW, W·OW): 1 where a kernel element joins an input of a row and an output, 0 elsewhere."""
    element, pixel, output = (
        xp.arange(count, dtype=xp.int32, device=device(like)) for count in (win.kernel[-1], win.size[-1], win.out[-1])
    )
    met = output * win.stride[-1] + (element * win.dilation[-1] - win.before[-1])[:, None, None]  # (KW, 1, OW)
    return xp.reshape(xp.astype(pixel[:, None] == met, like.dtype), (win.kernel[-1], win.size[-1] * win.out[-1]))


def _bytes(x: Array, weight: Array, win: Window) -> int:
    """Bytes that one image's rows and products take."""
    numbers = 2 * (x.shape[1] * prod(win.size) + weight.shape[0] * prod(win.out))
    return numbers * (8 if _check.dtype_name(x) == "float64" else 4)
