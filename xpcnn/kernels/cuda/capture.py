"""What recorded training needs beside the ops: batches of a data set on the device, and notes of what came out."""

from __future__ import annotations

from math import prod
from typing import Any

from xpcnn.backend import Array
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.cuda.augmentation import SOURCES, gather_augmented
from xpcnn.kernels.cuda.runtime import NotRecordedError, contiguous

__all__ = [
    "NotRecordedError",
    "advance",
    "contiguous",
    "copy",
    "gather",
    "gather_augmented",
    "mask",
    "recorder",
    "replace",
    "tally",
]

NUMBERS_A_STEP = 8  # float32 numbers from one step of Philox's counter


def recorder() -> runtime.Recorder:
    """Return what records work."""
    return runtime.Recorder()


def gather(
    images: Array, labels: Array, order: Array, progress: Array, count: int, step: int, dtype: Any, pixel: Any
) -> tuple[Array, Array]:
    """Return the ``count`` images and labels that are due: those from ``order[progress · step]`` on.

    Bytes become ``pixel * scale - shift`` with ``pixel = (scale, shift)``; other images stay as they are.
    """
    x = runtime.empty((count, *images.shape[1:]), dtype)
    t = runtime.empty((count,), labels.dtype)
    source = SOURCES[str(images.dtype)]
    scale, shift = pixel if source == "unsigned char" else (1.0, 0.0)
    text = runtime.text("batch.cu", **runtime.types(x), INDEX=runtime.index(x), SOURCE=source, LOSS="float")
    sizes = count, prod(images.shape[1:]), step
    arrays = images, labels, order, progress, x, t
    runtime.launch(text, "gather", runtime.blocks_for(x.size), *arrays, *sizes, float(scale), float(shift))
    return x, t


def mask(keys: Array, progress: Array, place: int, rate: float, shape: tuple[int, ...]) -> Array:
    """Return where NumPy's random float32 numbers of the key ``keys[progress, place]`` are at least ``rate``.

    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011: Philox4x64-10.
    """
    kept = runtime.empty(shape, bool)
    blocks = runtime.blocks_for(-(-kept.size // NUMBERS_A_STEP))
    arguments = keys, progress, kept, kept.size, place, keys.shape[1], float(rate)
    runtime.launch(runtime.text("philox.cu"), "mask", blocks, *arguments)
    return kept


def tally(logits: Array, labels: Array, right: Array, progress: Array) -> None:
    """Note how many logits (N, K) are largest at their label in ``right[progress]``."""
    logits = runtime.contiguous(logits)
    runtime.launch(_text(logits), "tally", 1, logits, labels, progress, right, *logits.shape)


def advance(loss: Array, losses: Array, progress: Array) -> None:
    """Note a loss in ``losses[progress]``, and go on."""
    runtime.launch(_text(losses), "advance", 1, loss, losses, progress, threads=1)


def copy(source: Array) -> Array:
    """Return an array's copy."""
    target = runtime.empty(source.shape, source.dtype)
    replace(target, source)
    return target


def replace(target: Array, source: Array) -> None:
    """Write an array into another of its shape and dtype."""
    source = runtime.contiguous(source)
    runtime.launch(_text(target), "replace", runtime.blocks_for(target.size), source, target, target.size)


def _text(x: Array) -> str:
    types = runtime.types(x)
    return runtime.text("batch.cu", **types, INDEX="count", SOURCE="unsigned char", LOSS=types["REAL"])
