"""Cross-entropy of softmax in C, in one call."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, address, plain


def cross_entropy(logits: Floats, targets: Any, reduction: str, smoothing: float = 0.0) -> tuple[Floats, Floats] | None:
    """Return the loss, () or (N,) without a reduction, and its gradient (N, K); None if a label is out of range.

    Targets are labels (N,) or probabilities (N, K) of the logits' dtype.
    """
    rows, classes = logits.shape
    labels = targets.astype(np.int64, copy=False) if targets.ndim == 1 else None
    given = plain(logits, labels, targets if labels is None else None)
    losses, slopes = np.empty(rows, np.float32), np.empty((rows, classes), np.float32)
    sizes = ctypes.c_double(smoothing), ctypes.c_int64(rows), ctypes.c_int64(classes)
    into = np.empty(classes), np.empty(classes), losses, slopes
    wrong = function("cross_entropy", ctypes.c_int64)(*map(address, given), *sizes, *map(address, into))
    if wrong >= 0:
        return None
    if reduction == "none":
        return losses, slopes
    total = losses.sum()
    return (total * (1.0 / rows), slopes * (1.0 / rows)) if reduction == "mean" else (total, slopes)
