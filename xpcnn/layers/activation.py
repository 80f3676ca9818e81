"""Activation layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.layers.base import Arrays, Layer, Shape
from xpcnn.random import Key


@dataclass(frozen=True)
class ReLU(Layer):
    """max(x, 0)."""

    kind = "relu"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape."""
        return input_shape

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Rectify a batch."""
        y, saved = ops.relu(x)
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx."""
        return ops.relu_backward(dy, saved) if need_dx else None, {}
