"""The few inner steps of the ops that are worth a special version, behind one seam.

Every step has an agnostic version in :mod:`xpcnn.kernels.reference`; NumPy and CUDA replace those that pay,
with the same names and signatures. Nothing above this package knows which one ran.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from xpcnn.backend import Namespace, is_cupy, is_numpy
from xpcnn.kernels.window import Window

__all__ = ["Window", "of"]


@lru_cache
def of(xp: Namespace) -> ModuleType:
    """Return the kernels for a namespace: NumPy's, CUDA's, or the agnostic reference."""
    if is_numpy(xp):
        from xpcnn.kernels import numpy_cpu

        return numpy_cpu
    if is_cupy(xp):
        from xpcnn.kernels import cuda

        return cuda
    from xpcnn.kernels import reference

    return reference
