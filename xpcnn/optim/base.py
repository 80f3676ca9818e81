"""What an optimizer is, and how one is made of less.

Most are made of what each step's numbers are, and of a rule for one parameter that is given them. A backend may make
one kernel of the rule, which updates all parameters at once.
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
OptState = dict[str, Params]  # the name of each moment -> one array per parameter that has it
Schedule = Callable[[int], float]
Numbers = tuple[float, ...]
Rule = Callable[..., tuple[Array, ...]]
Groups = list[tuple[Rule, list[str]]]

COMPILED = (  # kinds of rules that an engine for elementwise work has
    *("sgd", "momentum", "nesterov", "sgd_decayed", "momentum_decayed", "nesterov_decayed"),
    *("adagrad", "rmsprop", "rmsprop_decayed", "adam", "adamw", "average"),
)
SPARED = ("bias", "gamma", "beta")  # last parts of paths of parameters that no weight decay shrinks


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
    bare_rule : callable, optional
        The rule, of the same numbers and moments, for the parameters that weight decay spares (see `decays`); without
        it ``rule`` is for all.
    prepare : callable, optional
        ``prepare(grads) -> grads``: what ``update`` does to all gradients before any rule.
    """

    name: str
    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params, int], tuple[Params, OptState]]
    numbers: Callable[[int], Numbers] | None = None
    rule: Rule | None = None
    bare_rule: Rule | None = None
    prepare: Callable[[Params], Params] | None = None

    def groups(self, params: Params) -> Groups:
        """Return which rule updates which parameters: pairs of a rule and paths, in the parameters' order."""
        return [] if self.rule is None else _groups(self.rule, self.bare_rule, params)


def decays(path: str, array: Array) -> bool:
    """Return whether weight decay shrinks a parameter: it spares biases, norms' scales and shifts, and vectors.

    Parameters
    ----------
    path : str
        Such as ``"conv1/weight"``; a last part ``bias``, ``gamma`` or ``beta`` spares the parameter.
    array : array
        The parameter. Fewer than 2 axes spare it and, unless its name is ``weight``, fewer than 2 that are longer
        than 1: a number for each channel (C, 1, 1) is a vector, too.

    References
    ----------
    T. He et al., "Bag of tricks for image classification with convolutional neural networks", 2019, section 3.1.
    """
    name = path.rpartition("/")[2]
    return array.ndim >= 2 and name not in SPARED and (name == "weight" or sum(n > 1 for n in array.shape) >= 2)


def made(
    name: str,
    moments: tuple[str, ...],
    numbers: Callable[[int], Numbers],
    rule: Rule,
    kind: str = "",
    bare: tuple[Rule, str] | None = None,
) -> Optimizer:
    """Return the optimizer of a rule, and perhaps a bare one; a kind is what an engine calls a rule that it has."""
    bare_rule, bare_kind = bare or (None, kind)

    def init(params: Params) -> OptState:
        return {moment: zeros(params) for moment in moments}

    def update(grads: Params, state: OptState, params: Params, step: int) -> tuple[Params, OptState]:
        now = numbers(step)
        parts = [
            _apply(one, now, {path: params[path] for path in paths}, grads, state, kind if one is rule else bare_kind)
            for one, paths in _groups(rule, bare_rule, params)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts, params)

    return Optimizer(name, init, update, numbers, rule, bare_rule)


def keeps_nothing(optimizer: Optimizer) -> bool:
    """Whether an update is known to keep no gradient: those of the optimizers here make new arrays alone."""
    functions = (optimizer.update, optimizer.rule, optimizer.bare_rule or optimizer.rule)
    return all(getattr(one, "__module__", "").startswith(f"{__package__}.") for one in functions)


def rate_of(lr: float | Schedule) -> Schedule:
    """Return a schedule; a number is a constant one."""
    if callable(lr):
        return lambda step: float(lr(step))  # a NumPy scalar would widen float32 parameters
    if isinstance(lr, bool) or not isinstance(lr, Real) or not 0.0 < float(lr) < float("inf"):
        raise XpcnnError(f"lr must be a number above 0 or a schedule step -> lr, not {lr!r}.")
    number = float(lr)
    return lambda step: number


def within(name: str, value: Any, low: float, high: float) -> float:
    """Return a number as a Python float, or raise unless ``low <= value < high``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) < high:
        raise XpcnnError(f"{name} must be a number from {low:g} to below {high:g}, not {value!r}.")
    return float(value)


def zeros(params: Params) -> Params:
    """Return a moment's start for each parameter."""
    return {path: array_namespace(p).zeros_like(p) for path, p in params.items()}


def _groups(rule: Rule, bare_rule: Rule | None, params: Params) -> Groups:
    """Return a rule with the parameters that decay, and the bare rule with those spared; neither without any."""
    if bare_rule is None:
        return [(rule, list(params))]
    paths: dict[bool, list[str]] = {True: [], False: []}
    for path, p in params.items():
        paths[decays(path, p)].append(path)
    return [(one, own) for one, own in ((rule, paths[True]), (bare_rule, paths[False])) if own] or [(rule, [])]


def _joined(parts: list[tuple[Params, OptState]], params: Params) -> tuple[Params, OptState]:
    """Return the results for groups of parameters as one, in the parameters' order."""
    new = {path: p for some, _ in parts for path, p in some.items()}
    moments = {name: {path: m for _, state in parts for path, m in state[name].items()} for name in parts[0][1]}
    return {path: new[path] for path in params}, {
        name: {path: arrays[path] for path in params} for name, arrays in moments.items()
    }


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
