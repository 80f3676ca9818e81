"""What activations share: a rule applied to every element, and its slope times dy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.ops import _check

Rule = Callable[..., Array]  # (x, xp, *options) -> array


class ActivationSaved(NamedTuple):
    """What an activation's backward needs."""

    x: Array
    options: tuple[float, ...]


def apply(rule: Rule, x: Array, xp: Namespace | None, *options: float) -> tuple[Array, ActivationSaved]:
    """Return ``rule(x)`` and what its backward needs."""
    xp = _check.namespace(xp, x=x)
    (y,) = kernels.of(xp).elementwise(lambda xp, a: (rule(a, xp, *options),), [x], xp)
    return y, ActivationSaved(x, options)


def derive(slope: Rule, dy: Array, saved: ActivationSaved, xp: Namespace | None) -> Array:
    """Return ``dy · slope(x)``."""
    xp = _check.namespace(xp, dy=dy, x=saved.x)
    _check.same_shape("dy", dy, saved.x.shape, "the shape of y")
    rule = kernels.of(xp).elementwise
    (dx,) = rule(lambda xp, g, a: (g * slope(a, xp, *saved.options),), [dy, saved.x], xp)
    return dx


def pick(condition: Array, a: Array | float, b: Array | float, like: Array, xp: Namespace) -> Array:
    """Return a where the condition holds and b elsewhere; numbers take the dtype of ``like``."""
    a, b = (
        xp.full((), value, dtype=like.dtype, device=device(like)) if isinstance(value, float) else value
        for value in (a, b)
    )
    return xp.where(condition, a, b)
