"""Augmented batches of a data set on the device, in one launch."""

from __future__ import annotations

from math import prod
from typing import Any

from xpcnn.backend import Array
from xpcnn.kernels.augmentation import Stages
from xpcnn.kernels.cuda import runtime

SOURCES = {"uint8": "unsigned char", **runtime.NAMES}


def gather_augmented(
    images: Array,
    labels: Array,
    order: Array,
    progress: Array,
    table: Array,
    stages: Stages,
    count: int,
    step: int,
    dtype: Any,
    pixel: tuple[float, float],
    classes: int = 0,
    probability: Any = "float32",
) -> tuple[Array, Array]:
    """Return the ``count`` images and targets that are due, those from ``order[progress · step]`` on, augmented.

    Row i of the table (N, COLUMNS) is for the i-th image of the order. Bytes become ``pixel * scale - shift`` with
    ``pixel = (scale, shift)``; other images stay as they are. Targets are labels (count,) or, where images are mixed,
    probabilities (count, classes) of the dtype ``probability``.
    """
    x = runtime.empty((count, *images.shape[1:]), dtype)
    t = runtime.empty((count, classes), probability) if stages.mix else runtime.empty((count,), labels.dtype)
    source = SOURCES[str(images.dtype)]
    scale, shift = pixel if source == "unsigned char" else (1.0, 0.0)
    types = runtime.types(x) | {"LOSS": runtime.NAMES[str(t.dtype)] if stages.mix else "float"}
    text = runtime.text("augmentation.cu", **types, INDEX=runtime.index(x), SOURCE=source)
    targets = (None, t) if stages.mix else (t, None)
    sizes = count, *images.shape[1:], step, stages.bits, classes
    blocks = runtime.blocks_for(max(prod(x.shape), prod(t.shape)))
    arrays = images, labels, order, progress, table, x, *targets
    runtime.launch(text, "gather_augmented", blocks, *arrays, *sizes, float(scale), float(shift))
    return x, t
