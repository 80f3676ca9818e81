"""Optimizers that are rules for single numbers."""

from __future__ import annotations

from collections.abc import Callable

from array_api_compat import array_namespace

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.optim.base import Numbers, Optimizer, Rule, Schedule, made, rate_of, within

ANY = float("inf")


def sgd(
    lr: float | Schedule = 0.01, momentum: float = 0.0, *, nesterov: bool = False, weight_decay: float = 0.0
) -> Optimizer:
    """Stochastic gradient descent: ``v = μ·v + g; p = p - lr·v`` (with Nesterov ``p - lr·(g + μ·v)``).

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule ``step -> lr``.
    momentum : float
        μ in [0, 1).
    nesterov : bool
        Look ahead; needs momentum.
    weight_decay : float
        λ: ``g + λ·p`` takes the gradient's place, but for biases and norms (see `decays`).

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """
    rate = rate_of(lr)
    momentum = within("momentum", momentum, 0.0, 1.0)
    if nesterov and not momentum:
        raise XpcnnError("nesterov needs a momentum above 0.")

    def plain(numbers: Numbers, p: Array, g: Array) -> tuple[Array, ...]:
        (lr_now,) = numbers
        return (p - lr_now * g,)

    def heavy(numbers: Numbers, p: Array, g: Array, v: Array) -> tuple[Array, ...]:
        lr_now, mu = numbers
        v = mu * v + g
        return p - lr_now * (g + mu * v if nesterov else v), v

    if not momentum:
        return _coupled("sgd", (), lambda step: (rate(step),), plain, "sgd", weight_decay)
    kind = "nesterov" if nesterov else "momentum"
    return _coupled("sgd", ("velocity",), lambda step: (rate(step), momentum), heavy, kind, weight_decay)


def adagrad(lr: float | Schedule = 0.01, *, eps: float = 1e-7) -> Optimizer:
    """AdaGrad: ``h = h + g²; p = p - lr·g / (√h + ε)``.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule ``step -> lr``.
    eps : float
        ε, which keeps the first division finite.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011.
    """
    rate = rate_of(lr)
    eps = within("eps", eps, 0.0, ANY)

    def rule(numbers: Numbers, p: Array, g: Array, h: Array) -> tuple[Array, ...]:
        lr_now, small = numbers
        h = h + g * g
        return p - lr_now * g / (_sqrt(h) + small), h

    return made("adagrad", ("sum_of_squares",), lambda step: (rate(step), eps), rule, "adagrad")


