"""What of a graph does not depend on the images is computed while reading, within a bound on its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import numpy as np

from xpcnn.interop.onnx_file import DTYPES, Node
from xpcnn.interop.onnx_wire import Host

LEAST_ROOM = 1 << 24  # bytes for results, however small the file
FAULTS = (ValueError, IndexError, TypeError, KeyError, ArithmeticError, MemoryError)

Given = Sequence[Host | None]


class Unsupported(Exception):  # noqa: N818  no fault of the reader: a node that has no counterpart, with the reason
    """Why a node cannot be a layer."""


class Room:
    """The memory that results may take: twice the file's size, as a network's own constants need no more."""

    def __init__(self, size: int) -> None:
        self.left = max(LEAST_ROOM, 2 * size)

    def take(self, shape: Sequence[int], dtype: Any) -> None:
        """Count an array before it is made, or raise."""
        if min(shape, default=0) < 0:
            raise ValueError
        self.left -= prod(shape) * np.dtype(dtype).itemsize
        if self.left < 0:
            raise Unsupported("makes more constants than the file could need")


def evaluate(node: Node, inputs: Given, opset: int, room: Room) -> Host:
    """Return what a node makes of arrays, or raise `Unsupported`."""
    if node.op not in FOLDED or len(node.outputs) != 1:
        raise Unsupported("has no counterpart")
    try:
        with np.errstate(all="ignore"):
            return FOLDED[node.op](_Folding(node, inputs, opset, room))
    except FAULTS:
        raise Unsupported("has inputs or attributes that do not fit together") from None


class _Folding:
    """A node with its arrays."""

    def __init__(self, node: Node, inputs: Given, opset: int, room: Room) -> None:
        self.node, self.opset, self.room = node, opset, room
        self.inputs = list(inputs)
        self.attributes = node.attributes

    def array(self, index: int) -> Host:
        """Return an input, or raise if it is not there."""
        array = self.inputs[index]
        if array is None:
            raise IndexError
        return array

    def ints(self, index: int, attribute: str | None = None) -> list[int] | None:
        """Return whole numbers that are an input or, in older versions, an attribute; None if they are neither."""
        given = self.inputs[index] if index < len(self.inputs) else None
        if given is None:
            given = self.attributes.get(attribute) if attribute else None
        elif given.size > 1 << 10:
            raise ValueError
        return None if given is None else [int(n) for n in np.asarray(given).reshape(-1)]


def _constant(f: _Folding) -> Host:
    """Return the one value of a Constant."""
    ((name, value),) = f.attributes.items()
    if name == "value":
        return np.asarray(value)
    dtype = {"value_float": "<f4", "value_floats": "<f4", "value_int": "<i8", "value_ints": "<i8"}[name]
    return np.array(value, dtype)


def _cast(f: _Folding) -> Host:
    """Convert; half precision is taken as float32 everywhere."""
    to = np.dtype({10: "<f4", 16: "<f4"}.get(f.attributes["to"]) or DTYPES[f.attributes["to"]])
    f.room.take(f.array(0).shape, to)
    return f.array(0).astype(to)


def _reshape(f: _Folding) -> Host:
    """Reshape; 0 keeps an axis."""
    x, target = f.array(0), f.ints(1, "shape") or []
    if not f.attributes.get("allowzero", 0):
        target = [x.shape[axis] if n == 0 else n for axis, n in enumerate(target)]
    return x.reshape(target)


def _squeeze(f: _Folding) -> Host:
    axes = f.ints(1, "axes")
    return np.squeeze(f.array(0), None if axes is None else tuple(axes))


def _unsqueeze(f: _Folding) -> Host:
    return np.expand_dims(f.array(0), tuple(f.ints(1, "axes") or ()))


def _flatten(f: _Folding) -> Host:
    x, axis = f.array(0), f.attributes.get("axis", 1)
    return x.reshape(prod(x.shape[:axis]), -1) if x.size else x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _concat(f: _Folding) -> Host:
    arrays = [f.array(index) for index in range(len(f.inputs))]
    f.room.take([sum(array.size for array in arrays)], arrays[0].dtype)
    return np.concatenate(arrays, f.attributes["axis"])


def _slice(f: _Folding) -> Host:
    """Cut out; the result is a view."""
    x = f.array(0)
    starts, ends = f.ints(1, "starts") or [], f.ints(2, "ends") or []
    axes, steps = f.ints(3, "axes"), f.ints(4)
    parts = [slice(None)] * x.ndim
    for number, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = steps[number] if steps else 1
        start, end = (n + x.shape[axis] if n < 0 else n for n in (starts[number], ends[number]))
        parts[axis] = slice(max(start, 0), end if end >= 0 else None if step < 0 else 0, step)
    return x[tuple(parts)]


def _gather(f: _Folding) -> Host:
    x, indices, axis = f.array(0), f.array(1), f.attributes.get("axis", 0)
    f.room.take([indices.size, x.size // max(1, x.shape[axis])], x.dtype)
    return np.take(x, indices, axis)


def _shape(f: _Folding) -> Host:
    shape = f.array(0).shape[f.attributes.get("start", 0) : f.attributes.get("end")]
    return np.array(shape, np.int64)


def _constant_of_shape(f: _Folding) -> Host:
    shape = f.ints(0) or []
    value = np.asarray(f.attributes.get("value", np.zeros(1, "<f4")))
    f.room.take(shape, value.dtype)
    return np.full(shape, value.reshape(1)[0], value.dtype)


def _expand(f: _Folding) -> Host:
    x = f.array(0)
    shape = np.broadcast_shapes(x.shape, tuple(f.ints(1) or ()))
    f.room.take(shape, x.dtype)
    return np.ascontiguousarray(np.broadcast_to(x, shape))


def _tile(f: _Folding) -> Host:
    x, repeats = f.array(0), f.ints(1) or []
    f.room.take([x.size, prod(repeats)], x.dtype)
    return np.tile(x, repeats)


def _range(f: _Folding) -> Host:
    start, limit, step = (f.array(index).reshape(1)[0].item() for index in range(3))
    count = max(0, ceil((limit - start) / step))
    f.room.take([count], np.int64)
    return (np.arange(count) * step + start).astype(f.array(0).dtype)


def _transpose(f: _Folding) -> Host:
    return np.transpose(f.array(0), f.attributes.get("perm"))


def _where(f: _Folding) -> Host:
    arrays = [f.array(index) for index in range(3)]
    f.room.take(np.broadcast_shapes(*(array.shape for array in arrays)), arrays[1].dtype)
    return np.where(*arrays)


def _reduce_prod(f: _Folding) -> Host:
    axes = f.ints(1, "axes")
    keep = bool(f.attributes.get("keepdims", 1))
    return np.prod(f.array(0), axis=None if axes is None else tuple(axes), keepdims=keep, dtype=f.array(0).dtype)


def _elementwise(operation: Callable[..., Host]) -> Callable[[_Folding], Host]:
    """Return an operation of one or more arrays that broadcast; the result has the first one's type or is boolean."""

    def run(f: _Folding) -> Host:
        arrays = [f.array(index) for index in range(len(f.inputs))]
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        f.room.take((len(arrays), *shape), arrays[0].dtype)
        result = np.asarray(operation(*arrays))
        return result if result.dtype == np.bool_ else result.astype(arrays[0].dtype, copy=False)

    return run


def _quotient(a: Host, b: Host) -> Host:
    """Divide; whole numbers are rounded towards zero, as in C."""
    if a.dtype.kind == "f":
        return a / b
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


FOLDED: dict[str, Callable[[_Folding], Host]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda f: f.array(0),
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "Add": _elementwise(np.add),
    "Ceil": _elementwise(np.ceil),
    "Div": _elementwise(_quotient),
    "Equal": _elementwise(np.equal),
    "Floor": _elementwise(np.floor),
    "Max": _elementwise(lambda *a: np.maximum.reduce(np.broadcast_arrays(*a))),
    "Min": _elementwise(lambda *a: np.minimum.reduce(np.broadcast_arrays(*a))),
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Pow": _elementwise(np.power),
    "Reciprocal": _elementwise(np.reciprocal),
    "Sqrt": _elementwise(np.sqrt),
    "Sub": _elementwise(np.subtract),
}
