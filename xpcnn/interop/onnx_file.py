"""An ONNX file as plain nodes and arrays, checked against the bytes that are there.

ONNX, "Open Neural Network Exchange Intermediate Representation", and the field numbers of ``onnx.proto``. Arrays are
views of the file's bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpcnn.errors import DataError
from xpcnn.interop.onnx_wire import Host, Value, Wire, block, floats, number, text

OLDEST, NEWEST = 7, 28  # versions of the operators that the converters know
MOST_BYTES = 1 << 31  # of a file: protobuf's own limit
MOST_AXES = 16
MOST_SIZE = 1 << 40  # of an axis: what is larger is no size but damage
OWN_DOMAINS = ("", "ai.onnx")
DTYPES = {
    1: "<f4", 2: "|u1", 3: "|i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "|b1", 10: "<f2", 11: "<f8", 12: "<u4",
    13: "<u8", 16: "<u2",
}  # fmt: skip
BOOL, FLOAT16, BFLOAT16 = 9, 10, 16
NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip


class Unreadable:
    """An attribute that holds a graph, a type or anything else that no converter takes."""


class Node(NamedTuple):
    """An operator with the names of the tensors it takes ("" for none) and makes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return self.name or f"the one that makes {' and '.join(self.outputs) or 'nothing'}"


class Input(NamedTuple):
    """What a graph's input takes: the elements' type, and sizes, None where they are open."""

    dtype: str
    sizes: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Source:
    """What a file holds."""

    nodes: list[Node]
    constants: dict[str, Host]
    inputs: dict[str, Input]
    outputs: list[str]
    opset: int
    classes: tuple[str, ...]
    dataset: str
    size: int


def read_file(path: Path) -> Source:
    """Read a file.

    Raises
    ------
    DataError
        When it is missing, damaged or no ONNX file, names what it does not hold or lays its weights elsewhere.
    """
    if not path.is_file():
        raise DataError(f"it {'is a directory' if path.is_dir() else 'does not exist'}.")
    size = path.stat().st_size
    if size >= MOST_BYTES:
        raise DataError(f"it has {size:,} bytes, but an ONNX file has less than {MOST_BYTES:,}.")
    return _Reader().model(memoryview(path.read_bytes()))


