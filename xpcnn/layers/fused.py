"""Neighbouring layers that are cheaper to compute together; nobody writes these, `Sequential` finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.layers.activation import ReLU, ReLU6
from xpcnn.layers.base import Arrays, Layer, Shape
from xpcnn.layers.conv import Conv2D
from xpcnn.layers.norm import BatchNorm
from xpcnn.layers.pool import MaxPool2D
from xpcnn.ops.conv_pool import pays
from xpcnn.random import Key


@dataclass(frozen=True)
class ConvReLUPool(Layer):
    """`Conv2D`, `ReLU` and `MaxPool2D` as one op where the filters are small, else one after another."""

    conv: Conv2D
    relu: ReLU
    pool: MaxPool2D

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, H, W) -> (filters, PH, PW)."""
        return self.pool.output_shape(self.conv.output_shape(input_shape))

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the three layers."""
        weight, bias = params["weight"], params.get("bias")
        if pays(x, weight, self.pool.kernel_size):
            options = {"stride": self.conv.stride, "padding": self.conv.padding, "pool_size": self.pool.kernel_size}
            y, saved = ops.conv2d_relu_max_pool2d(x, weight, bias, **options)
            return y, saved, state
        y, conv_saved, _ = self.conv.forward(params, {}, x)
        y, relu_saved, _ = self.relu.forward({}, {}, y)
        y, pool_saved, _ = self.pool.forward({}, {}, y)
        return y, [conv_saved, relu_saved, pool_saved], state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and the convolution's gradients."""
        if isinstance(saved, list):
            conv_saved, relu_saved, pool_saved = saved
            dy = ops.relu_backward(ops.max_pool2d_backward(dy, pool_saved), relu_saved)
            return self.conv.backward(params, dy, conv_saved, need_dx=need_dx)
        dx, dweight, dbias = ops.conv2d_relu_max_pool2d_backward(dy, saved, need_dx=need_dx)
        return dx, {"weight": dweight} | ({"bias": dbias} if self.conv.bias else {})


@dataclass(frozen=True)
class NormReLU(Layer):
    """`BatchNorm` and `ReLU` or `ReLU6` in one pass."""

    norm: BatchNorm
    relu: ReLU | ReLU6

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape."""
        return self.norm.output_shape(input_shape)

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Normalise, rectify."""
        return self.norm.forward(params, state, x, train=train, activation=self.relu.op)

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and the gradients of gamma and beta."""
        return self.norm.backward(params, dy, saved, need_dx=need_dx)


def fuse(layers: Sequence[tuple[str, Layer]]) -> list[tuple[str, Layer]]:
    """Replace what one op does by one step: convolution, ReLU and max pool; batch normalisation and ReLU."""
    steps: list[tuple[str, Layer]] = []
    while len(steps) < len(layers) and (rest := layers[sum(_width(layer) for _, layer in steps) :]):
        name, layer = rest[0]
        three = [layer for _, layer in rest[:3]]
        kinds = [type(layer) for layer in three]
        if kinds == [Conv2D, ReLU, MaxPool2D] and _plain(three[0], three[2]):
            layer = ConvReLUPool(*three)  # type: ignore[arg-type]
        elif kinds[:2] in ([BatchNorm, ReLU], [BatchNorm, ReLU6]):
            layer = NormReLU(*three[:2])  # type: ignore[arg-type]
        steps.append((name, layer))
    return steps


def _width(layer: Layer) -> int:
    """Return how many layers a step stands for."""
    return {ConvReLUPool: 3, NormReLU: 2}.get(type(layer), 1)


def _plain(conv: Any, pool: Any) -> bool:
    """Whether the options are those of `xpcnn.ops.conv2d_relu_max_pool2d`."""
    usual = all(layer.mode == "cross-correlation" and layer.center is None for layer in (conv, pool))
    tiles = pool.stride in (None, pool.kernel_size) and not pool.ceil_mode and (pool.padding, pool.dilation) == (0, 1)
    return usual and tiles and conv.groups == 1 and conv.dilation in (1, (1, 1))
