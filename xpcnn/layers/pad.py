"""Channels of zeros, and pixels around images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, device

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers.base import Arrays, Layer, Shape, image_shape
from xpcnn.ops._check import number
from xpcnn.ops.window import padding_pairs
from xpcnn.random import Key


@dataclass(frozen=True)
class PadChannels(Layer):
    """Append channels of zeros until there are ``channels``: a shortcut without parameters.

    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2016, section 3.3, option A.
    """

    channels: int

    kind = "pad"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, ...) -> (channels, ...)."""
        if not input_shape or whole("channels", self.channels, 1) < input_shape[0]:
            raise XpcnnError(f"PadChannels({self.channels}) takes examples of at most as many channels: {input_shape}.")
        return (self.channels, *input_shape[1:])

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Append the zeros."""
        xp = array_namespace(x)
        missing = (x.shape[0], self.channels - x.shape[1], *x.shape[2:])
        zeros = xp.zeros(missing, dtype=x.dtype, device=device(x))
        return xp.concat([x, zeros], axis=1), x.shape[1], state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx: dy without what was appended."""
        return dy[:, :saved, ...] if need_dx else None, {}


@dataclass(frozen=True)
class Pad2D(Layer):
    """Lay pixels of one value around images (N, C, H, W).

    Parameters
    ----------
    padding : int, (int, int), or ((int, int), (int, int))
        Pixels on every side; or above and below, left and right; or (before, after) along H and W.
    value : float
        Of the new pixels.
    """

    padding: Any
    value: float = 0.0

    kind = "pad"

    def output_shape(self, input_shape: Shape) -> Shape:
        """(C, H, W) -> (C, before + H + after, before + W + after)."""
        size = image_shape(self, input_shape, 2)
        number("Pad2D's value", self.value, -float("inf"), float("inf"), closed=True)
        pairs = zip(size, self._pairs, strict=True)
        return (input_shape[0], *(before + n + after for n, (before, after) in pairs))

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Lay the pixels around a batch."""
        self.output_shape(tuple(x.shape[1:]))
        inside = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape[2:], self._pairs, strict=True))
        for axis, pair in ((3, self._pairs[1]), (2, self._pairs[0])):
            x = self._longer(x, axis, *pair)
        return x, inside, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx: dy without what was laid around."""
        return dy[(..., *saved)] if need_dx else None, {}

    def _longer(self, x: Array, axis: int, before: int, after: int) -> Array:
        """Lay pixels before and after all others of an axis."""
        xp = array_namespace(x)
        shapes = [(*x.shape[:axis], count, *x.shape[axis + 1 :]) for count in (before, after)]
        first, last = (xp.full(shape, float(self.value), dtype=x.dtype, device=device(x)) for shape in shapes)
        return xp.concat([part for part in (first, x, last) if part.shape[axis]], axis=axis)

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """How many pixels there are before and after, for each axis."""
        if isinstance(self.padding, str):
            raise XpcnnError(f"Pad2D's padding must be numbers, not {self.padding!r}.")
        return padding_pairs(self.padding, (1, 1), (1, 1), (1, 1), (1, 1))