class _Reader:
    """Makes plain values of messages."""

    def __init__(self) -> None:
        self.wire = Wire()

    def model(self, data: memoryview) -> Source:
        """Read a ModelProto."""
        graph: memoryview | None = None
        opset, properties = 0, {}
        for field, value in self.wire.fields(data):
            if field == 7:
                if graph is not None:
                    raise DataError("it has two graphs.")
                graph = block(value)
            elif field == 8:
                opset = max(opset, self._opset(block(value)))
            elif field == 14:
                key, entry = self._pair(block(value))
                properties[key] = entry
        if graph is None:
            raise DataError("it has no graph.")
        if not OLDEST <= opset <= NEWEST:
            raise DataError(
                f"it uses version {opset or 'none'} of ONNX's operators, and {OLDEST} to {NEWEST} are understood; "
                f"onnx.version_converter changes the version."
            )
        classes = _classes(properties.get("xpcnn.classes", "[]"))
        return self._graph(graph, opset, classes, properties.get("xpcnn.dataset", ""), len(data))

    def _graph(self, data: memoryview, opset: int, classes: tuple[str, ...], dataset: str, size: int) -> Source:
        """Read a GraphProto and check that every tensor is made once, before it is used."""
        nodes: list[Node] = []
        constants: dict[str, Host] = {}
        inputs: dict[str, Input] = {}
        outputs: list[str] = []
        for field, value in self.wire.fields(data):
            if field == 1:
                nodes.append(self._node(block(value)))
            elif field == 5:
                name, array = self.tensor(block(value))
                _new(name, constants, "initializer")
                constants[name] = array
            elif field == 11:
                name, described = self._input(block(value))
                _new(name, inputs, "input")
                inputs[name] = described
            elif field == 12:
                outputs.append(self._input(block(value))[0])
            elif field == 15:
                raise DataError("it has sparse initializers, which are not understood.")
        inputs = {name: given for name, given in inputs.items() if name not in constants}
        _check_order(nodes, {*constants, *inputs}, outputs)
        return Source(nodes, constants, inputs, outputs, opset, classes, dataset, size)

    def _node(self, data: memoryview) -> Node:
        """Read a NodeProto; an operator of another domain is called by both."""
        inputs, outputs = [], []
        attributes: dict[str, Any] = {}
        name = op = domain = ""
        for field, value in self.wire.fields(data):
            if field == 1:
                inputs.append(text(value))
            elif field == 2:
                outputs.append(text(value))
            elif field == 3:
                name = text(value)
            elif field == 4:
                op = text(value)
            elif field == 5:
                key, attribute = self._attribute(block(value))
                _new(key, attributes, f"attribute of node {name}")
                attributes[key] = attribute
            elif field == 7:
                domain = text(value)
        if not op:
            raise DataError("it has a node without an operator.")
        full = op if domain in OWN_DOMAINS else f"{domain}::{op}"
        return Node(name, full, tuple(inputs), tuple(outputs), attributes)

    def _attribute(self, data: memoryview) -> tuple[str, Any]:
        """Read an AttributeProto."""
        name, kind = "", 0
        values: dict[int, list[Value]] = {}
        for field, value in self.wire.fields(data):
            if field == 1:
                name = text(value)
            elif field == 20:
                kind = number(value)
            elif 2 <= field <= 9:
                values.setdefault(field, []).append(value)
        return name, self._attribute_value(kind, values)

    def _attribute_value(self, kind: int, values: dict[int, list[Value]]) -> Any:
        """Return an attribute's value by the type it states."""
        own = values.get(kind + 1, [])
        if kind == 1:
            return _one_float(own)
        if kind == 2:
            return number(own[-1]) if own else 0
        if kind == 3:
            return text(own[-1]) if own else ""
        if kind == 4 and own:
            return self.tensor(block(own[-1]))[1]
        if kind == 6:
            return [float(x) for x in floats(own, "<f4")]
        if kind == 7:
            return self.wire.numbers(own)
        if kind == 8:
            return [text(value) for value in own]
        return Unreadable()

    def tensor(self, data: memoryview) -> tuple[str, Host]:
        """Read a TensorProto: the sizes it states must be those of the numbers it holds."""
        name, dtype = "", 0
        values: dict[int, list[Value]] = {}
        for field, value in self.wire.fields(data):
            if field == 8:
                name = text(value)
            elif field == 2:
                dtype = number(value)
            elif field in (3, 13) or (field == 14 and value):
                raise DataError(
                    f"tensor {name} lies in another file or in pieces (external data), which are not read; "
                    f"onnx.save(onnx.load(file), file) makes one file of it."
                )
            elif field in (1, 4, 5, 7, 9, 10, 11):
                values.setdefault(field, []).append(value)
        shape = tuple(self.wire.numbers(values.pop(1, [])))
        if len(shape) > MOST_AXES or not all(0 <= n <= MOST_SIZE for n in shape):
            raise DataError(f"tensor {name} states the sizes {_short(shape)}, which none can have.")
        if dtype not in DTYPES:
            raise DataError(f"tensor {name} holds {NAMES.get(dtype, f'elements of type {dtype}')}, not numbers.")
        array = self._elements(name, dtype, values)
        if array.size != prod(shape):
            raise DataError(f"tensor {name} states the sizes {_short(shape)}, but holds {array.size:,} numbers.")
        return name, _usable(array.reshape(shape), dtype)

    def _elements(self, name: str, dtype: int, values: dict[int, list[Value]]) -> Host:
        """Return a tensor's numbers in one axis, however they are stored."""
        kind = np.dtype(DTYPES[dtype])
        if 9 in values:
            raw = block(values[9][-1])
            if len(raw) % kind.itemsize:
                raise DataError(f"tensor {name} is truncated: it ends in the middle of a number.")
            return np.frombuffer(raw, kind)
        if kind.kind == "f" and kind.itemsize > 2:
            return floats(values.get(4 if dtype == 1 else 10, []), kind.str)
        listed = self.wire.numbers(values.get({7: 7, 12: 11, 13: 11}.get(dtype, 5), []))
        try:
            return np.array(listed, "<u2").view(kind) if dtype == FLOAT16 else np.array(listed, kind)
        except OverflowError:
            raise DataError(f"tensor {name} holds numbers that are no {NAMES[dtype]}.") from None

    def _input(self, data: memoryview) -> tuple[str, Input]:
        """Read a ValueInfoProto."""
        name, dtype = "", "no tensor"
        sizes: tuple[int | None, ...] | None = None
        for field, value in self.wire.fields(data):
            if field == 1:
                name = text(value)
            elif field == 2:
                tensors = [block(v) for f, v in self.wire.fields(block(value)) if f == 1]
                for f, v in (pair for tensor in tensors for pair in self.wire.fields(tensor)):
                    if f == 1:
                        dtype = NAMES.get(number(v), f"type {number(v)}")
                    elif f == 2:
                        sizes = tuple(self._size(name, block(d)) for g, d in self.wire.fields(block(v)) if g == 1)
        return name, Input(dtype, sizes)

    def _size(self, name: str, data: memoryview) -> int | None:
        """Read a Dimension: None where it is open, by a name or, as some exporters write it, by -1 or 0."""
        size = 0
        for field, value in self.wire.fields(data):
            if field == 1:
                size = number(value)
        if not -1 <= size <= MOST_SIZE:
            raise DataError(f"{name} states a size of {size:,}, which none can have.")
        return size if size > 0 else None

    def _opset(self, data: memoryview) -> int:
        """Read an OperatorSetIdProto: the version, or 0 of another domain than ONNX's own."""
        domain, version = "", 0
        for field, value in self.wire.fields(data):
            if field == 1:
                domain = text(value)
            elif field == 2:
                version = number(value)
        return version if domain in OWN_DOMAINS else 0

    def _pair(self, data: memoryview) -> tuple[str, str]:
        """Read a StringStringEntryProto."""
        found = {field: text(value) for field, value in self.wire.fields(data) if field in (1, 2)}
        return found.get(1, ""), found.get(2, "")


