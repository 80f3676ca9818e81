"""What convolution and pooling mean: loops over output positions and kernel elements, written from the definitions.

Nothing here knows `xpcnn.ops`. Arrays are float64, or complex128 whose imaginary part carries a derivative (see
`xpcnn.verify.expected`); only batch and channels are vectorised.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product, takewhile
from math import ceil, floor, inf
from typing import Any

import numpy as np

Array = Any
Ints = tuple[int, ...]
Rows = list[list[int]]  # [output position][kernel element] -> input position, along one axis


def rows(
    size: int, kernel: int, stride: int, padding: Ints, dilation: int, center: int | None, flip: bool, ceil_mode: bool
) -> tuple[Rows, tuple[float, float]]:
    """Return what each kernel element meets at each output position of an axis, and the bounds of the padded input."""
    if center is not None:  # an output exists while any of its inputs lies in the image, and i < size
        sign = -1 if flip else 1
        met = [[i * stride + sign * (a - center) * dilation for a in range(kernel)] for i in range(size)]
        return list(takewhile(lambda row: any(0 <= p < size for p in row), met)), (-inf, inf)
    start, end, span = -padding[0], size + padding[1], dilation * (kernel - 1) + 1
    met = []
    while start + span <= end or (ceil_mode and start + span < end + stride and start < size):
        met.append([start + a * dilation for a in range(kernel)])
        start += stride
    return [row[::-1] for row in met] if flip else met, (-padding[0], end)


def windows(
    size: Ints, kernel: Ints, stride: Any, padding: Any, dilation: Any, mode: str, center: Any, ceil_mode: bool = False
) -> tuple[list[Rows], list[tuple[float, float]]]:
    """Return `rows` and bounds for every axis."""
    n = len(size)
    strides, dilations = each(stride, n), each(dilation, n)
    centers = (None,) * n if center is None else each(center, n)
    pads = pairs(padding, size, kernel, strides, dilations)
    axes = [
        rows(length, k, s, pad, d, c, mode == "convolution", ceil_mode)
        for length, k, s, pad, d, c in zip(size, kernel, strides, pads, dilations, centers, strict=True)
    ]
    return [met for met, _ in axes], [bounds for _, bounds in axes]


def pairs(padding: Any, size: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> list[Ints]:
    """Return (before, after) for every axis; "same" makes ceil(size / stride) outputs, an odd pixel goes after."""
    if padding == "same":
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        totals = [max(0, (ceil(n / s) - 1) * s + span - n) for n, s, span in zip(size, stride, spans, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    entries = each(0 if padding == "valid" else padding, len(size))
    return [each(entry, 2) for entry in entries]


def each(value: Any, n: int) -> Any:
    """Return one value per axis."""
    return (value,) * n if isinstance(value, int) else value


def positions(met: list[Rows]) -> Iterator[tuple[Ints, list[tuple[Ints, Ints]]]]:
    """Yield each output position with its pairs (kernel element, input position), in the kernel's order."""
    elements = list(product(*(range(len(axis[0])) for axis in met)))
    for o in product(*(range(len(axis)) for axis in met)):
        lines = [axis[i] for axis, i in zip(met, o, strict=True)]
        yield o, [(k, tuple(line[a] for line, a in zip(lines, k, strict=True))) for k in elements]


def inside(place: Ints, size: Ints) -> bool:
    """Whether a position lies in the image."""
    return all(0 <= p < n for p, n in zip(place, size, strict=True))


def conv(
    x: Array, weight: Array, bias: Array = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, mode: str = "cross-correlation", center: Any = None,
) -> Array:  # fmt: skip
    """Add up weight · x over a window's elements and a group's channels; outside the image x is zero."""
    size = x.shape[2:]
    met, _ = windows(size, weight.shape[2:], stride, padding, dilation, mode, center)
    w = weight.reshape(groups, -1, *weight.shape[1:])  # (G, F/G, C/G, *kernel)
    y = zeros((x.shape[0], weight.shape[0], *map(len, met)), x, weight, bias)
    for o, elements in positions(met):
        for k, place in elements:
            if inside(place, size):
                y[(..., *o)] += matched(x[(..., *place)], w[(..., *k)])
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(size))


