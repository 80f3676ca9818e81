"""Optimizers: pairs of pure functions ``init(params)`` and ``update(grads, opt_state, params, step)``.

Those here are made of less: of what each step's numbers are, and of a rule for one parameter that is given them. A
backend may make one kernel of the rule, which updates all parameters at once.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError

Params = dict[str, Array]
OptState = dict[str, Params]  # the name of each moment -> one array per parameter
Schedule = Callable[[int], float]
Numbers = tuple[float, ...]
Rule = Callable[..., tuple[Array, ...]]

COMPILED = ("sgd", "momentum", "nesterov", "adagrad", "adam")  # kinds that an engine for elementwise work has


class Optimizer(NamedTuple):
    """A named pair of pure functions over dicts from path to array.

    Attributes
    ----------
    name : str
        For people and configuration files.
    init : callable
        ``init(params) -> opt_state``, of the parameters' shapes, dtypes and device.
    update : callable
        ``update(grads, opt_state, params, step) -> (new_params, new_opt_state)``; ``step`` counts from 0. Nothing
        given is written to.
    numbers : callable, optional
        ``numbers(step) -> tuple of float``: all that depends on the step, and what is constant, of one length.
    rule : callable, optional
        ``rule(numbers, p, g, *moments) -> (p, *moments)``, elementwise and pure, with the moments in the order of
        ``opt_state``; it may be run on symbols. Only with both can training be recorded as a CUDA graph.
    """

    name: str
    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params, int], tuple[Params, OptState]]
    numbers: Callable[[int], Numbers] | None = None
    rule: Rule | None = None


def sgd(lr: float | Schedule = 0.01, momentum: float = 0.0, *, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent: ``v = μ·v + g; p = p - lr·v`` (with Nesterov ``p - lr·(g + μ·v)``).

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule ``step -> lr``.
    momentum : float
        μ in [0, 1).
    nesterov : bool
        Look ahead; needs momentum.

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """
    rate = _schedule(lr)
    momentum = _within("momentum", momentum, 0.0, 1.0)
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
        return _made("sgd", (), lambda step: (rate(step),), plain)
    kind = "nesterov" if nesterov else "momentum"
    return _made("sgd", ("velocity",), lambda step: (rate(step), momentum), heavy, kind)


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
    rate = _schedule(lr)
    eps = _within("eps", eps, 0.0, float("inf"))

    def rule(numbers: Numbers, p: Array, g: Array, h: Array) -> tuple[Array, ...]:
        lr_now, small = numbers
        h = h + g * g
        return p - lr_now * g / (_sqrt(h) + small), h

    return _made("adagrad", ("sum_of_squares",), lambda step: (rate(step), eps), rule)


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
    rate = _schedule(lr)
    beta1 = _within("beta1", beta1, 0.0, 1.0)
    beta2 = _within("beta2", beta2, 0.0, 1.0)
    eps = _within("eps", eps, 0.0, float("inf"))

    def numbers(step: int) -> Numbers:
        size = rate(step) / (1 - beta1 ** (step + 1))
        undo = (1 - beta2 ** (step + 1)) ** -0.5
        return size, beta1, 1 - beta1, beta2, 1 - beta2, undo, eps

    def rule(numbers: Numbers, p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
        size, b1, rest1, b2, rest2, undo, small = numbers
        m = b1 * m + rest1 * g
        v = b2 * v + rest2 * (g * g)
        return p - size * m / (undo * _sqrt(v) + small), m, v

    return _made("adam", ("mean", "square"), numbers, rule)


def _made(
    name: str, moments: tuple[str, ...], numbers: Callable[[int], Numbers], rule: Rule, kind: str = ""
) -> Optimizer:
    """Return the optimizer of a rule; ``kind`` is what an engine calls the rule if not by the optimizer's name."""

    def init(params: Params) -> OptState:
        return {moment: _zeros(params) for moment in moments}

    def update(grads: Params, state: OptState, params: Params, step: int) -> tuple[Params, OptState]:
        return _apply(rule, numbers(step), params, grads, state, kind or name)

    return Optimizer(name, init, update, numbers, rule)


def _apply(
    rule: Rule, numbers: Numbers, params: Params, grads: Params, state: OptState, kind: str
) -> tuple[Params, OptState]:
    """Run ``rule(numbers, p, g, *moments) -> (p, *moments)`` on all parameters at once, or on one after the other."""
    first = next(iter(params.values()), None)
    if first is not None and (engine := kernels.of(array_namespace(first)).engine("optimizer", first)):
        lists = [[values[path] for path in params] for values in (params, grads, *state.values())]
        if found := engine.update(rule, numbers, *lists[:2], lists[2:]):
            moments = {
                name: dict(zip(params, values, strict=True)) for name, values in zip(state, found[1], strict=True)
            }
            return dict(zip(params, found[0], strict=True)), moments
    new: Params = {}
    changed: OptState = {name: {} for name in state}
    for path, p in params.items():
        new[path], *values = _one(rule, numbers, [p, grads[path], *(arrays[path] for arrays in state.values())], kind)
        for name, value in zip(state, values, strict=True):
            changed[name][path] = value
    return new, changed


def _one(rule: Rule, numbers: Numbers, arrays: list[Array], kind: str) -> tuple[Array, ...]:
    """Run a rule on a parameter, its gradient and moments, or the engine's version of that kind."""
    p = arrays[0]
    xp = array_namespace(p)
    alike = all(array.dtype == p.dtype and array.shape == p.shape for array in arrays)
    if alike and kind in COMPILED and (engine := kernels.of(xp).engine("elementwise", p)):
        return engine.update(kind, numbers, *arrays)
    return kernels.of(xp).elementwise(lambda xp, *parts: rule(numbers, *parts), arrays, xp)


def _schedule(lr: float | Schedule) -> Schedule:
    """Return a schedule; a number is a constant one."""
    if callable(lr):
        return lambda step: float(lr(step))  # a NumPy scalar would widen float32 parameters
    if isinstance(lr, bool) or not isinstance(lr, Real) or not 0.0 < float(lr) < float("inf"):
        raise XpcnnError(f"lr must be a number above 0 or a schedule step -> lr, not {lr!r}.")
    number = float(lr)
    return lambda step: number


def _within(name: str, value: Any, low: float, high: float) -> float:
    """Return a number as a Python float, or raise unless ``low <= value < high``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) < high:
        raise XpcnnError(f"{name} must be a number from {low:g} to below {high:g}, not {value!r}.")
    return float(value)


def _zeros(params: Params) -> Params:
    return {path: array_namespace(p).zeros_like(p) for path, p in params.items()}


def _sqrt(x: Array) -> Array:
    return array_namespace(x).sqrt(x)
