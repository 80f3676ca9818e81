"""Layers one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays, Cost, Layer, Placed, Shape, checked_shape
from xpcnn.layers.container import Child, Container, Named, named, naming, place, split, under
from xpcnn.layers.fold import Step, steps
from xpcnn.layers.fused import fuse
from xpcnn.random import Key


@dataclass(frozen=True, init=False)
class Sequential(Container):
    """Layers one after another; a parameter's path is its layer's name and its own: ``conv1/weight``.

    Parameters
    ----------
    *layers : Layer or (name, Layer)
        Without a name a layer is called by its kind and number: ``conv1, relu1, pool1, affine1, relu2, affine2``.
    input_shape : tuple of int, optional
        One example's shape (C, H, W); the outermost container of a network states it.
    """

    layers: Named
    input_shape: Shape | None

    kind = "block"

    def __init__(self, *layers: Child | Sequence[Child], input_shape: Sequence[int] | None = None) -> None:
        children = layers[0] if len(layers) == 1 and isinstance(layers[0], list) else layers
        object.__setattr__(self, "layers", named(children, "Sequential"))  # type: ignore[arg-type]
        object.__setattr__(self, "input_shape", None if input_shape is None else checked_shape(input_shape))

    def children(self, input_shape: Shape) -> list[Placed]:
        """Return each layer with its shapes, or raise naming the one that does not fit."""
        rows: list[Placed] = []
        for name, layer in self.layers:
            rows.append(place(name, layer, rows[-1].output_shape if rows else input_shape))
        return rows

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the last layer's output shape."""
        rows = self.children(input_shape)
        return rows[-1].output_shape if rows else input_shape

    def cost(self, input_shape: Shape) -> Cost:
        """Return the layers' costs together."""
        return reduce(Cost.then, (child.layer.cost(child.input_shape) for child in self.children(input_shape)), Cost())

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the layers in order."""
        params_of, state_of = split(params), split(state)
        saved = []
        new_state: Arrays = {}
        for name, layer in self._steps:
            own = None if key is None else key.child(name)
            with naming(name):
                x, kept, changed = layer.forward(
                    params_of.get(name, {}), state_of.get(name, {}), x, train=train, key=own
                )
            saved.append(kept)
            new_state |= under(name, changed)
        return x, saved, new_state

    def predict(self, params: Arrays, state: Arrays, x: Array) -> Array:
        """Run the layers in order, keeping nothing."""
        params_of, state_of = split(params), split(state)
        for step in self._prediction:
            x = step.run(params_of, state_of, x)
        return x

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Run the layers' backward in reverse; without ``need_dx``, stop at the first layer that has parameters."""
        params_of = split(params)
        trained = [number for number, (name, _) in enumerate(self._steps) if name in params_of]
        stop = 0 if need_dx else min(trained, default=len(self._steps))
        grads: Arrays = {}
        dx: Array | None = dy
        for number in range(len(self._steps) - 1, stop - 1, -1):
            name, layer = self._steps[number]
            dx, found = layer.backward(params_of.get(name, {}), dx, saved[number], need_dx=need_dx or number > stop)
            grads |= under(name, found)
        if missing := [path for path in params if path not in grads]:
            raise XpcnnError(f"backward gave no gradient of {', '.join(missing)}.")
        return dx if need_dx else None, {path: grads[path] for path in params}

    @cached_property
    def _steps(self) -> list[tuple[str, Layer]]:
        """The layers as they run: some neighbours are computed together."""
        return fuse(self.layers)

    @cached_property
    def _prediction(self) -> list[Step]:
        """The layers as prediction runs them: normalisations are folded, too."""
        return steps(self.layers)
