"""Dropout; its mask is drawn from the step's key, so it is the same on every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays, Layer, Shape
from xpcnn.ops._check import number
from xpcnn.random import Key


@dataclass(frozen=True)
class Dropout(Layer):
    """In training, set a share ``rate`` of the values to 0 and divide the others by ``1 - rate``."""

    rate: float = 0.5

    kind = "dropout"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape."""
        number("Dropout's rate", self.rate, 0.0, 1.0)
        return input_shape

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Drop values in training; otherwise return the batch itself."""
        if not train:
            return x, None, state
        if key is None:
            raise XpcnnError("Dropout draws a mask in training: forward needs key=xpcnn.random.Key(seed).")
        y, saved = ops.dropout(x, key.child("dropout").mask(self.rate, x), self.rate)
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx."""
        return (dy if saved is None else ops.dropout_backward(dy, saved)) if need_dx else None, {}
