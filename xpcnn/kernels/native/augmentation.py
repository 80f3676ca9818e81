"""Augmentation of a batch in C, in one pass over each image."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.augmentation import Stages
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, address, plain

KINDS = {"uint8": "augment_u8", "float32": "augment_f32"}


class Job(ctypes.Structure):
    """``Augment`` of augmentation.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("images", "table", "out")),
        *((name, ctypes.c_int64) for name in ("count", "channels", "height", "width", "stages")),
    ]


def augment(images: Any, table: Floats, stages: Stages) -> Any:
    """Return a batch (N, C, H, W) of bytes or float32 after the stages."""
    images, table = plain(images, table.astype(np.float32, copy=False))
    out = memory.empty(images.shape, images.dtype)
    job = Job(address(images), address(table), address(out), *images.shape, stages.bits)
    if not function(KINDS[images.dtype.name], ctypes.c_int)(ctypes.byref(job)):
        raise MemoryError
    return out
