"""The convolution layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers.base import Arrays, Layer, Parameter, Shape
from xpcnn.ops.window import conv_window, ints
from xpcnn.optim.initializers import HeNormal, Initializer, Zeros
from xpcnn.random import Key


@dataclass(frozen=True)
class Conv2D(Layer):
    """Convolve (N, C, H, W) with ``filters`` kernels; see `xpcnn.ops.conv2d` for the options."""

    filters: int
    kernel_size: Any
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = True
    init: Initializer = field(default_factory=HeNormal)

    kind = "conv"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, H, W) -> (filters, OH, OW)."""
        if len(input_shape) != 3:
            raise XpcnnError(f"Conv2D takes images (C, H, W), got the shape {input_shape}.")
        whole("filters", self.filters, 1)
        whole("groups", self.groups, 1)
        if input_shape[0] % self.groups or self.filters % self.groups:
            raise XpcnnError(
                f"Conv2D's groups={self.groups} must divide both the {input_shape[0]} channels of {input_shape} and "
                f"the {self.filters} filters."
            )
        win = conv_window(
            input_shape[1:], self._kernel, stride=self.stride, padding=self.padding, dilation=self.dilation
        )
        return (self.filters, *win.out)

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Weight (filters, C / groups, KH, KW) and bias (filters,)."""
        shape = (self.filters, input_shape[0] // self.groups, *self._kernel)
        fan_in = prod(shape[1:])
        weight = {"weight": Parameter(shape, fan_in, self.init)}
        return weight | ({"bias": Parameter((self.filters,), fan_in, Zeros())} if self.bias else {})

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Convolve a batch."""
        options = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        y, saved = ops.conv2d(x, params["weight"], params.get("bias"), **options)
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and the gradients of weight and bias."""
        dx, dweight, dbias = ops.conv2d_backward(dy, saved, need_dx=need_dx)
        return dx, {"weight": dweight} | ({"bias": dbias} if self.bias else {})

    @property
    def _kernel(self) -> tuple[int, ...]:
        return ints("kernel_size", self.kernel_size, 2, 1)
