"""Cross-entropy of yes-or-no targets, computed from logits."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half
from xpcnn.ops.reduction import check_reduction, reduced, spread
from xpcnn.ops.smooth import log_one_plus_exp, logistic


class BinaryCrossEntropySaved(NamedTuple):
    """What `binary_cross_entropy_with_logits_backward` needs."""

    slope: Array  # of each element's loss
    reduction: str


@half.forward
def binary_cross_entropy_with_logits(
    logits: Array,
    targets: Array,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: str = "mean",
    xp: Namespace | None = None,
) -> tuple[Array, BinaryCrossEntropySaved]:
    """Return ``-w·(p·t·log σ(x) + (1 - t)·log(1 - σ(x)))``, averaged over all elements; safe for finite logits.

    Parameters
    ----------
    logits : array
        x, of any shape and floating dtype.
    targets : array of the same shape and dtype
        t, from 0 to 1.
    weight : array, optional
        w, broadcasting to the logits.
    pos_weight : array, optional
        p, which weighs the positive part (above 1 it favours recall); broadcasts to the logits.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of elements.

    Returns
    -------
    loss : array () or, with "none", of the logits' shape
    saved : BinaryCrossEntropySaved

    Raises
    ------
    XpcnnError
        When shapes or dtypes do not fit.
    """
    check_reduction(reduction)
    xp = _check.namespace(xp, {"weight": weight, "pos_weight": pos_weight}, logits=logits, targets=targets)
    shape = tuple(logits.shape)
    _check.same_shape("targets", targets, shape, "one per logit")
    _check_broadcasts(shape, weight=weight, pos_weight=pos_weight)
    positive = targets if pos_weight is None else targets * pos_weight
    losses = positive * log_one_plus_exp(-logits, xp) + (1.0 - targets) * log_one_plus_exp(logits, xp)
    slope = (1.0 - targets) * logistic(logits, xp) - positive * logistic(-logits, xp)
    if weight is not None:
        losses, slope = losses * weight, slope * weight
    return reduced(losses, reduction, prod(shape), xp), BinaryCrossEntropySaved(slope, reduction)


@half.backward
def binary_cross_entropy_with_logits_backward(
    saved: BinaryCrossEntropySaved, dy: Array | None = None, *, xp: Namespace | None = None
) -> Array:
    """Return the gradient of the logits: ``w·((1 - t)·σ(x) - p·t·σ(-x)) · dy``, divided as the loss was."""
    slope, reduction = saved
    xp = _check.namespace(xp, {"dy": dy}, slope=slope)
    dlogits = spread(slope, dy, reduction, prod(slope.shape), tuple(slope.shape), xp)
    return xp.asarray(dlogits, copy=True) if dlogits is slope else dlogits


def _check_broadcasts(shape: tuple[int, ...], **arrays: Array | None) -> None:
    """Raise unless the arrays broadcast to a shape."""
    for name, array in arrays.items():
        if array is None:
            continue
        pairs = zip(reversed(array.shape), reversed(shape), strict=False)
        if array.ndim > len(shape) or any(a not in (1, n) for a, n in pairs):
            raise XpcnnError(f"{name} of shape {tuple(array.shape)} does not broadcast to the logits' {shape}.")
