"""Optimizers: pairs of pure functions ``init(params)`` and ``update(grads, opt_state, params, step)``."""

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
    """

    name: str
    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params, int], tuple[Params, OptState]]


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

    def init(params: Params) -> OptState:
        return {"velocity": _zeros(params)} if momentum else {}

    def update(grads: Params, state: OptState, params: Params, step: int) -> tuple[Params, OptState]:
        lr_now = rate(step)

        def plain(p: Array, g: Array) -> tuple[Array, ...]:
            return (p - lr_now * g,)

        def heavy(p: Array, g: Array, v: Array) -> tuple[Array, ...]:
            v = momentum * v + g
            return p - lr_now * (g + momentum * v if nesterov else v), v

        name = ("nesterov" if nesterov else "momentum") if momentum else "sgd"
        return _apply(heavy if momentum else plain, params, grads, state, name, (lr_now, momentum))

    return Optimizer("sgd", init, update)


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

    def init(params: Params) -> OptState:
        return {"sum_of_squares": _zeros(params)}

    def update(grads: Params, state: OptState, params: Params, step: int) -> tuple[Params, OptState]:
        lr_now = rate(step)

        def rule(p: Array, g: Array, h: Array) -> tuple[Array, ...]:
            h = h + g * g
            return p - lr_now * g / (_sqrt(h) + eps), h

        return _apply(rule, params, grads, state, "adagrad", (lr_now, eps))

    return Optimizer("adagrad", init, update)


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

    def init(params: Params) -> OptState:
        return {"mean": _zeros(params), "square": _zeros(params)}

    def update(grads: Params, state: OptState, params: Params, step: int) -> tuple[Params, OptState]:
        size = rate(step) / (1 - beta1 ** (step + 1))
        undo = (1 - beta2 ** (step + 1)) ** -0.5

        def rule(p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * (g * g)
            return p - size * m / (undo * _sqrt(v) + eps), m, v

        return _apply(rule, params, grads, state, "adam", (size, beta1, beta2, undo, eps))

    return Optimizer("adam", init, update)


def _apply(
    rule: Callable[..., tuple[Array, ...]],
    params: Params,
    grads: Params,
    state: OptState,
    name: str,
    numbers: tuple[float, ...],
) -> tuple[Params, OptState]:
    """Run ``rule(p, g, *moments) -> (p, *moments)`` on every parameter, or the engine's version of that name."""
    new: Params = {}
    moments: OptState = {name: {} for name in state}
    for path, p in params.items():
        xp = array_namespace(p)
        arrays = [p, grads[path], *(values[path] for values in state.values())]
        alike = all(array.dtype == p.dtype and array.shape == p.shape for array in arrays)
        if alike and (engine := kernels.of(xp).engine("elementwise", p)):
            new[path], *changed = engine.update(name, numbers, *arrays)
        else:
            new[path], *changed = kernels.of(xp).elementwise(rule, arrays, xp)
        for moment, value in zip(state, changed, strict=True):
            moments[moment][path] = value
    return new, moments


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
