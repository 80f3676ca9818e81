"""Check a backward against central differences of its forward, in float64, on any backend."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Backend, resolve_backend
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers import Join, Layer, leaves
from xpcnn.layers.base import Shape, checked_shape
from xpcnn.random import Key

Host = np.ndarray[Any, Any]
Hosts = dict[str, Host]
Forward = Callable[[Hosts], Host]  # inputs and parameters by name -> y

STEPS = (1e-5, 1e-6, 1e-4, 1e-7)  # times the values' size: one of them suits the function's curvature and rounding
TOLERANCE = 1e-6  # of the largest gradient; the best step leaves about 1e-9
SMALLEST = 1e-3  # gradients below this are compared absolutely
TRIES = 5  # other places to look at where a kink is too near


class GradientCheck(NamedTuple):
    """One gradient's comparison; the error is infinite if a gradient is missing, None if an op need not give it."""

    name: str
    error: float | None  # largest difference, relative to the largest gradient
    ok: bool

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.name:<14}{'-':>8}  not given"
        missing = "MISSING" if self.error == float("inf") else "WRONG"
        return f"{self.name:<14}{self.error:>8.1e}  {'ok' if self.ok else missing}"


class GradientReport(NamedTuple):
    """All comparisons of a call; true if all are well."""

    checks: tuple[GradientCheck, ...]

    def __bool__(self) -> bool:
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


def gradcheck(
    what: Layer | Callable[..., Any],
    *inputs: Any,
    backward: Callable[..., Any] | None = None,
    device: str | Backend = "cpu",
    seed: int = 0,
    samples: int = 4,
    batch: int = 4,
    together: bool = False,
    **options: Any,
) -> GradientReport:
    """Compare the gradients that a layer or an op computes with central differences, in float64.

    Parameters
    ----------
    what : Layer or callable
        A layer, of which the gradients of its input and all its parameters are checked in training, or an op
        ``(*arrays, **options) -> (y, saved)``.
    *inputs
        For a layer its input shape, such as ``(3, 8, 8)``; for an op what it takes, with NumPy's arrays. Those of
        integers and bools have no gradient.
    backward : callable, optional
        For an op: ``(dy, saved) -> gradients`` of its first arguments, or of the only one; found by the name
        ``NAME_backward`` beside the op if not given. Arrays that it gives no gradient of are listed as such; a layer
        must give every parameter's.
    device : str or Backend
        Where to compute.
    seed : int
        Of random values and directions.
    samples : int
        Elements of each array that are checked one by one; besides, one random direction checks all of them.
    batch : int
        Examples in a layer's batch.
    together : bool
        Check one direction through all arrays at once instead, which is quick for a whole network.
    **options
        Of the op.

    Returns
    -------
    GradientReport
        True if every gradient is right within 1e-6 of its largest value; prints as a table.

    Raises
    ------
    XpcnnError
        When the backward cannot be found, or gives no gradient that fits.
    """
    backend = resolve_backend(device)
    rng = Key(whole("seed", seed, 0)).child("gradcheck").generator()
    whole("samples", samples, 0)
    with backend.context():
        if isinstance(what, Layer):
            if len(inputs) != 1 or options or backward:
                raise XpcnnError(
                    "gradcheck of a layer takes its input shape, such as (3, 8, 8), and no options of an op."
                )
            shape = checked_shape(inputs[0])
            arrays, forward, gradients = _layer_calls(what, shape, backend, rng, seed, whole("batch", batch, 1))
        else:
            arrays, forward, gradients = _op_calls(what, inputs, backward or _beside(what), backend, options)
        dy = rng.standard_normal(np.shape(forward(arrays)))
        found = gradients(dy)
        _check_fit(arrays, found)
        missing = [name for name in arrays if name not in found]
        if together:
            error = _error(list(found), arrays, forward, found, dy, rng, False)
            checks = [GradientCheck("everything", error, error <= TOLERANCE)]
        else:
            checks = [_compare(name, arrays, forward, found, dy, rng, samples) for name in found]
    is_layer = isinstance(what, Layer)
    absent = [GradientCheck(name, float("inf") if is_layer else None, not is_layer) for name in missing]
    return GradientReport((*checks, *absent))