def rmsprop(
    lr: float | Schedule = 0.001,
    *,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """RMSProp: ``s = α·s + (1-α)·g²; v = μ·v + g / (√s + ε); p = p - lr·v``.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule ``step -> lr``.
    alpha : float
        α in [0, 1), the decay of the mean of squares.
    eps : float
        ε, which keeps the division finite.
    momentum : float
        μ in [0, 1).
    weight_decay : float
        λ: ``g + λ·p`` takes the gradient's place, but for biases and norms (see `decays`).

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", Coursera: Neural networks for machine learning, 2012.
    """
    rate = rate_of(lr)
    alpha = within("alpha", alpha, 0.0, 1.0)
    eps = within("eps", eps, 0.0, ANY)
    momentum = within("momentum", momentum, 0.0, 1.0)

    def plain(numbers: Numbers, p: Array, g: Array, s: Array) -> tuple[Array, ...]:
        lr_now, share, rest, small = numbers
        s = share * s + rest * (g * g)
        return p - lr_now * g / (_sqrt(s) + small), s

    def heavy(numbers: Numbers, p: Array, g: Array, s: Array, v: Array) -> tuple[Array, ...]:
        lr_now, share, rest, small, mu = numbers
        s = share * s + rest * (g * g)
        v = mu * v + g / (_sqrt(s) + small)
        return p - lr_now * v, s, v

    numbers = (alpha, 1 - alpha, eps)
    if momentum:
        moments = ("square", "velocity")
        return _coupled("rmsprop", moments, lambda step: (rate(step), *numbers, momentum), heavy, "", weight_decay)
    return _coupled("rmsprop", ("square",), lambda step: (rate(step), *numbers), plain, "rmsprop", weight_decay)


def adam(lr: float | Schedule = 0.001, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam: ``m = β₁m + (1-β₁)g; v = β₂v + (1-β₂)g²; p = p - lr·m̂ / (√v̂ + ε)``, m̂ and v̂ corrected for their start.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule ``step -> lr``.
    beta1, beta2 : float
        Decay of the two moments, in [0, 1).
    eps : float
        ε, which keeps the division finite.

    References
    ----------
    D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """
    return made("adam", ("mean", "square"), _adam_numbers(rate_of(lr), beta1, beta2, eps), _adam_rule, "adam")


def adamw(
    lr: float | Schedule = 0.001,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """AdamW: what `adam` does, and ``p - lr·λ·p`` at the same time, which leaves the moments alone.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule ``step -> lr``.
    beta1, beta2 : float
        Decay of the two moments, in [0, 1).
    eps : float
        ε, which keeps the division finite.
    weight_decay : float
        λ, by which all parameters but biases and norms shrink (see `decays`).

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """
    rate = rate_of(lr)
    weight_decay = within("weight_decay", weight_decay, 0.0, ANY)
    of_adam = _adam_numbers(rate, beta1, beta2, eps)

    def rule(numbers: Numbers, p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
        size, b1, rest1, b2, rest2, undo, small, shrink = numbers
        m = b1 * m + rest1 * g
        v = b2 * v + rest2 * (g * g)
        return p - (shrink * p + size * m / (undo * _sqrt(v) + small)), m, v

    moments = ("mean", "square")
    if not weight_decay:
        return made("adamw", moments, of_adam, _adam_rule, "adam")
    bare = _without_last(_adam_rule), "adam"
    return made("adamw", moments, lambda step: (*of_adam(step), rate(step) * weight_decay), rule, "adamw", bare)


def _adam_numbers(rate: Schedule, beta1: float, beta2: float, eps: float) -> Callable[[int], Numbers]:
    """Return the numbers of Adam's rule, which correct the moments for their start."""
    beta1 = within("beta1", beta1, 0.0, 1.0)
    beta2 = within("beta2", beta2, 0.0, 1.0)
    eps = within("eps", eps, 0.0, ANY)

    def numbers(step: int) -> Numbers:
        size = rate(step) / (1 - beta1 ** (step + 1))
        undo = (1 - beta2 ** (step + 1)) ** -0.5
        return size, beta1, 1 - beta1, beta2, 1 - beta2, undo, eps

    return numbers


def _adam_rule(numbers: Numbers, p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
    """Make Adam's step."""
    size, b1, rest1, b2, rest2, undo, small = numbers
    m = b1 * m + rest1 * g
    v = b2 * v + rest2 * (g * g)
    return p - size * m / (undo * _sqrt(v) + small), m, v


def _coupled(
    name: str,
    moments: tuple[str, ...],
    numbers: Callable[[int], Numbers],
    rule: Rule,
    kind: str,
    weight_decay: float,
) -> Optimizer:
    """Return the optimizer of a rule whose gradient gets λ·p added, if λ is above 0; λ is the last number then."""
    weight_decay = within("weight_decay", weight_decay, 0.0, ANY)
    if not weight_decay:
        return made(name, moments, numbers, rule, kind)

    def decayed(numbers: Numbers, p: Array, g: Array, *values: Array) -> tuple[Array, ...]:
        return rule(numbers[:-1], p, g + numbers[-1] * p, *values)

    bare = _without_last(rule), kind
    return made(name, moments, lambda step: (*numbers(step), weight_decay), decayed, f"{kind}_decayed", bare)


def _without_last(rule: Rule) -> Rule:
    """Return a rule that takes a last number which it does not need."""
    return lambda numbers, *arrays: rule(numbers[:-1], *arrays)


def _sqrt(x: Array) -> Array:
    return array_namespace(x).sqrt(x)
