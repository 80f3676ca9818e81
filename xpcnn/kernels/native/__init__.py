"""Kernels in C for float32 arrays on the CPU, which NumPy's ops use where the machine has a C compiler."""

from xpcnn.kernels.native.build import chosen, description, library

__all__ = ["chosen", "description", "library"]
