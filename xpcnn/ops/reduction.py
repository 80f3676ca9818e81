"""What losses share: how the losses of elements become one number, and dy's way back."""

from __future__ import annotations

from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str) -> None:
    """Raise unless a reduction is known."""
    if reduction not in REDUCTIONS:
        raise XpcnnError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}.")


def share_of(count: int) -> float:
    """Return 1 / count, and NaN for none: the mean of nothing is no number."""
    return 1.0 / count if count else float("nan")


def reduced(losses: Array, reduction: str, count: int, xp: Namespace) -> Array:
    """Return the losses as they are, their sum, or their sum divided by ``count``."""
    if reduction == "none":
        return losses
    total = xp.sum(losses)
    return total * share_of(count) if reduction == "mean" else total


def spread(slope: Array, dy: Array | None, reduction: str, count: int, shape: tuple[int, ...], xp: Namespace) -> Array:
    """Return ``slope`` times the loss's gradient dy (ones if None), shared out as the loss was reduced."""
    if dy is not None:
        _check.same_shape("dy", dy, shape if reduction == "none" else (), "the shape of the loss")
        slope = slope * dy
    return slope * share_of(count) if reduction == "mean" else slope


def sum_over(x: Array, axes: tuple[int, ...], xp: Namespace) -> Array:
    """Add up over axes, which stay with length 1."""
    inner = tuple(axis for axis in axes if axis)
    if inner:
        x = xp.sum(x, axis=inner, keepdims=True)
    return kernels.of(xp).sum_rows(x, xp) if 0 in axes else x


def divided(total: Array, divisor: Array, xp: Namespace) -> Array:
    """Return a quotient that is NaN, without a warning, where the divisor is 0."""
    nan = xp.full((), float("nan"), dtype=divisor.dtype, device=device(divisor))
    return total / xp.where(divisor == 0, nan, divisor)
