"""What a layer is: a frozen description that knows its output's shape and has a pure forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import zip_longest
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.optim.initializers import Initializer
from xpcnn.random import Key

Shape = tuple[int, ...]  # of one example, without the batch axis
Arrays = dict[str, Array]  # path -> array


class Parameter(NamedTuple):
    """A parameter's shape, the inputs that one output sums over, and how it starts."""

    shape: Shape
    fan_in: int
    initial: Initializer


class Cost(NamedTuple):
    """What one example costs a layer, and how far one output sees."""

    multiply_adds: int = 0
    columns: int = 0  # numbers that im2col lays out
    span: tuple[float, ...] | None = ()  # input pixels per axis that one output sees; () for one, None for all
    step: tuple[float, ...] = ()  # input pixels between neighbouring outputs; () for one

    def then(self, after: Cost) -> Cost:
        """Return the cost of this and then another; a step apart, each window adds to what is seen.

        V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016; A. Araujo et al.,
        "Computing receptive fields of convolutional neural networks", 2019, equations 1 and 2.
        """
        span, step = self.span, self.step
        if span is None or after.span is None:
            span, step = None, ()
        elif after.span:
            span, step = span or (1.0,) * len(after.span), step or (1.0,) * len(after.span)
            span = tuple(s + (a - 1) * j for s, a, j in zip(span, after.span, step, strict=True))
            step = tuple(j * a for j, a in zip(step, after.step, strict=True))
        return Cost(self.multiply_adds + after.multiply_adds, max(self.columns, after.columns), span, step)

    def beside(self, other: Cost) -> Cost:
        """Return the cost of this and another on the same input: what either sees is seen."""
        seen = None if self.span is None or other.span is None else _larger(self.span, other.span)
        products, columns = self.multiply_adds + other.multiply_adds, max(self.columns, other.columns)
        return Cost(products, columns, seen, _larger(self.step, other.step))


class Placed(NamedTuple):
    """A layer within a network: its path, its input and output shape."""

    path: str
    layer: Layer
    input_shape: Shape
    output_shape: Shape


class Layer(ABC):
    """A layer's configuration. It holds no arrays; parameters and state are given to forward and backward.

    A subclass is a frozen dataclass that defines `output_shape`, `forward` and `backward`, and `parameters` if it
    is trained. ``params`` and ``state`` are dicts from a path, such as ``"weight"``, to an array.
    """

    kind = "layer"  # names a layer inside a container: conv1, relu1, ...
    couples_batch: ClassVar[bool] = False  # whether an example's y depends on the others of its batch
    wide_parameters: ClassVar[bool] = False  # whether its own stay in float32 where others are rounded to bfloat16

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Return one example's output shape, or raise saying which shape does not fit."""

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return a description of each parameter."""
        return {}

    def state(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return a description of each array that is kept but not trained, such as running means."""
        return {}

    @abstractmethod
    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Return ``(y, saved, new_state)`` for a batch x (N, ...); ``key`` names the step's random numbers."""

    @abstractmethod
    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx (None without ``need_dx``) and the gradient of each parameter."""

    def predict(self, params: Arrays, state: Arrays, x: Array) -> Array:
        """Return y without keeping what backward would need; containers let go of it layer by layer."""
        return self.forward(params, state, x)[0]

    def children(self, input_shape: Shape) -> list[Placed]:
        """Return a container's layers with their names as paths."""
        return []

    def cost(self, input_shape: Shape) -> Cost:
        """Return what one example costs; elementwise work counts as nothing."""
        return Cost()

    def initial_parameters(self, key: Key, input_shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
        """Draw initial float64 parameters on the host, each from a stream named by its path."""
        return _draw(self.parameters(input_shape), key)

    def initial_state(self, key: Key, input_shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
        """Make the initial float64 state on the host."""
        return _draw(self.state(input_shape), key)

    def parameter_count(self, input_shape: Shape) -> int:
        """Return how many numbers are trained."""
        return sum(prod(parameter.shape) for parameter in self.parameters(input_shape).values())


class OpLayer(Layer):
    """A layer without parameters: one op, with the layer's fields as its options."""

    op: ClassVar[str]

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape, as elementwise ops do, or raise for options that the op refuses."""
        getattr(ops, self.op)(np.zeros((0, *input_shape)), **options_of(self))
        return input_shape

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the op on a batch."""
        y, saved = getattr(ops, self.op)(x, **self._options)
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx."""
        return getattr(ops, f"{self.op}_backward")(dy, saved) if need_dx else None, {}

    @cached_property
    def _options(self) -> dict[str, Any]:
        """The op's options, looked up once."""
        return options_of(self)


def options_of(layer: Any) -> dict[str, Any]:
    """Return a layer's fields by name."""
    return {field.name: getattr(layer, field.name) for field in fields(layer)}


def leaves(layer: Layer, input_shape: Shape, path: str = "") -> Iterator[Placed]:
    """Yield the layers of a network that hold no others, with their paths and shapes."""
    inside = layer.children(input_shape)
    if not inside:
        yield Placed(path or layer.kind, layer, input_shape, layer.output_shape(input_shape))
    for child in inside:
        yield from leaves(child.layer, child.input_shape, f"{path}/{child.path}" if path else child.path)


def checked_shape(shape: Any) -> Shape:
    """Return one example's shape as plain numbers, or raise unless it is a sequence of whole numbers above 0."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        raise XpcnnError(f"input_shape must be one example's shape such as (1, 28, 28), not {shape!r}.")
    return tuple(whole("input_shape's numbers", n, 1) for n in shape)


def image_shape(layer: Layer, input_shape: Shape, axes: int) -> Shape:
    """Return an image's spatial shape, or raise unless it has as many axes as the layer works on."""
    if len(input_shape) != axes + 1:
        names = ("(C, L)", "(C, H, W)", "(C, D, H, W)")[axes - 1]
        raise XpcnnError(f"{type(layer).__name__} takes images {names}, got the shape {input_shape}.")
    return input_shape[1:]


def _larger(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    """Return the larger number on each axis; no axes are ones."""
    return tuple(max(pair) for pair in zip_longest(a, b, fillvalue=1.0))


def _draw(described: dict[str, Parameter], key: Key) -> dict[str, np.ndarray[Any, Any]]:
    """Draw every array from the stream that its path names."""
    for path, p in described.items():
        if not isinstance(p.initial, Initializer):
            raise XpcnnError(f"the initial values of {path} must be an initializer of xpcnn.optim, not {p.initial!r}.")
    return {path: p.initial.draw(key.child("init", path), p.shape, p.fan_in) for path, p in described.items()}
