"""Adding one number per channel to what a product just made."""

from __future__ import annotations

from math import prod

from xpcnn.backend import Array, Namespace
from xpcnn.kernels import reference
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.cuda.fuse import PACK, order_of


def add_bias(y: Array, bias: Array, axis: int, xp: Namespace) -> Array:
    """Add a bias (C,) along an axis of y, in place; y is the caller's own."""
    axis %= y.ndim
    order = order_of(y)
    seen = y if order is None else y.transpose(order)
    names = {str(y.dtype), str(bias.dtype)}
    if not seen.flags.c_contiguous or not names <= set(runtime.NAMES) or (len(names) > 1 and "float64" in names):
        return reference.add_bias(y, bias, axis, xp)
    place = axis if order is None else order.index(axis)
    types = {**runtime.types(y), "REAL_BIAS": runtime.NAMES[str(bias.dtype)]}
    text = runtime.text("bias.cu", **types, INDEX=runtime.index(y))
    blocks = runtime.blocks_for(-(-y.size * y.dtype.itemsize // PACK))
    inner = prod(seen.shape[place + 1 :])
    runtime.launch(text, "add_bias", blocks, seen, runtime.contiguous(bias), y.size, y.shape[axis], inner)
    return y
