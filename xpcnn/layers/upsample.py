"""Images made larger; `xpcnn.ops` has the formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpcnn.layers.base import Cost, OpLayer, Shape, image_shape
from xpcnn.ops.window import ints


@dataclass(frozen=True)
class Upsample2D(OpLayer):
    """Repeat every pixel of (N, C, H, W) ``factor`` times along H and W: the nearest neighbour's value."""

    factor: Any

    op = "upsample2d"
    kind = "upsample"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, H, W) -> (C, f·H, g·W)."""
        size = image_shape(self, input_shape, 2)
        return (input_shape[0], *(n * f for n, f in zip(size, ints("factor", self.factor, 2, 1), strict=True)))

    def cost(self, input_shape: Shape) -> Cost:
        """Return how far apart two outputs' inputs are: less than a pixel."""
        return Cost(span=(1.0, 1.0), step=tuple(1.0 / f for f in ints("factor", self.factor, 2, 1)))
