"""What every layer of a network gives for a batch: a copy of the network is run whose layers keep what they return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from xpcnn.backend import Array
from xpcnn.layers.base import Arrays, Layer, Parameter, Shape, leaves
from xpcnn.model import Model
from xpcnn.random import Key


def layer_outputs(model: Model, images: Any) -> dict[str, Array]:
    """Return the output of every layer that holds no others, by path, on the model's device.

    Parameters
    ----------
    model : Model
        Run as it predicts, not as it trains.
    images : array (N, *input_shape)
        As `Model.predict` takes them. Everything is kept at once, so give few.
    """
    x = model.as_input(images)
    seen: dict[str, Array] = {}
    paths = iter([placed.path for placed in leaves(model.net, model.input_shape)])
    with model.backend.context():
        _watched(model.net, model.input_shape, paths, seen).forward(model.parameters(), model.state(), x)
    return {placed.path: seen[placed.path] for placed in leaves(model.net, model.input_shape)}


@dataclass(frozen=True)
class Wrapped(Layer):
    """A layer inside another that has its shapes, parameters and state."""

    layer: Layer
    path: str

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the layer's."""
        return self.layer.output_shape(input_shape)

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return the layer's."""
        return self.layer.parameters(input_shape)

    def state(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return the layer's."""
        return self.layer.state(input_shape)


@dataclass(frozen=True)
class _Watched(Wrapped):
    """A layer that puts what it returns under its path."""

    seen: dict[str, Array]

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the layer and keep its output."""
        y, saved, new_state = self.layer.forward(params, state, x, train=train, key=key)
        self.seen[self.path] = y
        return y, saved, new_state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Run the layer's."""
        return self.layer.backward(params, dy, saved, need_dx=need_dx)


def _watched(layer: Layer, input_shape: Shape, paths: Iterator[str], seen: dict[str, Array]) -> Layer:
    """Return a layer, or a container with all its layers, watched; paths are given out in the order of `leaves`."""
    inside = layer.children(input_shape)
    if not inside:
        return _Watched(layer, next(paths), seen)
    children = iter([_watched(child.layer, child.input_shape, paths, seen) for child in inside])
    copy: Layer = object.__new__(type(layer))
    for field in fields(layer):  # type: ignore[arg-type]
        object.__setattr__(copy, field.name, _replaced(getattr(layer, field.name), children))
    return copy


def _replaced(value: Any, children: Iterator[Layer]) -> Any:
    """Replace the layers in a container's field, in their order; nothing else is touched."""
    if isinstance(value, Layer):
        return next(children)
    if isinstance(value, tuple | list):
        return type(value)(_replaced(item, children) for item in value)
    return value
