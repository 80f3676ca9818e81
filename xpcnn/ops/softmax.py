"""Softmax and its logarithm along an axis."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half


class SoftmaxSaved(NamedTuple):
    """What the backward of a softmax needs."""

    p: Array  # softmax(x)
    axis: int


@half.forward
def softmax(x: Array, axis: int = -1, *, xp: Namespace | None = None) -> tuple[Array, SoftmaxSaved]:
    """Return ``p = exp(x - max) / Σ exp(x - max)`` along an axis, for x of any floating dtype and finite values."""
    xp, axis = _checked(x, axis, xp)
    powers = xp.exp(below_max(x, axis, xp))
    p = powers / xp.sum(powers, axis=axis, keepdims=True)
    return xp.asarray(p, copy=True), SoftmaxSaved(p, axis)


@half.backward
def softmax_backward(dy: Array, saved: SoftmaxSaved, *, xp: Namespace | None = None) -> Array:
    """Return ``dx = p · (dy - Σ dy·p)``, the sum along the axis."""
    p, axis = saved
    xp = _check.namespace(xp, dy=dy, p=p)
    _check.same_shape("dy", dy, p.shape, "the shape of y")
    return p * (dy - xp.sum(dy * p, axis=axis, keepdims=True))


@half.forward
def log_softmax(x: Array, axis: int = -1, *, xp: Namespace | None = None) -> tuple[Array, SoftmaxSaved]:
    """Return ``x - max - log Σ exp(x - max)`` along an axis, for x of any floating dtype and finite values."""
    xp, axis = _checked(x, axis, xp)
    shifted = below_max(x, axis, xp)
    powers = xp.exp(shifted)
    total = xp.sum(powers, axis=axis, keepdims=True)
    return shifted - xp.log(total), SoftmaxSaved(powers / total, axis)


@half.backward
def log_softmax_backward(dy: Array, saved: SoftmaxSaved, *, xp: Namespace | None = None) -> Array:
    """Return ``dx = dy - p · Σ dy``, the sum along the axis."""
    p, axis = saved
    xp = _check.namespace(xp, dy=dy, p=p)
    _check.same_shape("dy", dy, p.shape, "the shape of y")
    return dy - p * xp.sum(dy, axis=axis, keepdims=True)


def below_max(x: Array, axis: int, xp: Namespace) -> Array:
    """Return ``x - max`` along an axis; where it lies beyond the dtype's range, the lowest number."""
    half_way = 0.5 * x - 0.5 * xp.max(x, axis=axis, keepdims=True)  # which is in range for any finite x
    lowest = -0.5 * float(xp.finfo(x.dtype).max)
    return xp.where(xp.isinf(half_way), half_way, 2.0 * xp.clip(half_way, lowest, None))


def _checked(x: Array, axis: int, xp: Namespace | None) -> tuple[Namespace, int]:
    """Return the namespace and the axis as a number from 0."""
    xp = _check.namespace(xp, x=x)
    (axis,) = _check.axes_of("axis", (axis,), x.ndim)
    if not x.shape[axis]:
        raise XpcnnError(f"x of shape {tuple(x.shape)} has nothing on axis {axis}.")
    return xp, axis
