"""Check a backward against central differences of its forward, in float64, on any backend."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Backend, resolve_backend
from xpcnn.errors import XpcnnError
from xpcnn.layers import Layer, leaves
from xpcnn.layers.base import Shape
from xpcnn.random import Key

Host = np.ndarray[Any, Any]
Hosts = dict[str, Host]
Forward = Callable[[Hosts], Host]  # inputs and parameters by name -> y

STEP = 1e-6
TOLERANCE = 1e-6  # of the largest gradient; rounding leaves about 1e-9
SMALLEST = 1e-3  # gradients below this are compared absolutely
TRIES = 5  # other places to look at where a kink is too near
FEW = 32  # pixels: larger images are checked at this size


class GradientCheck(NamedTuple):
    """One gradient's comparison."""

    name: str
    error: float  # largest difference, relative to the largest gradient
    ok: bool


class GradientReport(NamedTuple):
    """All comparisons of a call; true if all are well."""

    checks: tuple[GradientCheck, ...]

    def __bool__(self) -> bool:
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(f"{c.name:<12} {c.error:.1e}  {'ok' if c.ok else 'WRONG'}" for c in self.checks)


def gradcheck(
    what: Layer | Callable[..., Any],
    *inputs: Any,
    backward: Callable[..., Any] | None = None,
    device: str | Backend = "cpu",
    seed: int = 0,
    samples: int = 4,
    batch: int = 4,
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
        For an op: ``(dy, saved) -> gradients`` of the first arrays, or of the only one; found by the name
        ``NAME_backward`` beside the op if not given.
    device : str or Backend
        Where to compute.
    seed : int
        Of random values and directions.
    samples : int
        Elements of each array that are checked one by one; besides, one random direction checks all of them.
    batch : int
        Examples in a layer's batch.
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
    rng = Key(seed).child("gradcheck").generator()
    with backend.context():
        if isinstance(what, Layer):
            arrays, forward, gradients = _layer_calls(what, tuple(*inputs), backend, rng, seed, batch)
        else:
            arrays, forward, gradients = _op_calls(what, inputs, backward or _beside(what), backend, options)
        dy = rng.standard_normal(np.shape(forward(arrays)))
        return GradientReport(tuple(_compare(arrays, forward, gradients(dy), dy, rng, samples)))


def check_layers(
    net: Layer, input_shape: Shape, device: str | Backend = "cpu", seed: int = 0, batch: int = 4
) -> Iterator[tuple[str, Layer, GradientReport]]:
    """Yield path, layer and report for each layer of a network at its own input shape; equal ones are checked once."""
    seen: dict[tuple[Layer, Shape], GradientReport] = {}
    for path, layer, shape, _ in leaves(net, input_shape):
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
    arrays = {path: value + 0.1 * rng.standard_normal(value.shape) for path, value in drawn.items()}
    arrays["input"] = rng.standard_normal((batch, *shape))

    def run(hosts: Hosts) -> tuple[Any, Any, Any]:
        device = {path: backend.asarray(value) for path, value in hosts.items()}
        x = device.pop("input")
        y, saved, _ = layer.forward(device, state, x, train=True, key=key)
        return y, saved, device

    def gradients(dy: Host) -> Hosts:
        _, saved, params = run(arrays)
        dx, found = layer.backward(params, backend.asarray(dy), saved)
        return {path: backend.to_numpy(value) for path, value in (found | {"input": dx}).items()}

    return arrays, lambda hosts: backend.to_numpy(run(hosts)[0]), gradients


def _op_calls(
    op: Callable[..., Any], given: tuple[Any, ...], backward: Callable[..., Any], backend: Backend, options: Any
) -> tuple[Hosts, Forward, Callable[[Host], Hosts]]:
    """Return an op's floating arrays, its forward and its gradients."""
    hosts = dict(zip(_names(op, len(given)), given, strict=True))  # arrays, numbers and None
    arrays = {name: np.array(value, np.float64) for name, value in hosts.items() if _is_float_array(value)}

    if not arrays:
        raise XpcnnError("gradcheck needs at least one NumPy array of floats, whose gradient it can check.")

    def run(changed: Hosts) -> tuple[Any, ...]:
        values = (hosts | changed).values()
        result: tuple[Any, ...] = op(*(backend.asarray(v) if hasattr(v, "dtype") else v for v in values), **options)
        return result

    def gradients(dy: Host) -> Hosts:
        saved = run(arrays)[1]
        is_loss = next(iter(inspect.signature(backward).parameters)) == "saved"
        found = backward(saved, backend.asarray(dy)) if is_loss else backward(backend.asarray(dy), saved)
        several = found if isinstance(found, tuple) else (found,)
        pairs = zip(arrays, several, strict=False)
        return {name: backend.to_numpy(value) for name, value in pairs if value is not None}

    return arrays, lambda changed: backend.to_numpy(run(changed)[0]), gradients


def _compare(
    arrays: Hosts, forward: Forward, gradients: Hosts, dy: Host, rng: np.random.Generator, samples: int
) -> Iterator[GradientCheck]:
    """Compare each gradient along single elements and one direction through all of them."""
    for name, gradient in gradients.items():
        value = arrays[name]
        if gradient.shape != value.shape:
            raise XpcnnError(f"the gradient of {name} has shape {gradient.shape} instead of {value.shape}.")
        scale = max(SMALLEST, float(np.abs(gradient).max(initial=0.0)))
        errors = [0.0]
        for number in range(samples + 1 if value.size else 0):
            errors.append(_error(arrays, name, forward, gradient, dy, rng, number == samples) / scale)
        worst = max(errors) if np.isfinite(errors).all() else float("inf")
        yield GradientCheck(name, worst, worst <= TOLERANCE)


def _error(
    arrays: Hosts, name: str, forward: Forward, gradient: Host, dy: Host, rng: np.random.Generator, everywhere: bool
) -> float:
    """Return the difference along one random direction, or element, where the forward has no kink."""
    for _ in range(TRIES):
        direction = np.zeros(gradient.shape)
        if everywhere:
            direction = rng.standard_normal(gradient.shape) / gradient.size**0.5
        else:
            direction[np.unravel_index(rng.integers(gradient.size), gradient.shape)] = 1.0
        expected = float((gradient * direction).sum())
        wide = _slope(arrays, name, forward, dy, direction, STEP)
        error = abs(wide - expected)
        scale = max(SMALLEST, float(np.abs(gradient).max(initial=0.0)))
        if error <= TOLERANCE * scale:
            return error
        narrow = _slope(arrays, name, forward, dy, direction, STEP / 2)
        if abs(narrow - wide) <= TOLERANCE * scale / 2:  # no kink between: the numbers agree with themselves
            return error
    return error


def _slope(arrays: Hosts, name: str, forward: Forward, dy: Host, direction: Host, step: float) -> float:
    """Return the central difference of Σ dy·y along a direction."""
    above, below = (forward(arrays | {name: arrays[name] + sign * step * direction}) for sign in (1.0, -1.0))
    return float((dy * (above - below)).sum()) / (2.0 * step)


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