def check_layers(
    net: Layer, input_shape: Shape, device: str | Backend = "cpu", seed: int = 0, batch: int = 4
) -> Iterator[tuple[str, Layer, GradientReport]]:
    """Yield path, layer and report for each layer of a network at its own input shape; equal ones are checked once.

    A graph's `Join` layers, which have several inputs and no parameters, are left to a check of the whole.
    """
    seen: dict[tuple[Layer, Shape], GradientReport] = {}
    for path, layer, shape, _ in leaves(net, input_shape):
        if isinstance(layer, Join):
            continue
        if (layer, shape) not in seen:
            seen[layer, shape] = gradcheck(layer, shape, device=device, seed=seed, batch=batch)
        yield path, layer, seen[layer, shape]


def _layer_calls(
    layer: Layer, shape: Shape, backend: Backend, rng: np.random.Generator, seed: int, batch: int
) -> tuple[Hosts, Forward, Callable[[Host], Hosts]]:
    """Return a layer's random input and parameters, its forward and its gradients."""
    key = Key(seed)
    state = {path: backend.asarray(value) for path, value in layer.initial_state(key, shape).items()}
    drawn = layer.initial_parameters(key, shape)
    arrays = {path: value + _noise(value, rng) for path, value in drawn.items()}
    arrays["input"] = rng.standard_normal((batch, *shape))

    def run(hosts: Hosts) -> tuple[Any, Any, Any]:
        device = {path: backend.asarray(value) for path, value in hosts.items()}
        x = device.pop("input")
        y, saved, _ = layer.forward(device, state, x, train=True, key=key)
        return y, saved, device

    def gradients(dy: Host) -> Hosts:
        _, saved, params = run(arrays)
        result = layer.backward(params, backend.asarray(dy), saved)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise XpcnnError(f"{type(layer).__name__}.backward must return (dx, {{path: gradient}}).")
        dx, found = result
        every = dict(found) | {"input": dx}
        return {path: backend.to_numpy(value) for path, value in every.items() if value is not None}

    return arrays, lambda hosts: backend.to_numpy(run(hosts)[0]), gradients


def _noise(value: Host, rng: np.random.Generator) -> Host:
    """Return a tenth of a parameter's own spread, or 0.1 where it starts as a constant, as biases do."""
    return np.asarray(0.1 * (float(value.std()) or 1.0) * rng.standard_normal(value.shape))


def _op_calls(
    op: Callable[..., Any], given: tuple[Any, ...], backward: Callable[..., Any], backend: Backend, options: Any
) -> tuple[Hosts, Forward, Callable[[Host], Hosts]]:
    """Return an op's floating arrays, its forward and its gradients."""
    hosts = dict(zip(_names(op, len(given)), given, strict=True))  # arrays, numbers and None
    arrays = {name: np.array(value, np.float64) for name, value in hosts.items() if _is_float_array(value)}
    if not arrays:
        raise XpcnnError("gradcheck needs at least one NumPy array of floats, whose gradient it can check.")
    settings = {name: _uploaded(value, backend) for name, value in options.items()}

    def run(changed: Hosts) -> tuple[Any, ...]:
        result: tuple[Any, ...] = op(*(_uploaded(v, backend) for v in (hosts | changed).values()), **settings)
        return result

    def gradients(dy: Host) -> Hosts:
        saved = run(arrays)[1]
        is_loss = next(iter(inspect.signature(backward).parameters)) == "saved"
        found = backward(saved, backend.asarray(dy)) if is_loss else backward(backend.asarray(dy), saved)
        several = found if isinstance(found, tuple | list) else (found,)
        pairs = zip(hosts, several, strict=False)
        return {name: backend.to_numpy(value) for name, value in pairs if value is not None}

    return arrays, lambda changed: backend.to_numpy(run(changed)[0]), gradients


