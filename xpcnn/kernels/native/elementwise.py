"""Passes over arrays in C."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Bytes, Floats, address, passes, plain

FIELDS = (  # of an optimizer's arrays, by the number of its moments
    ("a", "b", "y"),
    ("a", "b", "v", "y", "new_v"),
    ("a", "b", "v", "w", "y", "new_v", "new_w"),
)
MOST_NUMBERS = 8  # of an optimizer's rule


class Pass(ctypes.Structure):
    """``Pass`` of elementwise.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b", "v", "w", "mask", "y", "new_v", "new_w", "active")),
        ("count", ctypes.c_int64),
        ("numbers", ctypes.c_double * MOST_NUMBERS),
    ]


def relu(x: Floats) -> tuple[Floats, Bytes]:
    """Return max(x, 0), and where it is above 0."""
    y, active = memory.empty(x.shape, np.float32), memory.empty(x.shape, bool)
    _run("relu_forward", a=x, y=y, active=active)
    return y, active


def keep(x: Floats, mask: Bytes) -> Floats:
    """Return x where the mask is true, and 0 elsewhere."""
    y: Floats = memory.empty(x.shape, np.float32)
    _run("relu_backward", a=x, mask=mask, y=y)
    return y


def clip(x: Floats, low: float, high: float, factor: float, shift: float) -> Floats:
    """Return ``factor·x + shift`` held within bounds."""
    y: Floats = memory.empty(x.shape, np.float32)
    _run("clip", (factor, shift, low, high), a=x, y=y)
    return y


def hard_swish(x: Floats) -> Floats:
    """Return ``x · min(max(x + 3, 0), 6) / 6``."""
    y: Floats = memory.empty(x.shape, np.float32)
    _run("hard_swish", a=x, y=y)
    return y


def add(a: Floats, b: Floats) -> Floats:
    """Return a + b."""
    y: Floats = memory.empty(a.shape, np.float32)
    _run("add", a=a, b=b, y=y)
    return y


def update(name: str, numbers: tuple[float, ...], p: Floats, g: Floats, *moments: Floats) -> tuple[Floats, ...]:
    """Return a parameter and its moments, all of one shape, after an optimizer's step."""
    new = tuple(memory.empty(p.shape, np.float32) for _ in range(1 + len(moments)))
    arrays = [*plain(p, g, *moments), *new]
    job = Pass(count=p.size, numbers=numbers)
    for field, array in zip(FIELDS[len(moments)], arrays, strict=True):
        setattr(job, field, address(array))
    function(name)(ctypes.byref(job), passes(p.size * len(arrays)))
    return new


def _run(name: str, numbers: tuple[float, ...] = (), **arrays: Any) -> None:
    held = dict(zip(arrays, plain(*arrays.values()), strict=True))
    job = Pass(count=held["y"].size, numbers=numbers, **{key: address(array) for key, array in held.items()})
    function(name)(ctypes.byref(job), passes(held["y"].size))
