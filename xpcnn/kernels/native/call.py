"""How arrays and numbers go down to C."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from xpcnn.kernels import threads

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, Any]

MOST_SHARES = 256  # as threads.c has it
WORTH_FLOPS = 1 << 22  # multiply-adds below which waking a thread takes longer than it saves
WORTH_PASSES = 1 << 18  # the same of elements read in elementwise work


def shares(multiply_adds: int) -> int:
    """Return how many threads to use for products and sums."""
    return min(threads.thread_count(), MOST_SHARES) if multiply_adds > WORTH_FLOPS else 1


def passes(elements: int) -> int:
    """Return how many threads to use for a pass over so many elements."""
    return min(threads.thread_count(), MOST_SHARES) if elements > WORTH_PASSES else 1


def address(array: Any) -> ctypes.c_void_p:
    """Return where an array's elements are; None is no array."""
    return ctypes.c_void_p(None if array is None else array.__array_interface__["data"][0])


def plain(*arrays: Any) -> list[Any]:
    """Return the arrays in C order: as they are, or copied."""
    return [None if array is None else np.ascontiguousarray(array) for array in arrays]
