"""Smooth activations, safe for any finite input; each takes x of any shape and floating dtype."""

from __future__ import annotations

import math

from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half
from xpcnn.ops.elementwise import ActivationSaved, apply, derive, pick
from xpcnn.ops.erf import erfc

SATURATED = 40.0  # beyond it the normal density and 1 ± tanh are exactly 0, or 2, in float64
FLAT = 1e3  # exp(-FLAT) is 0
ROOT_2_OVER_PI = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


@half.forward
def sigmoid(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return ``σ(x) = 1 / (1 + exp(-x))``."""
    return apply(logistic, x, xp)


@half.backward
def sigmoid_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return ``dx = dy · σ(x) · σ(-x)``."""
    return derive(lambda a, xp: logistic(a, xp) * logistic(-a, xp), dy, saved, xp)


@half.forward
def tanh(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return the hyperbolic tangent."""
    return apply(lambda a, xp: xp.tanh(a), x, xp)


@half.backward
def tanh_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return ``dx = dy · (1 - tanh²(x))``."""
    return derive(lambda a, xp: (1.0 - xp.tanh(a)) * (1.0 + xp.tanh(a)), dy, saved, xp)


@half.forward
def silu(x: Array, *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return ``x · σ(x)``, also called swish (S. Elfwing et al., 2018)."""
    return apply(lambda a, xp: a * logistic(a, xp), x, xp)


@half.backward
def silu_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return ``dx = dy · σ(x) · (1 + x·σ(-x))``."""
    return derive(_silu_slope, dy, saved, xp)


@half.forward
def softplus(
    x: Array, beta: float = 1.0, threshold: float = 20.0, *, xp: Namespace | None = None
) -> tuple[Array, ActivationSaved]:
    """Return ``log(1 + exp(beta·x)) / beta``, and x itself where ``beta·x`` is above the threshold."""
    if _check.number("beta", beta, 0.0, float("inf")) == 0.0:
        raise XpcnnError("beta must be above 0.")
    return apply(_softplus, x, xp, float(beta), _check.number("threshold", threshold, -float("inf"), float("inf")))


@half.backward
def softplus_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return ``dx = dy · σ(beta·x)``, and dy where ``beta·x`` is above the threshold."""
    return derive(_softplus_slope, dy, saved, xp)


@half.forward
def gelu(x: Array, approximate: str = "none", *, xp: Namespace | None = None) -> tuple[Array, ActivationSaved]:
    """Return ``x · Φ(x)``, Φ the normal distribution function [1]_.

    Parameters
    ----------
    x : array
    approximate : {"none", "tanh"}
        "tanh" takes ``Φ(x) ≈ (1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2``.

    References
    ----------
    .. [1] D. Hendrycks, K. Gimpel, "Gaussian error linear units", 2016, section 2.
    """
    if approximate not in ("none", "tanh"):
        raise XpcnnError(f"approximate must be 'none' or 'tanh', not {approximate!r}.")
    return apply(_gelu, x, xp, float(approximate == "tanh"))


@half.backward
def gelu_backward(dy: Array, saved: ActivationSaved, *, xp: Namespace | None = None) -> Array:
    """Return ``dx = dy · (Φ(x) + x·Φ'(x))``."""
    return derive(_gelu_slope, dy, saved, xp)


def logistic(x: Array, xp: Namespace) -> Array:
    """Return σ(x) by powers of at most 1, so that nothing overflows."""
    power = xp.exp(-xp.abs(x))
    return pick(x >= 0, 1.0, power, x, xp) / (1.0 + power)


def log_one_plus_exp(x: Array, xp: Namespace) -> Array:
    """Return log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    return xp.clip(x, 0.0, None) + xp.log1p(xp.exp(-xp.abs(x)))


def _silu_slope(x: Array, xp: Namespace) -> Array:
    return logistic(x, xp) * (1.0 + x * logistic(-x, xp))


def _softplus(x: Array, xp: Namespace, beta: float, threshold: float) -> Array:
    z = _times(x, beta, xp)
    soft = xp.clip(x, 0.0, None) + xp.log1p(xp.exp(-xp.abs(z))) / beta
    return pick(x > threshold / beta, x, soft, x, xp)


def _softplus_slope(x: Array, xp: Namespace, beta: float, threshold: float) -> Array:
    return pick(x > threshold / beta, 1.0, logistic(_times(x, beta, xp), xp), x, xp)


def _times(x: Array, beta: float, xp: Namespace) -> Array:
    """Return ``beta · x``, within bounds beyond which exp is 0 or not asked for."""
    return beta * xp.clip(x, -FLAT / beta, FLAT / beta)


def _gelu(x: Array, xp: Namespace, by_tanh: float) -> Array:
    return x * (_phi_by_tanh if by_tanh else _phi)(xp.clip(x, -SATURATED, SATURATED), xp)


def _gelu_slope(x: Array, xp: Namespace, by_tanh: float) -> Array:
    a = xp.clip(x, -SATURATED, SATURATED)
    if not by_tanh:
        return _phi(a, xp) + a * (xp.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi))
    t = _tanh_of_cubic(a, xp)
    return 0.5 * (1.0 + t) + (0.5 * ROOT_2_OVER_PI) * a * (1.0 - t) * (1.0 + t) * (1.0 + 3.0 * CUBIC * a * a)


def _phi(x: Array, xp: Namespace) -> Array:
    """Return the normal distribution function: erfc(-x / √2) / 2."""
    tail = 0.5 * erfc(xp.abs(x) * math.sqrt(0.5), xp)
    return pick(x > 0, 1.0 - tail, tail, x, xp)


def _phi_by_tanh(x: Array, xp: Namespace) -> Array:
    return 0.5 * (1.0 + _tanh_of_cubic(x, xp))


def _tanh_of_cubic(x: Array, xp: Namespace) -> Array:
    return xp.tanh(ROOT_2_OVER_PI * (x + CUBIC * x * x * x))
