"""What every layer of a network gives for a batch, and the gradients that reach it: a copy is run whose layers tell.

In the copy no neighbours are computed together and no normalisation is folded, so that every layer is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from xpcnn.backend import Array
from xpcnn.layers.base import Arrays, Layer, Parameter, Shape, leaves
from xpcnn.random import Key


class Watched(NamedTuple):
    """What was seen of one run forward and backward; by path, in the layers' order."""

    outputs: Arrays  # of every layer that holds no others
    gradients: Arrays  # with respect to these outputs
    dx: Array  # with respect to the batch
    parameters: Arrays  # with respect to the parameters
    y: Array  # the network's output


def outputs(
    net: Layer,
    input_shape: Shape,
    params: Arrays,
    state: Arrays,
    x: Array,
    *,
    train: bool = False,
    key: Key | None = None,
) -> Arrays:
    """Return the output of every layer that holds no others, by path in the layers' order; all are kept at once.

    Parameters
    ----------
    net : Layer
        The network.
    input_shape : tuple of int
        One example's shape.
    params, state : dict
        Arrays by path, as `Layer.forward` takes them.
    x : array (N, *input_shape)
        A batch on the parameters' device.
    train : bool
        Run as in training: batch statistics, dropout.
    key : Key, optional
        Of the step's random numbers.
    """
    seen: Arrays = {}
    _watched(net, input_shape, seen, {}).forward(params, state, x, train=train, key=key)
    return _in_order(net, input_shape, seen)


def gradients(
    net: Layer,
    input_shape: Shape,
    params: Arrays,
    state: Arrays,
    x: Array,
    dy: Callable[[Array], Array],
    *,
    train: bool = False,
    key: Key | None = None,
) -> Watched:
    """Run forward and backward; return every layer's output and the gradient with respect to it.

    Parameters
    ----------
    net, input_shape, params, state, x, train, key
        As in `outputs`.
    dy : callable
        Given the network's output y, returns the gradient with respect to it, from which the others follow.

    Returns
    -------
    Watched
        Outputs and gradients by path in the layers' order; the gradients of batch and parameters; y.
    """
    seen: Arrays = {}
    reached: Arrays = {}
    copy = _watched(net, input_shape, seen, reached)
    y, saved, _ = copy.forward(params, state, x, train=train, key=key)
    dx, of_parameters = copy.backward(params, dy(y), saved)
    outputs, gradients = (_in_order(net, input_shape, found) for found in (seen, reached))
    return Watched(outputs, gradients, dx, of_parameters, y)


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
    """A layer that puts what it returns, and the gradient it is given, under its path."""

    seen: Arrays
    reached: Arrays

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the layer and keep its output."""
        y, saved, new_state = self.layer.forward(params, state, x, train=train, key=key)
        self.seen[self.path] = y
        return y, saved, new_state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Keep the gradient and run the layer's."""
        self.reached[self.path] = dy
        return self.layer.backward(params, dy, saved, need_dx=need_dx)


def with_children(container: Layer, children: Iterator[Layer]) -> Layer:
    """Return a copy of a container, a dataclass, that holds other layers, given in the order of its own."""
    copy: Layer = object.__new__(type(container))
    for field in fields(container):  # type: ignore[arg-type]
        object.__setattr__(copy, field.name, _replaced(getattr(container, field.name), children))
    return copy


def _replaced(value: Any, children: Iterator[Layer]) -> Any:
    """Replace the layers in a container's field, in their order; nothing else is touched."""
    if isinstance(value, Layer):
        return next(children)
    if isinstance(value, tuple | list):
        return type(value)(_replaced(item, children) for item in value)
    return value


def _watched(net: Layer, input_shape: Shape, seen: Arrays, reached: Arrays) -> Layer:
    """Return a network whose layers tell what they return and are given."""
    paths = iter([placed.path for placed in leaves(net, input_shape)])

    def watched(layer: Layer, shape: Shape) -> Layer:
        """Return a layer, or a container with all its layers, watched; paths are given out in their order."""
        inside = layer.children(shape)
        if not inside:
            return _Watched(layer, next(paths), seen, reached)
        children = [watched(child.layer, child.input_shape) for child in inside]
        return with_children(layer, iter(children))

    return watched(net, input_shape)


def _in_order(net: Layer, input_shape: Shape, found: Arrays) -> Arrays:
    """Return arrays in the layers' order."""
    return {placed.path: found[placed.path] for placed in leaves(net, input_shape)}
