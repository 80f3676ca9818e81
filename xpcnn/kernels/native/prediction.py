"""Convolutions that are run again and again with the same arrays: what stays the same is looked up once.

A small network's prediction of one image is mostly Python between calls of C. Here a call is left with little: is it
still the same arrays? Where do image and result lie? Values are read anew each time, so writing to an array counts.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.native import convolution, depthwise, elementwise
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, passes, shares
from xpcnn.kernels.window import Window

Activation = tuple[str, tuple[float, ...]]  # a pass of elementwise.c and its numbers

LINE = 16  # floats, to which parts of the workspace are aligned

_here = threading.local()  # .space, .address: memory for each thread


class Fold(ctypes.Structure):
    """``Fold`` of norm.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("filters", "each")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "gamma", "beta", "mean", "var")),
        *((name, ctypes.c_void_p) for name in ("new_weight", "new_bias")),
    ]


class Bound:
    """A convolution of images of one shape by certain arrays, with or without the normalisation it takes in."""

    def __init__(
        self,
        shape: tuple[int, ...],
        win: Window,
        groups: int,
        arrays: Sequence[Floats | None],
        eps: float,
        activation: Activation | None,
    ) -> None:
        weight, _, *norm = arrays
        assert weight is not None
        self._refs = [None if array is None else weakref.ref(array) for array in arrays]  # keeps no old weights alive
        self._out = (shape[0], weight.shape[0], *win.out)
        self._cost = shape[0] * weight.size * prod(win.out)
        where = [None if array is None else array.__array_interface__["data"][0] for array in arrays]
        self._weight, self._bias = where[:2]
        one_each = groups == shape[1] == weight.shape[0] and groups > 1 and prod(win.size) <= convolution.MOST_PIXELS
        self._conv: convolution.Conv | depthwise.Depthwise
        if one_each:
            self._conv = depthwise.described(win, shape[0], shape[1])
            self._cost = prod(self._out) * win.taps
        else:
            self._conv = convolution.forward_of(win, shape[0], shape[1], weight.shape[0], groups)
        name = "depthwise" if one_each else "conv"
        self._run = function(f"{name}_forward")
        self._needs = function(f"{name}_workspace" if one_each else "conv_forward_workspace", ctypes.c_int64)
        self._between = () if one_each else (None,)  # what only the other has: the gradient of a pooled image
        self._fold = None
        self._weights, self._biases = _lines(weight.size), _lines(weight.shape[0])
        if norm:
            self._fold = weight.shape[0], weight.size // weight.shape[0], eps, *where
        self._activation = activation
        self._spaces: dict[int, int] = {}  # floats of workspace, by the number of threads

    def is_of(self, arrays: Sequence[Floats | None]) -> bool:
        """Whether these are the arrays."""
        for ref, array in zip(self._refs, arrays, strict=True):  # noqa: SIM110  all() takes twice as long
            if (ref if ref is None else ref()) is not array:
                return False
        return True

    def __call__(self, x: Floats) -> Floats:
        """Return the convolution, after the activation if there is one."""
        x = x if x.flags.c_contiguous else np.ascontiguousarray(x)
        y: Floats = memory.empty(self._out, np.float32)
        parts = shares(self._cost)
        if (needed := self._spaces.get(parts)) is None:
            needed = self._spaces[parts] = self._needs(ctypes.byref(self._conv), parts)
        weight, bias = self._weight, self._bias
        space = _workspace(self._weights + self._biases + needed if self._fold else needed)
        if self._fold:
            weight, bias, space = space, space + 4 * self._weights, space + 4 * (self._weights + self._biases)
            function("fold_norm")(ctypes.byref(Fold(*self._fold, weight, bias)))
        pointer, result = ctypes.c_void_p, y.__array_interface__["data"][0]
        self._run(
            ctypes.byref(self._conv), pointer(x.__array_interface__["data"][0]), *self._between, pointer(weight),
            pointer(bias), pointer(result), pointer(space), parts,
        )  # fmt: skip
        if self._activation is not None:
            name, numbers = self._activation
            job = elementwise.Pass(a=result, y=result, count=y.size, numbers=numbers)
            function(name)(ctypes.byref(job), passes(y.size))
        return y


def bound(
    x: Floats,
    win: Window,
    groups: int,
    weight_shape: tuple[int, ...],
    arrays: Sequence[Any],
    eps: float = 0.0,
    activation: Activation | None = None,
) -> Bound | None:
    """Return a convolution of images such as x; None where something is not as it is for most.

    Parameters
    ----------
    arrays : (weight, bias or None), or the same with (gamma, beta, mean, var)
        All of them contiguous and of float32, else there is none.
    eps : float
        ε of the normalisation.
    activation : (str, tuple of float), optional
        A pass of elementwise.c over what was made, and its numbers.
    """
    weight, bias, *norm = arrays
    rows = [array for array in (bias, *norm) if array is not None]
    plain = all(type(a) is np.ndarray and a.dtype == np.float32 and a.flags.c_contiguous for a in (weight, *rows))
    fits = weight.shape == weight_shape and all(row.shape == weight_shape[:1] for row in rows)
    if not plain or not fits or any(one is None for one in norm) or 0 in (*x.shape, *win.out, *weight_shape):
        return None
    return Bound(x.shape, win, groups, arrays, eps, activation)


def _workspace(floats: int) -> int:
    """Return the address of this thread's memory, of at least so many floats."""
    if getattr(_here, "size", 0) < floats:
        _here.space = np.empty(floats + LINE, np.float32)
        _here.size = floats
        address = _here.space.__array_interface__["data"][0]
        _here.address = -(-address // (4 * LINE)) * 4 * LINE
    return int(_here.address)


def _lines(floats: int) -> int:
    """Round up to whole lines."""
    return -(-floats // LINE) * LINE
