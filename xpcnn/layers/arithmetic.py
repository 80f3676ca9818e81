"""Sums and products: of several values in a graph, and with trained numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers.base import Arrays, Layer, Parameter, Shape
from xpcnn.ops import broadcast
from xpcnn.optim.initializers import Ones, Zeros
from xpcnn.random import Key

OF_TWO = ("subtract", "multiply")
HOWS = ("add", "concat", *OF_TWO)


@dataclass(frozen=True)
class Join(Layer):
    """Make one value of several; only inside a `Graph`, whose node names them.

    Shapes and arrays come as tuples, in the order of the node's inputs, and so does backward's dx.

    Parameters
    ----------
    how : {"add", "multiply", "subtract", "concat"}
        Element by element, where axes of length 1 are stretched (subtract and multiply take two values), or joined
        along the channels, axis 1 of the batch.
    """

    how: str

    kind = "join"

    def __post_init__(self) -> None:
        """Refuse an unknown way."""
        if self.how not in HOWS:
            raise XpcnnError(f"Join's how must be one of {', '.join(HOWS)}, not {self.how!r}.")

    def output_shape(self, input_shape: Any) -> Shape:
        """(shape, shape, ...) -> the shape of the result."""
        if not input_shape or not all(isinstance(shape, tuple) for shape in input_shape):
            raise XpcnnError(f"Join takes several values, as a node of a Graph does, not one of shape {input_shape}.")
        if self.how in OF_TWO and len(input_shape) != 2:
            raise XpcnnError(f"Join({self.how!r}) takes two values, not {len(input_shape)}.")
        if self.how != "concat":
            return reduce(broadcast.joined, input_shape)
        if not all(input_shape) or len({shape[1:] for shape in input_shape}) > 1:
            raise XpcnnError(f"values of {', '.join(map(str, input_shape))} cannot be joined along the channels.")
        return (sum(shape[0] for shape in input_shape), *input_shape[0][1:])

    def forward(
        self, params: Arrays, state: Arrays, x: Any, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Join the batches of a tuple."""
        if self.how == "concat":
            edges = list(accumulate((part.shape[1] for part in x), initial=0))
            return array_namespace(*x).concat(x, axis=1), edges, state
        total, *others = x
        saved = []
        for other in others:
            total, kept = _joined(self.how, total, other)
            saved.append(kept)
        return total, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Any, Arrays]:
        """Return the gradient of each batch."""
        if not need_dx:
            return None, {}
        if self.how == "concat":
            return tuple(dy[:, a:b, ...] for a, b in pairwise(saved)), {}
        found: list[Array] = []
        for kept in reversed(saved):
            dy, other = (dy, dy) if kept is None else getattr(broadcast, f"{self.how}_backward")(dy, kept)
            found.append(other)
        return (dy, *reversed(found)), {}


@dataclass(frozen=True)
class Scale(Layer):
    """Multiply examples by trained numbers, add others: ``y = x · scale + shift``.

    Parameters
    ----------
    shape : tuple of int
        Of scale and shift, which are stretched to one example's: ``(C, 1, 1)`` is a number for each channel.
    scale, shift : bool
        Which of them there are; they begin as ones and zeros.
    """

    shape: Any = ()
    scale: bool = True
    shift: bool = False

    kind = "scale"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape."""
        shape = self._shape()
        fits = all(n in (1, m) for n, m in zip(reversed(shape), reversed(input_shape), strict=False))
        if len(shape) > len(input_shape) or not fits:
            raise XpcnnError(f"Scale's shape {shape} cannot be stretched to examples {input_shape}.")
        return input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Scale and shift."""
        shape = self._shape()
        found = {"scale": Parameter(shape, 1, Ones())} if self.scale else {}
        return found | ({"shift": Parameter(shape, 1, Zeros())} if self.shift else {})

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Scale a batch."""
        y, saved = broadcast.scale(x, params.get("scale"), params.get("shift"))
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and the gradients of scale and shift."""
        dx, dscale, dshift = broadcast.scale_backward(dy, saved, need_dx=need_dx)
        return dx, ({"scale": dscale} if self.scale else {}) | ({"shift": dshift} if self.shift else {})

    def _shape(self) -> Shape:
        """Return the parameters' shape as plain numbers."""
        if not isinstance(self.shape, Sequence) or isinstance(self.shape, str):
            raise XpcnnError(f"Scale's shape must be whole numbers such as (8, 1, 1), not {self.shape!r}.")
        if not (self.scale or self.shift):
            raise XpcnnError("Scale needs scale=True, shift=True or both.")
        return tuple(whole("Scale's shape", n, 1) for n in self.shape)


def _joined(how: str, a: Array, b: Array) -> tuple[Array, Any]:
    """Return two arrays in one, and what backward needs; nothing for a sum of one shape, which kernels may know."""
    if how == "add" and a.shape == b.shape:
        xp = array_namespace(a)
        return kernels.of(xp).add(a, b, xp), None
    y, saved = getattr(broadcast, how)(a, b)
    return y, saved
