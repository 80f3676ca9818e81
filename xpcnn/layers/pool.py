"""The max-pooling layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays, Layer, Shape
from xpcnn.ops.pool import pool_window
from xpcnn.random import Key


@dataclass(frozen=True)
class MaxPool2D(Layer):
    """Take the maximum of each window of (N, C, H, W); see `xpcnn.ops.max_pool2d` for the options."""

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    kind = "pool"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, H, W) -> (C, OH, OW)."""
        if len(input_shape) != 3:
            raise XpcnnError(f"MaxPool2D takes images (C, H, W), got the shape {input_shape}.")
        win = pool_window(input_shape[1:], self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return (input_shape[0], *win.out)

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Pool a batch."""
        options = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "ceil_mode")}
        y, saved = ops.max_pool2d(x, self.kernel_size, **options)
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx."""
        return ops.max_pool2d_backward(dy, saved) if need_dx else None, {}
