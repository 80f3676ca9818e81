"""Pooling layers; `xpcnn.ops` has their formulas and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xpcnn.kernels import Window
from xpcnn.layers.base import Cost, OpLayer, Shape, image_shape
from xpcnn.ops.adaptive_pool import adaptive_size, bins
from xpcnn.ops.pool import pool_window


@dataclass(frozen=True)
class _Pool(OpLayer):
    """What pooling over sliding windows shares."""

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    axes: ClassVar[int]
    kind = "pool"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, *size) -> (C, *out)."""
        win = self._window(input_shape)
        return (input_shape[0], *win.out)

    def cost(self, input_shape: Shape) -> Cost:
        """Return how far a window sees; its additions count as nothing."""
        win = self._window(input_shape)
        return Cost(span=win.span, step=tuple(map(float, win.stride)))

    def _window(self, input_shape: Shape) -> Window:
        size = image_shape(self, input_shape, self.axes)
        options = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        return pool_window(size, *options, getattr(self, "mode", "cross-correlation"), getattr(self, "center", None))


@dataclass(frozen=True)
class _MaxPool(_Pool):
    """The maximum of each window."""

    mode: str = "cross-correlation"
    center: Any = None


@dataclass(frozen=True)
class MaxPool1D(_MaxPool):
    """Take the maximum of each window of (N, C, L)."""

    axes = 1
    op = "max_pool1d"


@dataclass(frozen=True)
class MaxPool2D(_MaxPool):
    """Take the maximum of each window of (N, C, H, W)."""

    axes = 2
    op = "max_pool2d"


@dataclass(frozen=True)
class MaxPool3D(_MaxPool):
    """Take the maximum of each window of (N, C, D, H, W)."""

    axes = 3
    op = "max_pool3d"


@dataclass(frozen=True)
class _AvgPool(_Pool):
    """The mean of each window."""

    count_include_pad: bool = True


@dataclass(frozen=True)
class AvgPool1D(_AvgPool):
    """Take the mean of each window of (N, C, L)."""

    axes = 1
    op = "avg_pool1d"


@dataclass(frozen=True)
class AvgPool2D(_AvgPool):
    """Take the mean of each window of (N, C, H, W)."""

    axes = 2
    op = "avg_pool2d"


@dataclass(frozen=True)
class AvgPool3D(_AvgPool):
    """Take the mean of each window of (N, C, D, H, W)."""

    axes = 3
    op = "avg_pool3d"


@dataclass(frozen=True)
class AdaptiveAvgPool2D(OpLayer):
    """Average (N, C, H, W) over an even grid of ``output_size`` bins."""

    output_size: Any

    op = "adaptive_avg_pool2d"
    kind = "pool"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, H, W) -> (C, OH, OW)."""
        size = image_shape(self, input_shape, 2)
        return (input_shape[0], *adaptive_size(size, self.output_size))

    def cost(self, input_shape: Shape) -> Cost:
        """Return how far a bin sees."""
        pairs = list(zip(input_shape[1:], self.output_shape(input_shape)[1:], strict=True))
        largest = tuple(max(b.stop - b.start for b in bins(n, out)) for n, out in pairs)
        return Cost(span=largest, step=tuple(n / out for n, out in pairs))


@dataclass(frozen=True)
class _GlobalPool(OpLayer):
    """One number per channel."""

    kind = "pool"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, H, W) -> (C,)."""
        image_shape(self, input_shape, 2)
        return input_shape[:1]

    def cost(self, input_shape: Shape) -> Cost:
        """Each output sees the whole image."""
        return Cost(span=None)


@dataclass(frozen=True)
class GlobalAvgPool(_GlobalPool):
    """Average each channel of (N, C, H, W): (N, C)."""

    op = "global_avg_pool2d"


@dataclass(frozen=True)
class GlobalMaxPool(_GlobalPool):
    """Take the maximum of each channel of (N, C, H, W): (N, C)."""

    op = "global_max_pool2d"
