"""Where a training step's time goes: by layer and by kernel.

While profiling, the model runs a copy of its network whose layers are timed as they run, neighbours computed together
as one, and the kernels' functions are replaced by timed ones. Otherwise nothing is any different.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from types import FunctionType
from typing import Any

from xpcnn import kernels
from xpcnn.backend import Array, Backend
from xpcnn.layers import Graph, Layer, Sequential
from xpcnn.layers.base import Arrays, Placed, Shape
from xpcnn.layers.container import Named
from xpcnn.layers.fused import fuse
from xpcnn.layers.watched import Wrapped, with_children
from xpcnn.model import Model
from xpcnn.random import Key

PACKAGE = "xpcnn.kernels."
OUTSIDE = ("numpy_cpu", "reference", "memory", "threads", "window", "build", "call", "policy")


@dataclass
class Spent:
    """What one thing took: calls, and seconds within it but outside what else is timed."""

    calls: int = 0
    seconds: float = 0.0
    beside: float = 0.0  # seconds in helper threads, which run at the same time
    products: int = 0  # multiply-adds


class Meter:
    """Adds up the time of nested calls by name, each without those inside it; any thread may call."""

    def __init__(self, backend: Backend) -> None:
        self.spent: dict[tuple[str, str], Spent] = {}
        self._synchronize = backend.synchronize
        self._lock = threading.Lock()
        self._home = threading.get_ident()
        self._here = threading.local()  # .inner: seconds within the calls that are open

    def timed(self, call: Callable[..., Any], *key: str) -> Callable[..., Any]:
        """Return a function that does what ``call`` does and counts under a key of two words."""

        def run(*args: Any, **options: Any) -> Any:
            inner = self._here.__dict__.setdefault("inner", [])
            self._synchronize()
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self._synchronize()
                whole = time.perf_counter() - start
                self._add((key[0], key[1]), whole - inner.pop())
                if inner:
                    inner[-1] += whole

        return run

    def of(self, *key: str) -> Spent:
        """Return what was counted under a key."""
        return self.spent.setdefault((key[0], key[1]), Spent())

    def _add(self, key: tuple[str, str], seconds: float) -> None:
        """Count one call."""
        with self._lock:
            spent = self.of(*key)
            spent.calls += 1
            if threading.get_ident() == self._home:
                spent.seconds += seconds
            else:
                spent.beside += seconds


@dataclass(frozen=True)
class Row:
    """A layer of the network as it runs: one, neighbours computed together, or what a container does itself."""

    path: str
    type: str


@dataclass(frozen=True)
class Profile:
    """The time of what ran: both meters fill as it runs."""

    rows: tuple[Row, ...]  # in the order they run
    layers: Meter  # keys are (a row's path, "forward" or "backward")
    kernels: Meter  # keys are (a function's name, its module)


@contextlib.contextmanager
def profiling(model: Model) -> Iterator[Profile]:
    """Time the model's layers and kernels within the context, on a device waiting for each to end."""
    layers, seam = Meter(model.backend), Meter(model.backend)
    rows: list[Row] = []
    net = model.net
    copy = _copied(net, model.input_shape, "", layers, rows)
    with _timed_kernels(model.backend, seam):
        model.net = copy
        try:
            yield Profile(tuple(rows), layers, seam)
        finally:
            model.net = net


@dataclass(frozen=True)
class _Timed(Wrapped):
    """A layer whose calls are timed; everything else is the layer's own."""

    products: int  # multiply-adds of one image, forward
    meter: Meter

    def children(self, input_shape: Shape) -> list[Placed]:
        """Return the layer's."""
        return self.layer.children(input_shape)

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the layer's."""
        self.meter.of(self.path, "forward").products += self.products and self.products * x.shape[0]
        call = self.meter.timed(self.layer.forward, self.path, "forward")
        found: tuple[Array, Any, Arrays] = call(params, state, x, train=train, key=key)
        return found

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Run the layer's."""
        self.meter.of(self.path, "backward").products += self.products * dy.shape[0] * (1 + need_dx)
        call = self.meter.timed(self.layer.backward, self.path, "backward")
        found: tuple[Array | None, Arrays] = call(params, dy, saved, need_dx=need_dx)
        return found

    def predict(self, params: Arrays, state: Arrays, x: Array) -> Array:
        """Run the layer's."""
        return self.layer.predict(params, state, x)


def _copied(layer: Layer, input_shape: Shape, path: str, meter: Meter, rows: list[Row]) -> Layer:
    """Return a layer timed, with those inside it, and add their rows in the order they run."""
    inside = layer.children(input_shape)
    if type(layer) is Sequential:
        made: Layer = Sequential(*layer.layers, input_shape=layer.input_shape)
        made.__dict__["_steps"] = _chain(layer.layers, inside, path, meter, rows)  # in place of what it would find
    elif type(layer) is Graph:
        made = Graph(layer.nodes, layer.output, layer.input_shape)
        placed = {child.path: child for child in inside}
        made.__dict__["_steps"] = layer.laid(
            lambda chain: _chain(chain, [placed[name] for name, _ in chain], path, meter, rows)
        )
    elif inside and is_dataclass(layer):
        children = iter([_copied(c.layer, c.input_shape, _join(path, c.path), meter, rows) for c in inside])
        made = with_children(layer, children)
    else:
        made, inside = layer, []
    name = path or "net"
    rows.append(Row(name, type(layer).__name__))
    return _Timed(made, name, 0 if inside else layer.cost(input_shape).multiply_adds, meter)


def _chain(
    layers: Named, inside: Sequence[Placed], path: str, meter: Meter, rows: list[Row]
) -> list[tuple[str, Layer]]:
    """Return a chain's steps timed, neighbours that are computed together as one."""
    names = [child.path for child in inside]
    fused = fuse(layers)
    edges = [*(names.index(name) for name, _ in fused), len(names)]
    steps: list[tuple[str, Layer]] = []
    for number, (name, layer) in enumerate(fused):
        together = inside[edges[number] : edges[number + 1]]
        if len(together) == 1:
            child = together[0]
            steps.append((name, _copied(child.layer, child.input_shape, _join(path, name), meter, rows)))
            continue
        label = _join(path, "+".join(child.path for child in together))
        cost = sum(child.layer.cost(child.input_shape).multiply_adds for child in together)
        rows.append(Row(label, type(layer).__name__))
        steps.append((name, _Timed(layer, label, cost, meter)))
    return steps


@contextlib.contextmanager
def _timed_kernels(backend: Backend, meter: Meter) -> Iterator[None]:
    """Replace the functions of the seam, and of the modules behind it that are in use, by timed ones."""
    seam = kernels.of(backend.xp)
    behind = [module for name, module in sys.modules.items() if name.startswith(PACKAGE) and _computes(module)]
    with contextlib.ExitStack() as stack:
        for module in dict.fromkeys([seam, *behind]):
            for name, function in _own(module).items():
                setattr(module, name, meter.timed(function, name, module.__name__.removeprefix(PACKAGE)))
                stack.callback(setattr, module, name, function)
        yield


def _own(module: Any) -> dict[str, Callable[..., Any]]:
    """Return the public functions that a module defines itself."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, FunctionType)}
    return {name: f for name, f in found.items() if not name.startswith("_") and f.__module__ == module.__name__}


def _computes(module: Any) -> bool:
    """Whether a module of the kernels' package is behind the seam: none of its faces, nor what all of them use."""
    return not hasattr(module, "__path__") and module.__name__.rpartition(".")[2] not in OUTSIDE


def _join(path: str, name: str) -> str:
    """Return a child's path."""
    return f"{path}/{name}" if path else name
