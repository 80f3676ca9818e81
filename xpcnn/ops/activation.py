"""Activations: elementwise functions and their derivatives."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.ops import _check


class ReLUSaved(NamedTuple):
    """What `relu_backward` needs."""

    active: Array  # where x was above 0


def relu(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ReLUSaved]:
    """Rectify: ``y = max(x, 0)``, for x of any shape, float32 or float64."""
    xp = _check.namespace(xp, x=x)
    y = kernels.of(xp).relu(x, xp)
    return y, ReLUSaved(y > 0)


def relu_backward(dy: Array, saved: ReLUSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy where the input was above 0, and 0 elsewhere (also at 0)."""
    xp = _check.namespace(xp, dy=dy)
    _check.same_shape("dy", dy, saved.active.shape, "the shape of y")
    return kernels.of(xp).keep(dy, saved.active, xp)
