"""The fully connected layer, and what lays out a batch anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from array_api_compat import array_namespace

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers.base import Arrays, Cost, Layer, Parameter, Shape
from xpcnn.optim.initializers import HeNormal, Initializer, Zeros
from xpcnn.random import Key


@dataclass(frozen=True)
class Affine(Layer):
    """Multiply examples of any shape, flattened, by a matrix (in, out) and add a bias (out,)."""

    out: int
    bias: bool = True
    init: Initializer = field(default_factory=HeNormal)

    kind = "affine"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Any shape -> (out,)."""
        if not input_shape:
            raise XpcnnError("Affine takes examples with at least one feature, got the shape ().")
        return (whole("out", self.out, 1),)

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Weight (in, out) and bias (out,)."""
        features = prod(input_shape)
        weight = {"weight": Parameter((features, self.out), features, self.init)}
        return weight | ({"bias": Parameter((self.out,), features, Zeros())} if self.bias else {})

    def cost(self, input_shape: Shape) -> Cost:
        """Every output is a product with the whole input."""
        return Cost(prod(input_shape) * self.out, span=None)

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Multiply a batch."""
        y, saved = ops.affine(x, params["weight"], params.get("bias"))
        return y, saved, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and the gradients of weight and bias."""
        dx, dweight, dbias = ops.affine_backward(dy, saved, need_dx=need_dx)
        return dx, {"weight": dweight} | ({"bias": dbias} if self.bias else {})


@dataclass(frozen=True)
class Flatten(Layer):
    """Make one axis of all an example's axes: (N, ...) -> (N, features)."""

    kind = "flatten"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Any shape -> (features,)."""
        return (prod(input_shape),)

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Reshape a batch."""
        return array_namespace(x).reshape(x, (x.shape[0], prod(x.shape[1:]))), x.shape, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Reshape back."""
        return array_namespace(dy).reshape(dy, saved) if need_dx else None, {}


@dataclass(frozen=True)
class Reshape(Layer):
    """Give each example another shape, in the same order; a size of -1, once at most, is what is left."""

    shape: Any

    kind = "reshape"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Any shape -> the shape given, of as many numbers."""
        shape = self.shape if isinstance(self.shape, Sequence) and not isinstance(self.shape, str) else ()
        if not shape or not all(n == -1 or whole("Reshape's sizes", n, 1) for n in shape) or shape.count(-1) > 1:
            raise XpcnnError(f"Reshape takes one example's shape, with -1 at most once, not {self.shape!r}.")
        count, known = prod(input_shape), prod(n for n in shape if n != -1)
        if count % known or (-1 not in shape and count != known):
            raise XpcnnError(f"examples {input_shape} of {count} numbers cannot be given the shape {tuple(shape)}.")
        return tuple(count // known if n == -1 else int(n) for n in shape)

    def cost(self, input_shape: Shape) -> Cost:
        """Return what nothing costs; where the axes mean something else, what is seen is all."""
        return Cost() if len(self.shape) == 1 else Cost(span=None)

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Reshape a batch."""
        return array_namespace(x).reshape(x, (x.shape[0], *self.output_shape(tuple(x.shape[1:])))), x.shape, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Reshape back."""
        return array_namespace(dy).reshape(dy, saved) if need_dx else None, {}
