"""Batch normalisation on CUDA, with or without ReLU or ReLU6 after it: two launches forward, two backward.

A channel's values are shared out among blocks; each block of the second launch puts the parts together for itself,
which takes less time than a launch between the two. Only where that would be much for each block is there one.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from xpcnn.backend import Array
from xpcnn.kernels.cuda import layout, runtime

MOST_SPLITS = 1024  # of a channel
ENOUGH_BLOCKS = 2048  # more do not fill a GPU any better
ENOUGH_VALUES = 2048  # for a block
MOST_PARTS = 2048  # that a block puts together
MERGED = 8  # channels of a block that merges
PACK = 4  # values at most, where they are of different channels
NEIGHBOURS = 32  # threads side by side at most, where channels are


class Saved(NamedTuple):
    """What `backward` needs."""

    x: Array
    kept: Array  # (4, C): mean, what rounding took from it, biased variance, 1 / √(var + ε)
    gamma: Array | None
    beta: Array | None
    most: float | None  # which y is held below, and above 0; None is no bound
    fixed: bool  # whether the statistics were given


class Split(NamedTuple):
    """How the work is shared out among blocks, see norm.cu."""

    last: bool
    wide: int
    apart: int
    packs: int
    plane: int
    stride: int
    splits: int
    groups: int  # of channels, with a block for each split

    @property
    def width(self) -> int:
        """Channels of a block."""
        return self.apart * (self.wide if self.last else 1)


def forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    most: float | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
) -> tuple[Array, Saved, Array | None, Array | None]:
    """Return y, what backward needs, and the running mean and variance moved towards the batch's."""
    x, split, text = _prepared(x)
    channels = x.shape[1]
    parts = runtime.empty((3, split.splits, channels), "float64")
    runtime.launch(text, "norm_moments", split.groups * split.splits, x, parts, channels, *_places(split))
    if split.splits * split.width > MOST_PARTS:
        merged = runtime.empty((3, 1, channels), "float64")
        values = x.shape[0] * prod(x.shape[2:])
        arguments = parts, merged, channels, split.splits, MERGED, float(values)
        runtime.launch(text, "norm_merge_moments", -(-channels // MERGED), *arguments)
        parts = merged
    return _apply(text, split, x, parts, gamma, beta, eps, most, running_mean, running_var, momentum)


def fixed(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float, most: float | None
) -> tuple[Array, Saved]:
    """Return y by statistics given, in one launch, and what backward needs."""
    x, split, text = _prepared(x)
    return _apply(text, split, x, None, gamma, beta, eps, most, mean, var, None)[:2]


def backward(dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """Return (dx, dgamma, dbeta)."""
    kept, gamma, beta, most = saved[1:5]
    x, split, text = _prepared(saved.x)
    channels, places = x.shape[1], _places(split)
    dy = layout.settled(dy, layout.is_channels_last(x))
    bound = int(most is not None), float(most or 0.0)
    parts = runtime.empty((2, split.splits, channels), "float64")
    blocks = split.groups * split.splits
    runtime.launch(text, "norm_slopes", blocks, x, dy, kept, gamma, beta, parts, channels, *places, *bound)
    if split.splits * split.width > MOST_PARTS:
        merged = runtime.empty((2, 1, channels), "float64")
        arguments = parts, merged, channels, split.splits, MERGED
        runtime.launch(text, "norm_merge_slopes", -(-channels // MERGED), *arguments)
        parts = merged
    dx = layout.empty(x.shape, x.dtype, layout.is_channels_last(x))
    dgamma, dbeta = runtime.empty((channels,), kept.dtype), runtime.empty((channels,), kept.dtype)
    numbers = channels, *places, parts.shape[1], bound[0], int(saved.fixed), bound[1]
    runtime.launch(text, "norm_dx", blocks, x, dy, parts, kept, gamma, beta, dx, dgamma, dbeta, *numbers)
    return dx, dgamma, dbeta


def _apply(
    text: str,
    split: Split,
    x: Array,
    parts: Array | None,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    most: float | None,
    mean: Array | None,
    var: Array | None,
    momentum: float | None,
) -> tuple[Array, Saved, Array | None, Array | None]:
    """Launch what writes y, and the new statistics unless there is no momentum."""
    channels, dtype = x.shape[1], "float64" if str(x.dtype) == "float64" else "float32"
    gamma, beta, mean, var = (None if a is None else runtime.contiguous(a) for a in (gamma, beta, mean, var))
    mixed = [None if a is None or momentum is None else runtime.empty((channels,), dtype) for a in (mean, var)]
    kept = runtime.empty((4, channels), dtype)
    y = layout.empty(x.shape, x.dtype, layout.is_channels_last(x))
    arrays = x, parts, gamma, beta, mean, var, kept, *mixed, y
    merged = 0 if parts is None else parts.shape[1]
    numbers = channels, *_places(split), merged, int(most is not None), eps, float(most or 0.0), float(momentum or 0.0)
    runtime.launch(text, "norm_apply", split.groups * split.splits, *arrays, *numbers)
    return y, Saved(x, kept, gamma, beta, most, parts is None), *mixed


def _prepared(x: Array) -> tuple[Array, Split, str]:
    """Return x in an order that the kernels take, how to share it out, and the kernels' source."""
    last = layout.is_channels_last(x)
    x = layout.settled(x, last)
    split = _split(tuple(x.shape), x.dtype.itemsize, last)
    index = "int" if x.size < 1 << 30 else "count"  # steps past the end have to fit, too
    macros = {"INDEX": index, "WIDE": str(split.wide), "LAST": str(int(split.last))}
    return x, split, runtime.text("norm.cu", **runtime.types(x), **macros)


@lru_cache(1024)
def _split(shape: tuple[int, ...], itemsize: int, last: bool) -> Split:
    """Share out images (N, C, ...): single pixels have their channels side by side in any case."""
    images, channels, area = shape[0], shape[1], prod(shape[2:])
    if last or area == 1:
        wide = layout.widest(channels, itemsize, PACK)
        apart = layout.power_of_two(-(-channels // wide), NEIGHBOURS)
        packs, plane, stride, groups = images * area, 1, channels, -(-channels // (apart * wide))
    else:
        wide, apart, groups = layout.widest(area, itemsize), 1, channels
        packs, plane, stride = images * (area // wide), max(1, area // wide), channels * area
    values = packs * wide * apart  # of a block that has all
    splits = max(1, min(MOST_SPLITS, -(-ENOUGH_BLOCKS // max(1, groups)), values // ENOUGH_VALUES))
    return Split(last or area == 1, wide, apart, packs, plane, stride, max(1, min(splits, packs)), groups)


def _places(split: Split) -> tuple[Any, ...]:
    """Return how a thread finds its values."""
    return split.apart, split.packs, split.plane, split.stride, split.splits
