"""Activations made of straight pieces and exponentials; each takes x of any shape and floating dtype."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half
from xpcnn.ops.elementwise import ActivationSaved, apply, derive, pick

INFINITY = float("inf")
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
    xp = _check.namespace(xp, x=x)
    return kernels.of(xp).clip(x, 0.0, 6.0, xp), ActivationSaved(x, ())


@half.backward
def relu6_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy where ``0 < x < 6``, and 0 elsewhere."""
    return derive(lambda a, xp: pick((a > 0) & (a < 6), 1.0, 0.0, a, xp), dy, saved, xp)


@half.forward
def clip(
    x: Array, low: float | None = None, high: float | None = None, *, xp: Namespace | None = None
) -> tuple[Array, ActivationSaved]:
    """Hold x within bounds: ``y = min(max(x, low), high)``, either of which may be None, but not both."""
    xp = _check.namespace(xp, x=x)
    bounds = _bounds(low, high)
    return kernels.of(xp).clip(x, *bounds, xp), ActivationSaved(x, bounds)


@half.backward
def clip_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy where ``low < x < high``, and 0 elsewhere.

    At a bound itself it is 0, as relu's, relu6's and PyTorch's hardtanh's are; PyTorch's clamp passes dy on there.
    """
    return derive(_clip_slope, dy, saved, xp)


@half.forward
def hard_sigmoid(
    x: Array, alpha: float = 1 / 6, beta: float = 0.5, *, xp: Namespace | None = None
) -> tuple[Array, ActivationSaved]:
    """Return ``min(max(alpha·x + beta, 0), 1)``, a sigmoid in straight pieces.

    M. Courbariaux, Y. Bengio, J.-P. David, "BinaryConnect", 2015, equation 3, has a slope of 1/2; the defaults are
    those of A. Howard et al., "Searching for MobileNetV3", 2019, section 5.2.
    """
    xp = _check.namespace(xp, x=x)
    alpha, beta = _check.number("alpha", alpha, -INFINITY, INFINITY), _check.number("beta", beta, -INFINITY, INFINITY)
    return kernels.of(xp).clip(x, 0.0, 1.0, xp, alpha, beta), ActivationSaved(x, (alpha, beta))


@half.backward
def hard_sigmoid_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: ``alpha · dy`` where ``0 < alpha·x + beta < 1``, and 0 elsewhere."""
    return derive(_hard_sigmoid_slope, dy, saved, xp)


@half.forward
def leaky_relu(x: Array, negative_slope: float = 0.01, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Rectify with a leak: ``y = x`` above 0, ``negative_slope · x`` elsewhere (A. Maas et al., 2013)."""
    slope = _check.number("negative_slope", negative_slope, -INFINITY, INFINITY)
    return apply(lambda a, xp, s: pick(a > 0, a, xp.clip(a, None, 0.0) * s, a, xp), x, xp, slope)


@half.backward
def leaky_relu_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: dy above 0, ``negative_slope · dy`` elsewhere."""
    return derive(lambda a, xp, s: pick(a > 0, 1.0, s, a, xp), dy, saved, xp)


@half.forward
def elu(x: Array, alpha: float = 1.0, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return ``x`` above 0 and ``alpha · (exp(x) - 1)`` elsewhere (D.-A. Clevert et al., 2016, equation 15)."""
    return apply(_elu, x, xp, _check.number("alpha", alpha, -INFINITY, INFINITY), 1.0)


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
    xp = _check.namespace(xp, x=x)
    return kernels.of(xp).hard_swish(x, xp), ActivationSaved(x, ())


@half.backward
def hard_swish_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx: 0 up to -3, ``dy · (x / 3 + 1 / 2)`` between, dy from 3 on."""
    return derive(_hard_swish_slope, dy, saved, xp)


def _bounds(low: float | None, high: float | None) -> tuple[float, float]:
    """Return a clip's bounds, infinite where there is none, or raise unless there is one, and they are in order."""
    if low is None and high is None:
        raise XpcnnError("clip needs a bound: low, high or both.")
    below = -INFINITY if low is None else _check.number("low", low, -INFINITY, INFINITY)
    above = INFINITY if high is None else _check.number("high", high, -INFINITY, INFINITY)
    if below > above:
        raise XpcnnError(f"clip's low={below:g} must not be above high={above:g}.")
    return below, above


def _clip_slope(x: Array, xp: Namespace, low: float, high: float) -> Array:
    return pick((x > low) & (x < high), 1.0, 0.0, x, xp)


def _hard_sigmoid_slope(x: Array, xp: Namespace, alpha: float, beta: float) -> Array:
    line = x * alpha + beta
    return pick((line > 0) & (line < 1), alpha, 0.0, x, xp)


def _elu(x: Array, xp: Namespace, alpha: float, scale: float) -> Array:
    return pick(x > 0, scale * x, (scale * alpha) * xp.expm1(xp.clip(x, None, 0.0)), x, xp)


def _elu_slope(x: Array, xp: Namespace, alpha: float, scale: float) -> Array:
    return pick(x > 0, scale, (scale * alpha) * xp.exp(xp.clip(x, None, 0.0)), x, xp)


def _hard_swish_slope(x: Array, xp: Namespace) -> Array:
    between = pick(x < 3, xp.clip(x, -3.0, 3.0) / 3.0 + 0.5, 1.0, x, xp)
    return pick(x <= -3, 0.0, between, x, xp)
