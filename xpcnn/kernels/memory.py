"""Memory that NumPy's kernels use again and again: fresh pages cost more than the arithmetic done in them.

An array made here is an ordinary NumPy array. Its buffer is handed out again only when no array refers to it any
more, which the buffer's reference count tells; nobody has to give anything back.
"""

from __future__ import annotations

import os
import sys
import threading
from math import prod
from typing import Any

import numpy as np

SMALLEST = 1 << 16  # bytes; below this the allocator's own free lists do well
MOST_KEPT = 1 << 28  # bytes in all buffers, in use or not; beyond it arrays are made as usual

_lock = threading.Lock()
_buffers: dict[int, list[np.ndarray[Any, np.dtype[np.uint8]]]] = {}  # by size
_kept = 0


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an uninitialised C-ordered array, in a buffer that was used before if one is free."""
    global _kept
    dtype = np.dtype(dtype)
    wanted = prod(shape) * dtype.itemsize
    if wanted < SMALLEST:
        return np.empty(shape, dtype)
    size = _rounded(wanted)
    if not _lock.acquire(blocking=False):  # another thread, or a signal handler amid this function: never wait
        return np.empty(shape, dtype)
    try:
        same = _buffers.setdefault(size, [])
        for number in range(len(same)):
            if sys.getrefcount(same[number]) == _UNUSED:
                return same[number][:wanted].view(dtype).reshape(shape)
        if _kept + size > MOST_KEPT:
            return np.empty(shape, dtype)
        _kept += size
        same.append(np.empty(size, np.uint8))
        return same[-1][:wanted].view(dtype).reshape(shape)
    finally:
        _lock.release()


def release() -> None:
    """Forget all buffers; those in use live on until their arrays go."""
    global _kept
    with _lock:
        _buffers.clear()
        _kept = 0


def _rounded(size: int) -> int:
    """Round up by at most an eighth, so that nearly equal requests share buffers."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def _unused() -> int:
    """Return the reference count that a buffer has when only its list refers to it."""
    probe = [np.empty(1, np.uint8)]
    for number in range(1):
        count = sys.getrefcount(probe[number])
    return count


_UNUSED = _unused()


def _after_fork() -> None:
    """Start over in a forked child, whose lock another thread may have held."""
    global _lock
    _lock = threading.Lock()
    release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
