"""Losses of numbers against numbers, each with the gradient of its first argument."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half
from xpcnn.ops.reduction import check_reduction, reduced, share_of, spread


class SquaredErrorSaved(NamedTuple):
    """What the backward of a squared error needs."""

    difference: Array  # y - t
    reduction: str


@half.forward
def mean_squared_error(
    y: Array, t: Array, *, reduction: str = "mean", xp: Namespace | None = None
) -> tuple[Array, SquaredErrorSaved]:
    """Return ``(y - t)²``, averaged over all elements.

    Parameters
    ----------
    y, t : array
        Outputs and targets, of one shape and floating dtype.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of elements; "none" returns every element's square.

    Returns
    -------
    loss : array () or, with "none", of y's shape
    saved : SquaredErrorSaved
    """
    check_reduction(reduction)
    xp, difference = _difference(y, t, xp)
    squares = difference * difference
    return reduced(squares, reduction, prod(y.shape), xp), SquaredErrorSaved(difference, reduction)


@half.backward
def mean_squared_error_backward(
    saved: SquaredErrorSaved, dy: Array | None = None, *, xp: Namespace | None = None
) -> Array:
    """Return the gradient of y: ``2·(y - t) · dy``, divided as the loss was."""
    difference, reduction = saved
    xp = _check.namespace(xp, {"dy": dy}, difference=difference)
    return spread(2.0 * difference, dy, reduction, prod(difference.shape), tuple(difference.shape), xp)


@half.forward
def half_squared_error(y: Array, t: Array, *, xp: Namespace | None = None) -> tuple[Array, SquaredErrorSaved]:
    """Return ``½·Σ(t - y)²`` of each example, averaged over the batch.

    Parameters
    ----------
    y, t : array (N, ...)
        Outputs and targets, of one shape and floating dtype.

    Returns
    -------
    loss : array ()
    saved : SquaredErrorSaved
    """
    xp, difference = _difference(y, t, xp)
    if not y.ndim:
        raise XpcnnError("y must have a batch axis (N, ...), got the shape ().")
    return xp.sum(difference * difference) * (0.5 * share_of(y.shape[0])), SquaredErrorSaved(difference, "mean")


@half.backward
def half_squared_error_backward(
    saved: SquaredErrorSaved, dy: Array | None = None, *, xp: Namespace | None = None
) -> Array:
    """Return the gradient of y: ``(y - t) · dy / N``."""
    difference, reduction = saved
    xp = _check.namespace(xp, {"dy": dy}, difference=difference)
    return spread(difference, dy, reduction, difference.shape[0], (), xp)


def _difference(y: Array, t: Array, xp: Namespace | None) -> tuple[Namespace, Array]:
    """Return the namespace and ``y - t``, or raise unless they have one shape."""
    xp = _check.namespace(xp, y=y, t=t)
    _check.same_shape("t", t, tuple(y.shape), "the shape of y")
    return xp, y - t
