"""ONNX's operators that only arrange numbers differently, as far as the batch stays the first axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from xpcnn import layers as la
from xpcnn.interop.onnx_call import BATCHES, Call, Converter, Known, reads
from xpcnn.interop.onnx_fold import Unsupported
from xpcnn.interop.onnx_sketch import Tensor
from xpcnn.layers.base import Shape


@reads("axis")
def flatten(call: Call) -> Tensor:
    """Make one axis of all an example's axes."""
    rank = len(call.shape) + 1
    if call.whole("axis", 1) not in (1, 1 - rank):
        raise Unsupported(f"flattens from axis {call.whole('axis', 1)}, not from axis 1")
    return call.add(la.Flatten())


@reads("shape", "allowzero")
def reshape(call: Call) -> Tensor:
    """Give each example another shape."""
    known = call.given[1] if len(call.given) > 1 else None
    if known is None:
        targets = [call.wholes("shape") or []] * len(BATCHES)
    elif isinstance(known, Known):
        targets = [[int(n) for n in value.reshape(-1)[:64]] for value in known.values]
    else:
        raise Unsupported("takes a shape that depends on the images' values")
    if not all(targets) or len({len(target) for target in targets}) > 1:
        raise Unsupported(f"gives the shape {targets[0]}")
    heads, tails = [target[0] for target in targets], {tuple(target[1:]) for target in targets}
    if len(tails) > 1:
        raise Unsupported("gives a shape whose later axes depend on the batch's size")
    (tail,) = tails
    if 0 in tail and not call.whole("allowzero", 0):
        tail = tuple((*call.shape, *(0,) * 64)[axis] if n == 0 else n for axis, n in enumerate(tail))
    kept = (heads[0] == 0 and not call.whole("allowzero", 0)) or call.is_batch(heads)
    if min(tail, default=1) < (-1 if kept else 1) or 0 in tail or not (kept or heads[0] == -1):
        raise Unsupported(f"gives the shape {[heads[0], *tail]} to examples {call.shape}, which mixes images")
    return _arranged(call, tail)


@reads("axes")
def squeeze(call: Call) -> Tensor:
    """Take axes of length 1 away."""
    given, rank = call.listed(1, "axes"), len(call.shape) + 1
    if given is None:
        raise Unsupported("takes all axes of length 1 away, the batch's too if it is one image")
    gone = call.axes(given, rank)
    if 0 in gone or any(call.shape[axis - 1] != 1 for axis in gone):
        raise Unsupported(f"takes away the axes {given} of examples {call.shape}, which are not of length 1")
    return _arranged(call, tuple(n for axis, n in enumerate(call.shape, start=1) if axis not in gone))


@reads("axes")
def unsqueeze(call: Call) -> Tensor:
    """Put axes of length 1 in."""
    given = call.listed(1, "axes") or []
    rank = len(call.shape) + 1 + len(given)
    new = call.axes(given, rank)
    if 0 in new:
        raise Unsupported("puts an axis before the batch's")
    sizes = iter(call.shape)
    return _arranged(call, tuple(1 if axis in new else next(sizes) for axis in range(1, rank)))


@reads("perm")
def transpose(call: Call) -> Tensor:
    """Put axes in another order, which only arranges nothing if but axes of length 1 move."""
    shape = (0, *call.shape)
    perm = call.axes(call.wholes("perm") or list(range(len(shape)))[::-1], len(shape))
    if len(perm) != len(shape) or perm[0] != 0:
        raise Unsupported(f"puts the axes of {call.shape} in the order {perm}: the batch is not the first")
    long = [axis for axis in perm if shape[axis] != 1]
    if long != sorted(long):
        raise Unsupported(f"puts the axes of examples {call.shape} in the order {perm}")
    return _arranged(call, tuple(shape[axis] for axis in perm[1:]))


@reads("start", "end")
def shape(call: Call) -> Known:
    """Return the sizes themselves, for each size of a batch that is tried."""
    part = slice(call.whole("start", 0), call.node.attributes.get("end"))
    return Known(tuple(np.array((batch, *call.shape)[part], np.int64) for batch in BATCHES))


@reads()
def size(call: Call) -> Known:
    """Return how many numbers there are, for each size of a batch that is tried."""
    return Known(tuple(np.array(batch * prod(call.shape), np.int64) for batch in BATCHES))


@reads("to", "saturate", "round_mode")
def cast(call: Call) -> Tensor:
    """Convert floats to floats, which all have the model's type."""
    if call.whole("to", 1) not in (1, 10, 11, 16):
        raise Unsupported(f"converts to type {call.whole('to', 1)}, not to floats")
    return call.x


@reads()
def identity(call: Call) -> Tensor:
    """Do nothing."""
    return call.x


@reads("seed", "ratio")
def dropout(call: Call) -> Tensor:
    """Drop values in training."""
    rate, training = call.number(1, "ratio", 0.5), call.constant(2)
    if training is not None and training.any():
        raise Unsupported("drops values in prediction, too (training_mode)")
    return call.add(la.Dropout(0.5 if rate is None else rate))


def _arranged(call: Call, shape: Shape | Sequence[int]) -> Tensor:
    """Give each example a shape, of whose sizes one may be -1."""
    shape = tuple(shape)
    if shape == call.shape:
        return call.x
    if len(shape) == 1 and shape[0] in (-1, prod(call.shape)):
        return call.add(la.Flatten()) if len(call.shape) > 1 else call.x
    if not shape:
        raise Unsupported(f"makes single numbers of examples {call.shape}")
    return call.add(la.Reshape(shape))


SHAPING: dict[str, Converter] = {
    "Cast": cast,
    "Dropout": dropout,
    "Flatten": flatten,
    "Identity": identity,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
