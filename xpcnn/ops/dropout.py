"""Dropout, with a mask that the caller draws."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import ArrayTypeError, XpcnnError
from xpcnn.ops import _check, half


class DropoutSaved(NamedTuple):
    """What `dropout_backward` needs."""

    mask: Array
    scale: float
    kin: Array
    shape: tuple[int, ...]


@half.forward
def dropout(x: Array, mask: Array, rate: float, *, xp: Namespace | None = None) -> tuple[Array, DropoutSaved]:
    """Keep the values where the mask is true, divided by ``1 - rate``; the others become 0 [1]_.

    Parameters
    ----------
    x : array
        Of any shape and floating dtype.
    mask : array of bool
        True keeps; of x's shape, or broadcasting to it (one value per channel drops whole channels).
    rate : float
        The share of values that the mask drops, from 0 to below 1.

    Returns
    -------
    y : array of x's shape
    saved : DropoutSaved

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
    """
    xp = _check.namespace(xp, x=x)
    if not hasattr(mask, "dtype") or not _check.dtype_name(mask).startswith("bool"):
        raise ArrayTypeError(f"mask must be an array of bool, got {getattr(mask, 'dtype', type(mask).__name__)}.")
    _check.library(x=x, mask=mask)
    shape = tuple(x.shape)
    fits = mask.ndim <= len(shape)
    if not fits or any(m not in (1, n) for m, n in zip(mask.shape, shape[len(shape) - mask.ndim :], strict=True)):
        raise XpcnnError(f"mask of shape {tuple(mask.shape)} does not broadcast to x's shape {shape}.")
    scale = 1.0 / (1.0 - _check.number("rate", rate, 0.0, 1.0))
    mask = xp.broadcast_to(mask, shape)
    return kernels.of(xp).keep(x, mask, xp, scale), DropoutSaved(mask, scale, _check.kin(x, xp), shape)


@half.backward
def dropout_backward(dy: Array, saved: DropoutSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy where the mask kept, divided by ``1 - rate``, and 0 elsewhere."""
    mask, scale, kin, shape = saved
    xp = _check.namespace(xp, dy=dy, x=kin)
    _check.same_shape("dy", dy, shape, "the shape of y")
    return kernels.of(xp).keep(dy, mask, xp, scale)