def _check_order(nodes: list[Node], known: set[str], outputs: list[str]) -> None:
    """Raise if a tensor is made twice, used before it is made, or never made."""
    made = {name for node in nodes for name in node.outputs}
    known = set(known)
    for node in nodes:
        for name in node.inputs:
            if name and name not in known:
                why = (
                    "only it or a later node makes (a cycle, or nodes out of order)"
                    if name in made
                    else "nothing makes"
                )
                raise DataError(f"{node.op} {node.label} takes {name}, which {why}.")
        for name in filter(None, node.outputs):
            if name in known:
                raise DataError(f"{node.op} {node.label} makes {name}, which is there already.")
            known.add(name)
    if missing := [name for name in outputs if name not in known]:
        raise DataError(f"its output {', '.join(missing)} is made by no node.")


def _new(name: str, known: Mapping[str, Any], what: str) -> None:
    """Raise if a name is empty or taken."""
    if not name or name in known:
        raise DataError(f"it has an {what} {'without a name' if not name else f'{name} twice'}.")


def _one_float(values: list[Value]) -> float:
    """Return a float attribute as the shortest decimal that its 32 bits can mean: 1e-05, not 9.999999747378752e-06."""
    found = floats(values, "<f4")
    return float(str(found[-1])) if found.size else 0.0


def _usable(array: Host, dtype: int) -> Host:
    """Return half-precision numbers as float32, and others as they are."""
    if dtype == BOOL:
        return array.view("u1") != 0  # any other byte would be neither
    if dtype == BFLOAT16:
        return (array.astype("<u4") << np.uint32(16)).view("<f4")
    return array.astype("<f4") if dtype == FLOAT16 else array


def _classes(stated: str) -> tuple[str, ...]:
    """Return the classes' names from the metadata."""
    try:
        names = json.loads(stated)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("its xpcnn.classes are no list of names.")
    return tuple(names)


def _short(shape: tuple[int, ...]) -> str:
    """Return sizes as a text of bounded length."""
    return f"({', '.join(map(str, shape[:MOST_AXES]))}{', ...' if len(shape) > MOST_AXES else ''})"
