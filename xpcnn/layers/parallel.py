"""Layers side by side: branches whose outputs are joined or added, and the residual block."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays, Cost, Layer, Placed, Shape
from xpcnn.layers.container import Child, Container, Named, named, naming, place, split, under
from xpcnn.random import Key


@dataclass(frozen=True)
class Identity(Layer):
    """What comes in goes out."""

    kind = "identity"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape."""
        return input_shape

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Return the batch itself."""
        return x, None, state

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dy itself."""
        return dy if need_dx else None, {}


class _Branches(Container):
    """Layers that are given the same input."""

    @abstractmethod
    def named_branches(self) -> Named:
        """Return the branches."""

    @abstractmethod
    def joins(self) -> bool:
        """Return whether outputs are joined along the channels rather than added."""

    def children(self, input_shape: Shape) -> list[Placed]:
        """Return each branch with its shapes, or raise naming the one that does not fit."""
        return [place(name, layer, input_shape) for name, layer in self.named_branches()]

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the joined shape, or that of every branch."""
        children = self.children(input_shape)
        shapes = [child.output_shape for child in children]
        if self.joins() and all(shapes) and len({shape[1:] for shape in shapes}) == 1:
            return (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if not self.joins() and len(set(shapes)) == 1:
            return shapes[0]
        listed = ", ".join(f"{child.path} makes {child.output_shape}" for child in children)
        verb = "joined along the channels" if self.joins() else "added"
        raise XpcnnError(f"the branches' outputs cannot be {verb}: of {input_shape}, {listed}.")

    def cost(self, input_shape: Shape) -> Cost:
        """Return the branches' costs together."""
        return reduce(Cost.beside, (layer.cost(input_shape) for _, layer in self.named_branches()))

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run every branch, then merge."""
        params_of, state_of = split(params), split(state)
        outputs, saved = [], []
        new_state: Arrays = {}
        for name, layer in self.named_branches():
            own = None if key is None else key.child(name)
            with naming(name):
                y, kept, changed = layer.forward(
                    params_of.get(name, {}), state_of.get(name, {}), x, train=train, key=own
                )
            outputs.append(y)
            saved.append(kept)
            new_state |= under(name, changed)
        edges = list(accumulate((y.shape[1] for y in outputs), initial=0)) if self.joins() else None
        return self._merged(outputs), (edges, saved), new_state

    def predict(self, params: Arrays, state: Arrays, x: Array) -> Array:
        """Run every branch, keeping nothing, then merge."""
        params_of, state_of = split(params), split(state)
        outputs = []
        for name, layer in self.named_branches():
            with naming(name):
                outputs.append(layer.predict(params_of.get(name, {}), state_of.get(name, {}), x))
        return self._merged(outputs)

    def _merged(self, outputs: list[Array]) -> Array:
        """Join or add the branches' outputs."""
        return array_namespace(outputs[0]).concat(outputs, axis=1) if self.joins() else _sum(outputs)

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Give every branch its part of dy; add up what comes out, in order."""
        edges, kept = saved
        params_of = split(params)
        parts = [dy] * len(kept) if edges is None else [dy[:, a:b, ...] for a, b in pairwise(edges)]
        grads: Arrays = {}
        dxs = []
        for (name, layer), part, own in zip(self.named_branches(), parts, kept, strict=True):
            dx, found = layer.backward(params_of.get(name, {}), part, own, need_dx=need_dx)
            dxs.append(dx)
            grads |= under(name, found)
        return _sum(dxs) if need_dx else None, grads


@dataclass(frozen=True, init=False)
class Parallel(_Branches):
    """Give every branch the same input; join their outputs along the channels, or add them.

    Parameters
    ----------
    branches : sequence of Layer or (name, Layer)
        A parameter's path begins with its branch's name: by default its kind and number, ``block1/conv1/weight``.
    merge : {"concat", "add"}
        Joined outputs may differ in channels; added ones must have one shape.
    """

    branches: Named
    merge: str

    kind = "parallel"

    def __init__(self, branches: Sequence[Child], merge: str = "concat") -> None:
        if merge not in ("concat", "add"):
            raise XpcnnError(f"merge must be 'concat' or 'add', not {merge!r}.")
        if not isinstance(branches, Sequence) or not branches:
            raise XpcnnError(f"Parallel takes a sequence of at least one branch, got {branches!r}.")
        object.__setattr__(self, "branches", named(branches, "Parallel"))
        object.__setattr__(self, "merge", merge)

    def named_branches(self) -> Named:
        """Return the branches."""
        return self.branches

    def joins(self) -> bool:
        """Return whether outputs are joined along the channels rather than added."""
        return self.merge == "concat"


@dataclass(frozen=True)
class Residual(_Branches):
    """``body(x) + shortcut(x)``; paths begin with ``body/`` and ``shortcut/``.

    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2016, equations 1 and 2.
    """

    body: Layer
    shortcut: Layer = field(default_factory=Identity)

    kind = "residual"

    def __post_init__(self) -> None:
        """Refuse what is no layer."""
        named(self.named_branches(), "Residual")

    def named_branches(self) -> Named:
        """Return body and shortcut."""
        return ("body", self.body), ("shortcut", self.shortcut)

    def joins(self) -> bool:
        """Return False: outputs are added."""
        return False


def _sum(arrays: list[Array]) -> Array:
    """Add arrays up, first to last."""
    xp = array_namespace(arrays[0])
    return reduce(lambda a, b: kernels.of(xp).add(a, b, xp), arrays)
