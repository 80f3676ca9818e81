"""Cross-entropy of softmax for labels in C, in one call."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, address, plain


def cross_entropy(logits: Floats, labels: Any, reduction: str) -> tuple[Floats, Floats] | None:
    """Return the loss, () or (N,) without a reduction, and its gradient (N, K); None if a label is out of range."""
    rows, classes = logits.shape
    logits, labels = plain(logits, labels.astype(np.int64, copy=False))
    losses, slopes = np.empty(rows, np.float32), np.empty((rows, classes), np.float32)
    size = ctypes.c_int64(rows), ctypes.c_int64(classes)
    wrong = function("cross_entropy", ctypes.c_int64)(
        address(logits), address(labels), *size, address(losses), address(slopes)
    )
    if wrong >= 0:
        return None
    if reduction == "none":
        return losses, slopes
    total = losses.sum()
    return (total * (1.0 / rows), slopes * (1.0 / rows)) if reduction == "mean" else (total, slopes)
