"""A network as it is read: layers that take each other's values by name, with the arrays they were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

from xpcnn.interop.onnx_fold import Unsupported
from xpcnn.interop.onnx_wire import Host
from xpcnn.layers import (
    AdaptiveAvgPool2D,
    Affine,
    Flatten,
    GlobalAvgPool,
    Graph,
    Identity,
    Join,
    Layer,
    Reshape,
    Scale,
    Sequential,
)
from xpcnn.layers.base import Shape
from xpcnn.layers.graph import INPUT

MOST_NUMBERS = 1 << 31  # of one value for one example


class Tensor(NamedTuple):
    """What a tensor of the file is here: a layer's value for one example; without a name or shape it is not known."""

    name: str
    shape: Shape | None


UNKNOWN = Tensor("", None)


@dataclass
class Part:
    """A layer, the names of what it takes, its arrays by their own names, and one example's shapes."""

    layer: Layer
    inputs: tuple[str, ...]
    arrays: dict[str, Host]
    given: tuple[Shape, ...]
    shape: Shape


Merged = tuple[str, Part | None] | None  # the name that stays, and the layer by that name if it is a new one


@dataclass
class Sketch:
    """The layers so far, in order, by name."""

    input_shape: Shape
    parts: dict[str, Part] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)  # how often a name was wanted that was taken

    def add(self, name: str, layer: Layer, inputs: Sequence[Tensor], arrays: dict[str, Host]) -> Tensor:
        """Add a layer and return its value.

        Raises
        ------
        Unsupported
            When its arrays do not fit, or it makes too much of what it takes.
        XpcnnError
            When the layer does not fit what it takes.
        """
        given = tuple(tensor.shape or () for tensor in inputs)
        taken = given if isinstance(layer, Join) else given[0]
        shape = layer.output_shape(taken)  # type: ignore[arg-type]
        check_size(shape)
        described = layer.parameters(taken) | layer.state(taken)  # type: ignore[arg-type]
        for own, array in arrays.items():
            if array.dtype.kind != "f" or array.shape != described[own].shape:
                raise Unsupported(f"has {own} of shape {array.shape} and type {array.dtype} for examples {taken}")
        name = self._free(name.replace("/", ".").strip(".") or f"{layer.kind}{len(self.parts) + 1}")
        self.parts[name] = Part(layer, tuple(tensor.name for tensor in inputs), arrays, given, shape)
        return Tensor(name, shape)

    def _free(self, name: str) -> str:
        """Return a name that no other layer has."""
        wanted = name
        while name in self.parts or name == INPUT:
            self._taken[wanted] = self._taken.get(wanted, 1) + 1
            name = f"{wanted}_{self._taken[wanted]}"
        return name

    def finish(self, output: str) -> None:
        """Leave out what the output does not need, and let one layer do what two were written for."""
        needed = {output}
        for name, part in reversed(self.parts.items()):
            needed.update(part.inputs if name in needed else ())
        self.parts = {name: part for name, part in self.parts.items() if name in needed}
        if output == INPUT:
            self.parts = {"identity": Part(Identity(), (INPUT,), {}, (self.input_shape,), self.input_shape)}
        for merge in (_pooled, _scaled, _flattened):
            self._merge(merge)

    def _merge(self, merge: Callable[[str, Part, str, Part], Merged]) -> None:
        """Put one layer in the place of two neighbours, or none where both together do nothing."""
        uses = Counter(name for part in self.parts.values() for name in part.inputs)
        names: dict[str, str] = {}  # what became of those that are gone
        left: dict[str, Part] = {}
        for name, part in self.parts.items():
            part.inputs = tuple(names.get(one, one) for one in part.inputs)
            before = part.inputs[0]
            alone = len(part.inputs) == 1 and uses[before] == 1 and before in left
            merged = merge(before, left[before], name, part) if alone else None
            if merged is None:
                left[name] = part
                continue
            names[name], made = merged
            del left[before]
            uses[names[name]] = uses[name]
            if made is not None:
                left[names[name]] = made
        self.parts = left

    def network(self) -> Layer:
        """Return the layers as a `Sequential` where each takes the one before it, and else as a `Graph`."""
        before = [INPUT, *self.parts]
        if all(part.inputs == (one,) for part, one in zip(self.parts.values(), before, strict=False)):
            return Sequential([(name, part.layer) for name, part in self.parts.items()], input_shape=self.input_shape)
        nodes = [(name, part.layer, part.inputs) for name, part in self.parts.items()]
        return Graph(nodes, input_shape=self.input_shape)

    def values(self) -> dict[str, Host]:
        """Return the arrays by path."""
        return {f"{name}/{own}": array for name, part in self.parts.items() for own, array in part.arrays.items()}


def check_size(shape: Shape) -> None:
    """Raise if a value is larger than any network's."""
    if prod(shape) > MOST_NUMBERS:
        raise Unsupported(f"makes {shape} numbers of one image, more than {MOST_NUMBERS:,}")


def _pooled(name: str, part: Part, _: str, after: Part) -> Merged:
    """Pool to one number per channel where the two axes of length 1 are dropped."""
    flat = isinstance(after.layer, Flatten | Reshape) and after.shape == part.shape[:1]
    if flat and isinstance(part.layer, AdaptiveAvgPool2D) and part.layer.output_size == 1:
        return name, replace(part, layer=GlobalAvgPool(), shape=after.shape)
    if (
        flat and isinstance(part.layer, Reshape) and part.given[0] == after.shape
    ):  # GlobalMaxPool's, there and back again
        return part.inputs[0], None
    return None


def _scaled(name: str, part: Part, _: str, after: Part) -> Merged:
    """Scale and shift by numbers of one shape at once."""
    first, second = part.layer, after.layer
    if not isinstance(first, Scale) or not isinstance(second, Scale) or first.shape != second.shape:
        return None
    if first.shift or second.scale:
        return None
    return name, replace(part, layer=Scale(first.shape, shift=True), arrays=part.arrays | after.arrays)


def _flattened(before: str, part: Part, name: str, after: Part) -> Merged:
    """Leave a flattening to the affine layer that it was written for."""
    if isinstance(part.layer, Flatten) and isinstance(after.layer, Affine) and before == f"{name}.flatten":
        return name, replace(after, inputs=part.inputs, given=part.given)
    return None
