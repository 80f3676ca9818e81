"""Layers one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays, Layer, Parameter, Shape
from xpcnn.layers.fused import fuse
from xpcnn.random import Key

Child = Layer | tuple[str, Layer]


@dataclass(frozen=True, init=False)
class Sequential(Layer):
    """Layers one after another; a parameter's path is its layer's name and its own: ``conv1/weight``.

    Parameters
    ----------
    *layers : Layer or (name, Layer)
        Without a name a layer is called by its kind and number: ``conv1, relu1, pool1, affine1, relu2, affine2``.
    input_shape : tuple of int, optional
        One example's shape (C, H, W); the outermost container of a network states it.
    """

    layers: tuple[tuple[str, Layer], ...]
    input_shape: Shape | None

    kind = "block"

    def __init__(self, *layers: Child | Sequence[Child], input_shape: Sequence[int] | None = None) -> None:
        children = layers[0] if len(layers) == 1 and isinstance(layers[0], list) else layers
        object.__setattr__(self, "layers", _named(children))  # type: ignore[arg-type]
        object.__setattr__(self, "input_shape", None if input_shape is None else tuple(input_shape))

    def shapes(self, input_shape: Shape) -> list[tuple[str, Layer, Shape, Shape]]:
        """Return each layer's name, itself, its input and output shape, or raise naming the layer that does not fit."""
        rows = []
        for name, layer in self.layers:
            try:
                output_shape = layer.output_shape(input_shape)
            except XpcnnError as error:
                raise XpcnnError(f"layer {name} does not fit its input {input_shape}: {error}") from None
            rows.append((name, layer, input_shape, output_shape))
            input_shape = output_shape
        return rows

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the last layer's output shape."""
        rows = self.shapes(input_shape)
        return rows[-1][3] if rows else input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return every layer's parameters under ``name/path``."""
        rows = self.shapes(input_shape)
        return {f"{name}/{path}": p for name, layer, shape, _ in rows for path, p in layer.parameters(shape).items()}

    def state(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return every layer's state under ``name/path``."""
        rows = self.shapes(input_shape)
        return {f"{name}/{path}": s for name, layer, shape, _ in rows for path, s in layer.state(shape).items()}

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the layers in order."""
        params_of, state_of = split(params), split(state)
        saved = []
        new_state: Arrays = {}
        for name, layer in self._steps:
            layer_key = None if key is None else key.child(name)
            x, kept, changed = layer.forward(
                params_of.get(name, {}), state_of.get(name, {}), x, train=train, key=layer_key
            )
            saved.append(kept)
            new_state.update({f"{name}/{path}": array for path, array in changed.items()})
        return x, saved, new_state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Run the layers' backward in reverse; without ``need_dx``, stop at the first layer that has parameters."""
        params_of = split(params)
        trained = [number for number, (name, _) in enumerate(self._steps) if name in params_of]
        stop = 0 if need_dx else min(trained, default=len(self._steps))
        grads: Arrays = {}
        dx: Array | None = dy
        for number in range(len(self._steps) - 1, stop - 1, -1):
            name, layer = self._steps[number]
            dx, found = layer.backward(params_of.get(name, {}), dx, saved[number], need_dx=need_dx or number > stop)
            grads.update({f"{name}/{path}": array for path, array in found.items()})
        return dx if need_dx else None, {path: grads[path] for path in params}

    @cached_property
    def _steps(self) -> list[tuple[str, Layer]]:
        """The layers as they run: some neighbours are computed together."""
        return fuse(self.layers)


def split(arrays: Arrays) -> dict[str, Arrays]:
    """Group arrays by the first part of their path."""
    groups: dict[str, Arrays] = {}
    for path, array in arrays.items():
        name, _, rest = path.partition("/")
        groups.setdefault(name, {})[rest] = array
    return groups


def _named(children: Sequence[Child]) -> tuple[tuple[str, Layer], ...]:
    """Return (name, layer) pairs, naming unnamed layers by kind and number, or raise on what is no layer."""
    counts: Counter[str] = Counter()
    named = []
    for child in children:
        if isinstance(child, Layer):
            counts[child.kind] += 1
            child = (f"{child.kind}{counts[child.kind]}", child)
        if not (isinstance(child, tuple) and len(child) == 2 and isinstance(child[1], Layer)):
            raise XpcnnError(f"Sequential takes layers or (name, layer) pairs, got {child!r}.")
        name = child[0]
        if not isinstance(name, str) or not name or "/" in name:
            raise XpcnnError(f"a layer's name must be a word without '/', got {name!r}.")
        named.append((name, child[1]))
    names = [name for name, _ in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise XpcnnError(f"layer names must differ, but {', '.join(twice)} occurs more than once.")
    return tuple(named)
