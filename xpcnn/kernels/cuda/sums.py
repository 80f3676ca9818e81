"""Sums over many numbers in two steps of a fixed order: each block adds up a part, then the parts are added up."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from xpcnn.backend import Array
from xpcnn.kernels.cuda import runtime

MOST_CHUNKS = 32  # of a sum: the second step adds them one after another
ENOUGH_BLOCKS = 1024  # for the largest GPUs
SHORTEST = 1024  # numbers of a chunk


def chunks_of(sums: int, numbers: int) -> int:
    """Return into how many chunks to cut each of some sums, of so many numbers in all of them."""
    return max(1, min(MOST_CHUNKS, ENOUGH_BLOCKS // sums, -(-numbers // (sums * SHORTEST))))


def wide(x: Array) -> Any:
    """Return the dtype that sums of x's elements are kept in."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def add_up(parts: Array, *sums: Array) -> None:
    """Add up rows of parts, in order, and write the columns to one or two arrays, one after the other."""
    first, second = (*sums, None)[:2]
    sizes = parts.shape[0], first.size, 0 if second is None else second.size
    text = runtime.text("sums.cu", **runtime.types(first))
    runtime.launch(text, "add_up", runtime.blocks_for(prod(parts.shape[1:])), parts, first, second, *sizes)
