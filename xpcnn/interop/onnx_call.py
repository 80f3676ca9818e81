"""A node of an ONNX file with what it takes, as its converter sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from xpcnn.interop.onnx_file import Node
from xpcnn.interop.onnx_fold import Unsupported
from xpcnn.interop.onnx_sketch import UNKNOWN, Sketch, Tensor
from xpcnn.interop.onnx_wire import Host
from xpcnn.layers import Layer
from xpcnn.layers.base import Shape

BATCHES = (9973, 9967)  # sizes that shape arithmetic is done for: what differs between them depends on the batch
LIKE_THEIR_INPUT = ("Abs", "Div", "Erf", "Exp", "Log", "Mish", "Neg", "Pow", "PRelu", "Softmax", "Softsign", "Sqrt")


class Known(NamedTuple):
    """A constant, or what is computed of shapes: its value for each of `BATCHES`."""

    values: tuple[Host, ...]

    @property
    def varies(self) -> bool:
        """Whether it depends on the batch's size."""
        first, *others = self.values
        return any(first.shape != other.shape or not np.array_equal(first, other) for other in others)


class Unseen(Exception):  # noqa: N818  no fault: the node takes what another makes that has no counterpart
    """A tensor's shape is not known."""


class Call:
    """A node whose result depends on the images."""

    def __init__(
        self, node: Node, given: Sequence[Tensor | Known | None], opset: int, sketch: Sketch, fixed_batch: int | None
    ) -> None:
        self.node, self.given, self.opset, self.sketch = node, given, opset, sketch
        self.fixed_batch = fixed_batch  # the number of images that the file is written for, if it is

    @property
    def x(self) -> Tensor:
        """The first input, which must depend on the images."""
        return self.tensor(0)

    @property
    def shape(self) -> Shape:
        """The first input's shape for one example."""
        return self.shape_of(self.x)

    def shape_of(self, tensor: Tensor) -> Shape:
        """Return a tensor's shape, or raise if it is not known."""
        if tensor.shape is None:
            raise Unseen
        return tensor.shape

    def tensor(self, index: int) -> Tensor:
        """Return an input that must depend on the images."""
        value = self.given[index] if index < len(self.given) else None
        if not isinstance(value, Tensor):
            raise Unsupported(f"takes a constant as input {index}")
        return value

    def constant(self, index: int) -> Host | None:
        """Return an input that must be a constant; None if it is left out."""
        value = self.given[index] if index < len(self.given) else None
        if isinstance(value, Tensor):
            raise Unsupported(f"takes an input {index} that is no constant")
        if value is not None and value.varies:
            raise Unsupported(f"takes an input {index} that depends on the batch's size")
        return None if value is None else value.values[0]

    def needed(self, index: int) -> Host:
        """Return an input that must be a constant and be there."""
        array = self.constant(index)
        if array is None:
            raise Unsupported(f"lacks its input {index}")
        return array

    def whole(self, name: str, usual: int) -> int:
        """Return an attribute that is a whole number."""
        value = self.node.attributes.get(name, usual)
        if not isinstance(value, int):
            raise Unsupported(f"has a {name} that is no whole number")
        return value

    def wholes(self, name: str) -> list[int] | None:
        """Return an attribute that is a list of whole numbers, None if it is left out."""
        value = self.node.attributes.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(n, int) for n in value)):
            raise Unsupported(f"has {name} that are no whole numbers")
        return value

    def real(self, name: str, usual: float) -> float:
        """Return an attribute that is a finite number."""
        value = self.node.attributes.get(name, usual)
        if not isinstance(value, float) or not np.isfinite(value):
            raise Unsupported(f"has a {name} that is no finite number")
        return value

    def text(self, name: str, usual: str) -> str:
        """Return an attribute that is a text."""
        value = self.node.attributes.get(name, usual)
        if not isinstance(value, str):
            raise Unsupported(f"has a {name} that is no text")
        return value

    def listed(self, index: int, name: str) -> list[int] | None:
        """Return whole numbers that are an input or, in older versions, an attribute."""
        array = self.constant(index)
        if array is None:
            return self.wholes(name)
        if array.dtype.kind not in "iu" or array.size > 64:
            raise Unsupported(f"takes {name} that are no whole numbers")
        return [int(n) for n in array.reshape(-1)]

    def number(self, index: int, name: str, usual: float | None) -> float | None:
        """Return a number that is an input or, in older versions, an attribute, as short as its type allows."""
        array = self.constant(index)
        if array is None:
            return usual if name not in self.node.attributes else self.real(name, 0.0)
        if array.size != 1 or array.dtype.kind != "f":
            raise Unsupported(f"takes a {name} that is no single number")
        return float(str(array.reshape(-1)[0]))

    def is_batch(self, sizes: Sequence[int]) -> bool:
        """Whether numbers for each of `BATCHES` are the batch's size, or the one that the file is written for."""
        return tuple(sizes) == BATCHES or (self.fixed_batch is not None and set(sizes) == {self.fixed_batch})

    def axes(self, axes: Sequence[int], rank: int) -> list[int]:
        """Return axes counted from the first one."""
        if any(not -rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) != len(axes):
            raise Unsupported(f"names the axes {list(axes)} of {rank}")
        return [axis % rank for axis in axes]

    def add(
        self, layer: Layer, arrays: dict[str, Host] | None = None, inputs: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Add a layer, which takes the first input unless others are given."""
        taken = [self.x] if inputs is None else inputs
        for tensor in taken:
            self.shape_of(tensor)
        return self.sketch.add(self.node.name, layer, taken, arrays or {})


class Converter(NamedTuple):
    """What makes a layer of a node, the attributes it reads, and those that do not matter."""

    run: Callable[[Call], Any]
    attributes: frozenset[str]


def reads(*attributes: str) -> Callable[[Callable[[Call], Any]], Converter]:
    """Say which attributes a converter reads: any other is refused."""
    return lambda run: Converter(run, frozenset(attributes))


def stand_in(node: Node, given: Sequence[Tensor | Known | None]) -> Tensor:
    """Return what a node without a counterpart makes where its shape is plain, so that those after it are judged."""
    shapes = [value.shape for value in given if isinstance(value, Tensor)]
    perm = node.attributes.get("perm")
    if not shapes or any(shape is None for shape in shapes):
        return UNKNOWN
    shape = shapes[0] or ()
    if node.op == "Transpose" and isinstance(perm, list) and sorted(perm) == list(range(len(shape) + 1)):
        return Tensor("", tuple(shape[axis - 1] for axis in perm[1:])) if perm[0] == 0 else UNKNOWN
    if node.op in LIKE_THEIR_INPUT:
        return Tensor("", max((shape or () for shape in shapes), key=prod))
    axes = node.attributes.get("axes")
    if node.op == "ReduceMean" and isinstance(axes, list) and node.attributes.get("keepdims", 1):
        return Tensor("", tuple(1 if {n, n - len(shape) - 1} & set(axes) else m for n, m in enumerate(shape, start=1)))
    if node.op == "MatMul" and len(given) == 2 and isinstance(given[1], Known) and given[1].values[0].ndim == 2:
        return Tensor("", (*shape[:-1], given[1].values[0].shape[1]))
    return UNKNOWN
