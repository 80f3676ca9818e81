"""Activations made of straight pieces and exponentials; each takes x of any shape and floating dtype."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.ops import _check, half
from xpcnn.ops.elementwise import ActivationSaved, apply, derive, pick

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


class ReLUSaved(NamedTuple):
    """What `relu_backward` needs."""

    active: Array  # where x was above 0
    kin: Array


@half.forward
def relu(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ReLUSaved]:
    """Rectify: ``y = max(x, 0)``."""
    xp = _check.namespace(xp, x=x)
    y, active = kernels.of(xp).relu(x, xp)
    return y, ReLUSaved(active, _check.kin(y, xp))


@half.backward
def relu_backward(dy: Array, saved: ReLUSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy where the input was above 0, and 0 elsewhere (also at 0)."""
    xp = _check.namespace(xp, dy=dy, x=saved.kin)
    _check.same_shape("dy", dy, saved.active.shape, "the shape of y")
    return kernels.of(xp).keep(dy, saved.active, xp)


@half.forward
def relu6(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Rectify within bounds: ``y = min(max(x, 0), 6)`` (A. Howard et al., "MobileNets", 2017)."""
    return apply(lambda a, xp: xp.clip(a, 0.0, 6.0), x, xp)


@half.backward
def relu6_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy where ``0 < x < 6``, and 0 elsewhere."""
    return derive(lambda a, xp: pick((a > 0) & (a < 6), 1.0, 0.0, a, xp), dy, saved, xp)


@half.forward
def leaky_relu(x: Array, negative_slope: float = 0.01, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Rectify with a leak: ``y = x`` above 0, ``negative_slope · x`` elsewhere (A. Maas et al., 2013)."""
    slope = _check.number("negative_slope", negative_slope, -float("inf"), float("inf"))
    return apply(lambda a, xp, s: pick(a > 0, a, xp.clip(a, None, 0.0) * s, a, xp), x, xp, slope)


@half.backward
def leaky_relu_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy above 0, ``negative_slope · dy`` elsewhere."""
    return derive(lambda a, xp, s: pick(a > 0, 1.0, s, a, xp), dy, saved, xp)


@half.forward
def elu(x: Array, alpha: float = 1.0, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return ``x`` above 0 and ``alpha · (exp(x) - 1)`` elsewhere (D.-A. Clevert et al., 2016, equation 15)."""
    return apply(_elu, x, xp, _check.number("alpha", alpha, -float("inf"), float("inf")), 1.0)


@half.forward
def selu(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return ``λ·elu(x, α)`` with the constants that keep mean 0 and variance 1 (G. Klambauer et al., 2017)."""
    return apply(_elu, x, xp, SELU_ALPHA, SELU_SCALE)


@half.backward
def elu_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: ``scale · dy`` above 0, ``scale · alpha · exp(x) · dy`` elsewhere (the scale is 1 but for selu)."""
    return derive(_elu_slope, dy, saved, xp)


selu_backward = elu_backward


@half.forward
def hard_swish(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return ``x · min(max(x + 3, 0), 6) / 6`` (A. Howard et al., "Searching for MobileNetV3", 2019, section 5.2)."""
    return apply(lambda a, xp: a * (xp.clip(a + 3.0, 0.0, 6.0) / 6.0), x, xp)


@half.backward
def hard_swish_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: 0 up to -3, ``dy · (x / 3 + 1 / 2)`` between, dy from 3 on."""
    return derive(_hard_swish_slope, dy, saved, xp)


def _elu(x: Array, xp: Namespace, alpha: float, scale: float) -> Array:
    return pick(x > 0, scale * x, (scale * alpha) * xp.expm1(xp.clip(x, None, 0.0)), x, xp)


def _elu_slope(x: Array, xp: Namespace, alpha: float, scale: float) -> Array:
    return pick(x > 0, scale, (scale * alpha) * xp.exp(xp.clip(x, None, 0.0)), x, xp)


def _hard_swish_slope(x: Array, xp: Namespace) -> Array:
    between = pick(x < 3, xp.clip(x, -3.0, 3.0) / 3.0 + 0.5, 1.0, x, xp)
    return pick(x <= -3, 0.0, between, x, xp)
