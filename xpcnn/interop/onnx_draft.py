"""An ONNX graph as it grows: nodes, the arrays they take, their names, and what cannot be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import xpcnn
from xpcnn.layers.base import Shape

Host = np.ndarray[Any, Any]

LEAST = 17  # the opset with which every operator below is as it is written here, but for those that say `since`
INPUT, OUTPUT = "input", "output"


@dataclass
class Draft:
    """A graph's nodes and arrays so far.

    Attributes
    ----------
    arrays : mapping
        The network's parameters and state by path.
    dtype : str
        Of the arrays and of what is computed.
    nodes, stored : list
        What the file will hold.
    faults : list of str
        Which layers cannot be written, and why.
    since : dict
        The opset that a layer needs, by the layer's name and type.
    """

    arrays: Mapping[str, Host]
    dtype: str
    nodes: list[NodeProto] = field(default_factory=list)
    stored: list[TensorProto] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    since: dict[str, int] = field(default_factory=dict)
    _node_names: set[str] = field(default_factory=set)
    _tensor_names: set[str] = field(default_factory=lambda: {INPUT, OUTPUT})

    def name(self, wanted: str) -> str:
        """Return a node's name that no other has."""
        return _distinct(wanted, self._node_names)

    def node(self, op: str, inputs: tuple[str, ...], name: str, **attributes: Any) -> str:
        """Add a node and return its output's name, which is the node's where that is free."""
        output = _distinct(name, self._tensor_names)
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def store(self, name: str, value: Any, dtype: str | None = None) -> str:
        """Add an array, by default of the network's dtype, and return its name."""
        array = np.ascontiguousarray(value, dtype or self.dtype).reshape(np.shape(value))
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def normalise(self, mean: float, std: float) -> str:
        """Take uint8 images and make floats of them as `Normalise` does; return their name."""
        name = self.name("normalise")
        x = self.node("Cast", (INPUT,), self.name(f"{name}.cast"), to=self._element)
        x = self.node("Mul", (x, self.store(f"{name}/scale", 1.0 / (255.0 * std))), self.name(f"{name}.scale"))
        if mean:
            x = self.node("Sub", (x, self.store(f"{name}/shift", mean / std)), self.name(f"{name}.shift"))
        return x

    def end(self, result: str) -> None:
        """Give what the network returns the name that all outputs have."""
        if result == INPUT:  # a graph needs a node to have an output
            result = self.node("Identity", (INPUT,), self.name("identity"))
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [OUTPUT if name == result else name for name in names]

    def model(
        self, opset: int, input_shape: Shape, output_shape: Shape, *, pixels: bool, properties: Mapping[str, str]
    ) -> ModelProto:
        """Return the whole model, of the oldest format that has the opset; ``pixels`` says that it takes uint8."""
        element = TensorProto.UINT8 if pixels else self._element
        takes = helper.make_tensor_value_info(INPUT, element, ["N", *input_shape])
        gives = helper.make_tensor_value_info(OUTPUT, self._element, ["N", *output_shape])
        graph = helper.make_graph(self.nodes, "xpcnn", [takes], [gives], self.stored)
        sets = [helper.make_opsetid("", opset)]
        made = helper.make_model(
            graph, opset_imports=sets, ir_version=helper.find_min_ir_version_for(sets), producer_name="xpcnn",
            producer_version=xpcnn.__version__,
        )  # fmt: skip
        helper.set_model_props(made, properties)
        return made

    @property
    def _element(self) -> int:
        """The dtype as ONNX numbers it."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))


@dataclass
class Site:
    """A layer at its place in the network, which adds its nodes to the draft."""

    draft: Draft
    path: str
    layer: Any
    input_shape: Shape
    output_shape: Shape
    _numbered: int = 0  # nodes so far, without those that have a word

    @cached_property
    def name(self) -> str:
        """What the names of the layer's nodes begin with: its path with dots; the first is called just that."""
        return self.draft.name(self.path.replace("/", ".") or self.layer.kind)

    @property
    def label(self) -> str:
        """The layer as errors name it."""
        return f"{self.path or self.layer.kind} ({type(self.layer).__name__})"

    def node(self, op: str, *inputs: str, word: str = "", since: int = LEAST, **attributes: Any) -> str:
        """Add a node and return its output's name; all but the layer's first have a number or a word in their names."""
        if since > LEAST:
            self.draft.since[self.label] = since
        name = self.upcoming(word)
        self._numbered += not word
        return self.draft.node(op, inputs, name if name == self.name else self.draft.name(name), **attributes)

    def upcoming(self, word: str = "") -> str:
        """Return the name of the next node."""
        last = word or (str(self._numbered) if self._numbered else "")
        return f"{self.name}.{last}" if last else self.name

    def constant(self, name: str, value: Any, dtype: str | None = None, word: str = "") -> str:
        """Store an array for the next node and return its name."""
        return self.draft.store(f"{self.upcoming(word)}/{name}", value, dtype)

    def array(self, name: str) -> Host:
        """Return a parameter or a part of the state."""
        return self.draft.arrays[self._full(name)]

    def parameters(self, *names: str) -> list[str]:
        """Store parameters for the next node, those that the layer has, and return their names."""
        return [self.constant(name, self.array(name)) for name in names if self._full(name) in self.draft.arrays]

    def fault(self, why: str) -> str:
        """Note why the layer cannot be written, and return the name of a tensor to go on with."""
        self.draft.faults.append(f"{self.label} {why}")
        return INPUT

    def _full(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


def _distinct(wanted: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    while wanted in taken:
        wanted += "_"
    taken.add(wanted)
    return wanted
