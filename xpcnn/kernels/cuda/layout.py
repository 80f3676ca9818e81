"""The order in which arrays (N, C, *size) lie in memory: as their axes say, or with the channels last."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array
from xpcnn.kernels.cuda import runtime

WIDEST = 16  # bytes that a thread reads or writes at once


def is_channels_last(x: Array) -> bool:
    """Whether an array's channels lie side by side, which in its own order they do not."""
    return bool(x.ndim > 2 and not x.flags.c_contiguous and _moved(x).flags.c_contiguous)


def settled(x: Array, last: bool) -> Array:
    """Return x in one of the two orders: as it is, or copied."""
    if not last:
        return runtime.contiguous(x)
    there = runtime.contiguous(_moved(x))
    return there.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def empty(shape: tuple[int, ...], dtype: Any, last: bool) -> Array:
    """Return new memory in one of the two orders."""
    if not last:
        return runtime.empty(shape, dtype)
    there = runtime.empty((shape[0], *shape[2:], shape[1]), dtype)
    return there.transpose(0, len(shape) - 1, *range(1, len(shape) - 1))


def widest(run: int, itemsize: int, most: int = 8) -> int:
    """Return how many elements a thread takes at once, of runs that begin where the last one ended."""
    return next(wide for wide in (8, 4, 2, 1) if wide <= most and wide * itemsize <= WIDEST and not run % wide)


def power_of_two(least: int, most: int) -> int:
    """Return the first power of two that is not below ``least``, or ``most``, which is one."""
    power = 1
    while power < min(least, most):
        power *= 2
    return power


def _moved(x: Array) -> Array:
    """Return x with its channels as the last axis."""
    return x.transpose(0, *range(2, x.ndim), 1)
