"""Products of matrices by cuBLAS."""

from __future__ import annotations

from xpcnn.backend import Array


def matmul(a: Array, b: Array, out: Array) -> None:
    """Write a·b to out."""
    import cupy

    cupy.matmul(a, b, out=out)