def conv_transpose(
    x: Array, weight: Array, bias: Array = None, *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """Send every input to i·s + a·d for every kernel element a, and crop the result by the padding."""
    size, kernel, n = x.shape[2:], weight.shape[2:], x.ndim - 2
    strides, dilations = each(stride, n), each(dilation, n)
    full = [(i - 1) * s + d * (k - 1) + 1 for i, s, k, d in zip(size, strides, kernel, dilations, strict=True)]
    if padding == "same":  # the crop that undoes the "same" padding of the convolution from n·s to n
        out = tuple(i * s for i, s in zip(size, strides, strict=True))
        crop = pairs("same", out, kernel, strides, dilations)
    else:
        crop = pairs(padding, size, kernel, strides, dilations)
        ends = zip(full, crop, each(output_padding, n), strict=True)
        out = tuple(length - sum(pair) + extra for length, pair, extra in ends)
    w = np.swapaxes(weight.reshape(groups, -1, *weight.shape[1:]), 1, 2)  # (G, F/G, C/G, *kernel)
    y = zeros((x.shape[0], groups * weight.shape[1], *out), x, weight, bias)
    for i in product(*map(range, size)):
        for a in product(*map(range, kernel)):
            axes = zip(i, a, strides, dilations, crop, strict=True)
            place = tuple(p * s + e * d - before for p, e, s, d, (before, _) in axes)
            if inside(place, out):
                y[(..., *place)] += matched(x[(..., *i)], w[(..., *a)])
    return y if bias is None else y + bias.reshape(-1, *(1,) * n)


def matched(x: Array, w: Array) -> Array:
    """Multiply one position's channels (N, C) by one kernel element of every filter (G, F/G, C/G): (N, F)."""
    grouped = x.reshape(x.shape[0], w.shape[0], w.shape[2]).swapaxes(0, 1)  # (G, N, C/G)
    return (grouped @ w.swapaxes(1, 2)).swapaxes(0, 1).reshape(x.shape[0], w.shape[0] * w.shape[1])


def max_pool(
    x: Array, kernel_size: Any, *, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    mode: str = "cross-correlation", center: Any = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Return each window's first maximum inside the image and its flat position; -inf and -1 where none is inside."""
    size = x.shape[2:]
    kernel = each(kernel_size, len(size))
    met, _ = windows(size, kernel, stride or kernel, padding, dilation, mode, center, ceil_mode)
    shape = (*x.shape[:2], *map(len, met))
    y: Array = zeros(shape, x) - inf
    index: Array = np.full(shape, -1)
    for o, elements in positions(met):
        places = [place for _, place in elements if inside(place, size)]
        if places:
            y[(..., *o)], first = first_max(np.stack([x[(..., *place)] for place in places], axis=-1))
            index[(..., *o)] = np.array([np.ravel_multi_index(place, size) for place in places])[first]
    return y, index


def first_max(values: Array) -> tuple[Array, Array]:
    """Return the maxima along the last axis and where they are; the first wins."""
    first = np.argmax(values.real, axis=-1)
    return np.take_along_axis(values, first[..., None], axis=-1)[..., 0], first


def avg_pool(
    x: Array, kernel_size: Any, *, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    count_include_pad: bool = True, mode: str = "cross-correlation", center: Any = None,
) -> Array:  # fmt: skip
    """Average each window over its elements in the padded input, or over those in the image; none make 0."""
    size = x.shape[2:]
    kernel = each(kernel_size, len(size))
    met, bounds = windows(size, kernel, stride or kernel, padding, dilation, mode, center, ceil_mode)
    y = zeros((*x.shape[:2], *map(len, met)), x)
    for o, elements in positions(met):
        places = [place for _, place in elements if inside(place, size)]
        counted = len(places)
        if count_include_pad:
            counted = sum(all(b[0] <= p < b[1] for p, b in zip(place, bounds, strict=True)) for _, place in elements)
        y[(..., *o)] = sum(x[(..., *place)] for place in places) / max(counted, 1)
    return y


def adaptive_avg_pool2d(x: Array, output_size: Any) -> Array:
    """Average over bins from floor(i·n / out) up to ceil((i + 1)·n / out)."""
    size = x.shape[2:]
    out = tuple(n if o is None else o for n, o in zip(size, each(output_size, 2), strict=True))
    y = zeros((*x.shape[:2], *out), x)
    for i, j in product(*map(range, out)):
        bins = [slice(floor(p * n / o), ceil((p + 1) * n / o)) for p, n, o in zip((i, j), size, out, strict=True)]
        y[..., i, j] = x[(..., *bins)].mean(axis=(2, 3))
    return y


def global_avg_pool2d(x: Array) -> Array:
    """Average each channel."""
    return x.mean(axis=(2, 3))


def global_max_pool2d(x: Array) -> tuple[Array, Array]:
    """Return each channel's first maximum and its flat position."""
    return first_max(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]))


def conv2d_relu_max_pool2d(x: Array, weight: Array, bias: Array = None, *, pool_size: Any = 2, **options: Any) -> Array:
    """Convolve, rectify, take the first maximum."""
    y = conv(x, weight, bias, **options)
    return max_pool(np.where(y.real > 0, y, 0), pool_size)[0]


def zeros(shape: Ints, *like: Array) -> Array:
    """Return zeros that can hold any of the given arrays."""
    return np.zeros(shape, np.result_type(np.float64, *(array for array in like if array is not None)))
