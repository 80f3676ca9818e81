"""Channels of zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers.base import Arrays, Layer, Shape
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
