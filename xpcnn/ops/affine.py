"""The fully connected layer: y = x·W + b, and its gradient."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half


class AffineSaved(NamedTuple):
    """What `affine_backward` needs."""

    x: Array  # as given, not flattened
    weight: Array
    has_bias: bool


@half.forward
def affine(
    x: Array, weight: Array, bias: Array | None = None, *, xp: Namespace | None = None
) -> tuple[Array, AffineSaved]:
    """Multiply examples by a matrix: ``y = x·W + b``.

    Parameters
    ----------
    x : array (N, in) or (N, ...)
        Examples, float32 or float64; more than two axes are flattened from axis 1.
    weight : array (in, out)
        The matrix; note that PyTorch stores its transpose.
    bias : array (out,), optional
        Added to each row.

    Returns
    -------
    y : array (N, out)
    saved : AffineSaved

    Raises
    ------
    XpcnnError
        When the shapes do not fit, naming both.
    """
    xp = _check.namespace(xp, {"bias": bias}, x=x, weight=weight)
    _check.rank("weight", weight, "in, out")
    features = prod(x.shape[1:])
    if x.ndim < 2 or features != weight.shape[0]:
        raise XpcnnError(
            f"x of shape {tuple(x.shape)} has {features if x.ndim > 1 else 'no'} features per example, but weight of "
            f"shape {tuple(weight.shape)} takes {weight.shape[0]}."
        )
    k = kernels.of(xp)
    y = k.matmul(_rows(x, xp), weight, xp)  # (N, out)
    if bias is not None:
        _check.same_shape("bias", bias, (weight.shape[1],), "one per output")
        y = k.add_bias(y, bias, 1, xp)
    return y, AffineSaved(x, weight, bias is not None)


@half.backward
def affine_backward(
    dy: Array, saved: AffineSaved, *, need_dx: bool = True, xp: Namespace | None = None
) -> tuple[Array | None, Array, Array | None]:
    """Return ``(dx, dweight, dbias)``: dX = dY·Wᵀ, dW = Xᵀ·dY, db = Σ dY.

    Parameters
    ----------
    dy : array (N, out)
    saved : AffineSaved
        From the forward call.
    need_dx : bool
        Without it dx is None and the work for it is spared.
    """
    x, weight, has_bias = saved
    xp = _check.namespace(xp, dy=dy, weight=weight)
    _check.same_shape("dy", dy, (x.shape[0], weight.shape[1]), "the shape of y")
    k = kernels.of(xp)
    dx = xp.reshape(k.matmul(dy, weight.T, xp), x.shape) if need_dx else None
    dbias = k.sum_rows(dy, xp)[0, :] if has_bias else None
    return dx, k.matmul(_rows(x, xp).T, dy, xp), dbias


def _rows(x: Array, xp: Namespace) -> Array:
    """Flatten everything after axis 0: (N, in)."""
    return x if x.ndim == 2 else xp.reshape(x, (x.shape[0], prod(x.shape[1:])))
