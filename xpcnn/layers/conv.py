"""Convolution layers; `xpcnn.ops` has their formulas and options."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.kernels import Window
from xpcnn.layers.base import Arrays, Cost, Layer, Parameter, Shape, image_shape
from xpcnn.ops.window import conv_window, ints, transposed_window
from xpcnn.optim.initializers import HeNormal, Initializer, Zeros
from xpcnn.random import Key


@dataclass(frozen=True)
class _Convolution(Layer):
    """What convolutions and transposed ones share."""

    filters: int
    kernel_size: Any
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = True
    init: Initializer = field(default_factory=HeNormal)

    axes: ClassVar[int]
    op: ClassVar[str]
    kind = "conv"

    @abstractmethod
    def weight_shape(self, input_shape: Shape) -> Shape:
        """Return the weight's shape, or raise unless channels, filters and groups fit together."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the op's options."""

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Weight and bias (filters,)."""
        fan_in = input_shape[0] // self.groups * prod(self.kernel)
        weight = {"weight": Parameter(self.weight_shape(input_shape), fan_in, self.init)}
        return weight | ({"bias": Parameter((self.filters,), fan_in, Zeros())} if self.bias else {})

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Convolve a batch."""
        y, saved = getattr(ops, self.op)(x, params["weight"], params.get("bias"), **self.options())
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and the gradients of weight and bias."""
        dx, dweight, dbias = getattr(ops, f"{self.op}_backward")(dy, saved, need_dx=need_dx)
        return dx, {"weight": dweight} | ({"bias": dbias} if self.bias else {})

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's size on each axis."""
        return ints("kernel_size", self.kernel_size, self.axes, 1)

    def grouped(self, input_shape: Shape) -> Shape:
        """Return the spatial shape, or raise unless the groups divide channels and filters."""
        size = image_shape(self, input_shape, self.axes)
        filters, groups = whole("filters", self.filters, 1), whole("groups", self.groups, 1)
        if input_shape[0] % groups or filters % groups:
            raise XpcnnError(
                f"{type(self).__name__}'s groups={groups} must divide both the {input_shape[0]} channels of "
                f"{input_shape} and the {filters} filters."
            )
        return size


@dataclass(frozen=True)
class _Conv(_Convolution):
    """Convolve with ``filters`` kernels."""

    mode: str = "cross-correlation"
    center: Any = None

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, *size) -> (filters, *out)."""
        return (self.filters, *self.window(input_shape).out)

    def weight_shape(self, input_shape: Shape) -> Shape:
        """Return (filters, C / groups, *kernel)."""
        self.grouped(input_shape)
        return (self.filters, input_shape[0] // self.groups, *self.kernel)

    def options(self) -> dict[str, Any]:
        """Return the op's options."""
        names = "stride", "padding", "dilation", "groups", "mode", "center"
        return {name: getattr(self, name) for name in names}

    def cost(self, input_shape: Shape) -> Cost:
        """Every output is a product of a filter and its window."""
        win = self.window(input_shape)
        products = prod(self.weight_shape(input_shape)) * prod(win.out)
        return Cost(products, input_shape[0] * win.taps * prod(win.out), win.span, tuple(map(float, win.stride)))

    def window(self, input_shape: Shape) -> Window:
        """Return where the windows lie."""
        options = {name: value for name, value in self.options().items() if name != "groups"}
        return conv_window(self.grouped(input_shape), self.kernel, **options)


@dataclass(frozen=True)
class Conv1D(_Conv):
    """Convolve signals (N, C, L)."""

    axes = 1
    op = "conv1d"


@dataclass(frozen=True)
class Conv2D(_Conv):
    """Convolve images (N, C, H, W)."""

    axes = 2
    op = "conv2d"


@dataclass(frozen=True)
class Conv3D(_Conv):
    """Convolve volumes (N, C, D, H, W)."""

    axes = 3
    op = "conv3d"


@dataclass(frozen=True)
class _ConvTranspose(_Convolution):
    """Spread by ``filters`` kernels: a convolution's adjoint."""

    output_padding: Any = 0

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, *size) -> (filters, *out)."""
        return (self.filters, *self.window(input_shape).size)

    def weight_shape(self, input_shape: Shape) -> Shape:
        """(C, filters / groups, *kernel)."""
        self.grouped(input_shape)
        return (input_shape[0], self.filters // self.groups, *self.kernel)

    def options(self) -> dict[str, Any]:
        """Return the op's options."""
        return {name: getattr(self, name) for name in ("stride", "padding", "output_padding", "dilation", "groups")}

    def cost(self, input_shape: Shape) -> Cost:
        """Every input is multiplied by a filter; an output sees the inputs whose windows reach it."""
        win = self.window(input_shape)
        products = prod(self.weight_shape(input_shape)) * prod(win.out)
        span = tuple(-(-k // s) for k, s in zip(win.span, win.stride, strict=True))
        return Cost(products, self.filters * win.taps * prod(win.out), span, tuple(1.0 / s for s in win.stride))

    def window(self, input_shape: Shape) -> Window:
        """Return where the windows of the convolution lie whose adjoint this is."""
        options = {name: value for name, value in self.options().items() if name != "groups"}
        return transposed_window(self.grouped(input_shape), self.kernel, **options)


@dataclass(frozen=True)
class ConvTranspose1D(_ConvTranspose):
    """Spread signals (N, C, L)."""

    axes = 1
    op = "conv_transpose1d"


@dataclass(frozen=True)
class ConvTranspose2D(_ConvTranspose):
    """Spread images (N, C, H, W)."""

    axes = 2
    op = "conv_transpose2d"


@dataclass(frozen=True)
class ConvTranspose3D(_ConvTranspose):
    """Spread volumes (N, C, D, H, W)."""

    axes = 3
    op = "conv_transpose3d"
