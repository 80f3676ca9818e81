"""Sums of columns on CUDA: one launch, or two where there are many rows for few columns."""

from __future__ import annotations

from math import prod

from xpcnn.backend import Array
from xpcnn.kernels.cuda import layout, runtime

NEIGHBOURS = 32  # columns of a block
ENOUGH_BLOCKS = 1024
ENOUGH_ROWS = 128  # for each thread, before others share them
MOST_SPLITS = 256


def sum_rows(x: Array) -> Array:
    """Add up along axis 0, which stays with length 1."""
    x = runtime.contiguous(x)
    rows, columns = x.shape[0], prod(x.shape[1:])
    sums = runtime.empty((1, *x.shape[1:]), x.dtype)
    text = runtime.text("reduce.cu", **runtime.types(x))
    width = layout.power_of_two(columns, NEIGHBOURS)
    groups = -(-columns // width)
    of_a_block = ENOUGH_ROWS * (runtime.THREADS // width)
    splits = max(1, min(MOST_SPLITS, ENOUGH_BLOCKS // max(1, groups), -(-rows // of_a_block)))
    if splits == 1:
        runtime.launch(text, "sum_rows", groups, x, sums, rows, columns, width)
        return sums
    parts = runtime.empty((splits, columns), "float64")
    runtime.launch(text, "sum_rows_parts", groups * splits, x, parts, rows, columns, splits, width)
    runtime.launch(text, "sum_parts", groups, parts, sums, splits, columns, width)
    return sums