def _uploaded(value: Any, backend: Backend) -> Any:
    """Return a host array on the device, in float64 if it holds floats; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return backend.asarray(value, "float64" if value.dtype.kind == "f" else None)


def _check_fit(arrays: Hosts, gradients: Hosts) -> None:
    """Raise unless every gradient is one of the arrays' and has its shape."""
    for name, gradient in gradients.items():
        if name not in arrays:
            raise XpcnnError(f"there is a gradient of {name!r}, which is none of {', '.join(arrays)}.")
        if np.shape(gradient) != arrays[name].shape:
            raise XpcnnError(f"the gradient of {name} has shape {np.shape(gradient)} instead of {arrays[name].shape}.")
    if not gradients:
        raise XpcnnError("backward gave no gradient at all.")


def _compare(
    name: str, arrays: Hosts, forward: Forward, gradients: Hosts, dy: Host, rng: np.random.Generator, samples: int
) -> GradientCheck:
    """Compare a gradient along single elements and along one direction through all of them."""
    kinds = [*[True] * samples, False] if arrays[name].size else []
    errors = [_error([name], arrays, forward, gradients, dy, rng, single) for single in kinds]
    worst = max(errors, default=0.0) if np.isfinite(errors).all() else float("nan")
    return GradientCheck(name, worst, worst <= TOLERANCE)


def _error(
    names: list[str],
    arrays: Hosts,
    forward: Forward,
    gradients: Hosts,
    dy: Host,
    rng: np.random.Generator,
    single: bool,
) -> float:
    """Return the difference along a random direction, or one element, relative to the largest gradient.

    A kink within a step makes the slopes to its two sides differ by twice the error that it causes, or more. So where
    they differ by less than the error, the gradient is wrong; else another place is tried.
    """
    error = float("nan")
    scale = max(SMALLEST, *(_size(arrays[name]) * float(np.abs(gradients[name]).max(initial=0.0)) for name in names))
    for _ in range(TRIES):
        ways = {name: _direction(arrays[name], rng, single) for name in names}
        expected = sum(float((gradients[name] * way).sum()) for name, way in ways.items())
        at, found = forward(arrays), []
        for step in STEPS:
            below, above = (
                forward(arrays | {name: arrays[name] + sign * step * way for name, way in ways.items()})
                for sign in (-1.0, 1.0)
            )
            before, after = (float((dy * rise).sum()) / step for rise in (at - below, above - at))
            found.append((abs((before + after) / 2.0 - expected) / scale, abs(after - before) / scale))
            if found[-1][0] <= TOLERANCE:
                return found[-1][0]
        error, bend = min(found)
        if not bend >= error:
            return error
    return error


def _direction(value: Host, rng: np.random.Generator, single: bool) -> Host:
    """Return a random direction of the values' size, along one element or all."""
    if not single:
        return _size(value) * rng.standard_normal(value.shape) / max(1, value.size) ** 0.5
    way = np.zeros(value.shape)
    way[np.unravel_index(rng.integers(value.size), value.shape)] = _size(value)
    return way


def _size(value: Host) -> float:
    """Return the values' typical size, at least 1."""
    return max(1.0, float(np.sqrt(np.mean(value * value)))) if value.size else 1.0


def _beside(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function ``NAME_backward`` of the module that defines an op."""
    name = f"{getattr(op, '__name__', repr(op))}_backward"
    found = getattr(sys.modules.get(getattr(op, "__module__", ""), None), name, None)
    if not callable(found):
        raise XpcnnError(f"gradcheck finds no {name} beside the op; pass backward=.")
    return found


def _is_float_array(value: Any) -> bool:
    """Whether a value is a host array of floating-point numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _names(op: Callable[..., Any], count: int) -> list[str]:
    """Return the names of an op's first parameters."""
    names = list(inspect.signature(op).parameters)[:count]
    return names if len(names) == count else [f"array{number}" for number in range(count)]
