"""Products of matrices in C, with the same threads as everything else: BLAS's own would spin beside them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, address, shares


class Product(ctypes.Structure):
    """``Product`` of gemm.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "cols", "depth", "a_row", "a_col", "b_row", "b_col")),
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "workspace")),
    ]


def matmul(a: Floats, b: Floats) -> Floats:
    """Return a·b for matrices (M, K) and (K, N)."""
    a, b = _stepping(a), _stepping(b)
    c: Floats = memory.empty((a.shape[0], b.shape[1]), np.float32)
    job = Product(*c.shape, a.shape[1], *_steps(a), *_steps(b))
    parts = shares(c.size * a.shape[1])
    space = memory.empty((function("product_workspace", ctypes.c_int64)(ctypes.byref(job), parts),), np.float32)
    job.a, job.b, job.c, job.workspace = map(address, (a, b, c, space))
    function("product")(ctypes.byref(job), parts)
    return c


def _stepping(x: Floats) -> Floats:
    """Return a matrix with neighbouring floats along one of its axes: as it is, or copied."""
    return x if x.flags.c_contiguous or x.flags.f_contiguous else np.ascontiguousarray(x)


def _steps(x: Floats) -> Any:
    """Return how many floats lie from row to row and from column to column."""
    return (x.shape[1], 1) if x.flags.c_contiguous else (1, x.shape[0])
