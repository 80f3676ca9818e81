"""What a layer is: a frozen description that knows its output's shape and has a pure forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Array
from xpcnn.optim.initializers import Initializer
from xpcnn.random import Key

Shape = tuple[int, ...]  # of one example, without the batch axis
Arrays = dict[str, Array]  # path -> array


class Parameter(NamedTuple):
    """A parameter's shape, the inputs that one output sums over, and how it starts."""

    shape: Shape
    fan_in: int
    initial: Initializer


class Layer(ABC):
    """A layer's configuration. It holds no arrays; parameters and state are given to forward and backward.

    A subclass is a frozen dataclass that defines `output_shape`, `forward` and `backward`, and `parameters` if it
    is trained. ``params`` and ``state`` are dicts from a path, such as ``"weight"``, to an array.
    """

    kind = "layer"  # names a layer inside a container: conv1, relu1, ...

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

    def initial_parameters(self, key: Key, input_shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
        """Draw initial float64 parameters on the host, each from a stream named by its path."""
        return _draw(self.parameters(input_shape), key)

    def initial_state(self, key: Key, input_shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
        """Make the initial float64 state on the host."""
        return _draw(self.state(input_shape), key)

    def parameter_count(self, input_shape: Shape) -> int:
        """Return how many numbers are trained."""
        return sum(prod(parameter.shape) for parameter in self.parameters(input_shape).values())


def _draw(described: dict[str, Parameter], key: Key) -> dict[str, np.ndarray[Any, Any]]:
    """Draw every array from the stream that its path names."""
    return {path: p.initial.draw(key.child("init", path), p.shape, p.fan_in) for path, p in described.items()}
