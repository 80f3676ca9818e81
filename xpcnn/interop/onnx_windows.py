"""ONNX's operators over windows of pixels as layers: convolutions, pooling, padding, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn import layers as la
from xpcnn.interop.onnx_call import Call, Converter, Known, reads
from xpcnn.interop.onnx_fold import Unsupported
from xpcnn.interop.onnx_sketch import Tensor
from xpcnn.layers.base import Shape

CONVS = {1: la.Conv1D, 2: la.Conv2D, 3: la.Conv3D}
TRANSPOSED = {1: la.ConvTranspose1D, 2: la.ConvTranspose2D, 3: la.ConvTranspose3D}
MAX_POOLS = {1: la.MaxPool1D, 2: la.MaxPool2D, 3: la.MaxPool3D}
AVG_POOLS = {1: la.AvgPool1D, 2: la.AvgPool2D, 3: la.AvgPool3D}
MOST_PIXELS = 1 << 20  # that a window reaches over, or steps, along an axis
WINDOW = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
REPEATING = {  # how a place in the larger image becomes one in the smaller, and is rounded; the last for factor 2 only
    ("asymmetric", "floor"), ("tf_half_pixel_for_nn", "floor"),
    *((way, rounding) for way in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
      for rounding in ("round_prefer_floor", "round_prefer_ceil")),
}  # fmt: skip


@reads(*WINDOW, "group")
def conv(call: Call) -> Tensor:
    """Convolve: the weight lies as it does here."""
    weight, bias = call.needed(1), call.constant(2)
    groups, axes = call.whole("group", 1), weight.ndim - 2
    options = _window(call, weight.shape[2:])
    if axes not in CONVS or groups < 1 or weight.shape[1] * groups != call.shape[0]:
        raise Unsupported(f"has a weight {weight.shape} in {groups} groups for examples {call.shape}")
    layer = CONVS[axes](weight.shape[0], groups=groups, bias=bias is not None, **options)
    return call.add(layer, {"weight": weight} | ({} if bias is None else {"bias": bias}))


@reads(*WINDOW, "group", "output_padding", "output_shape")
def conv_transpose(call: Call) -> Tensor:
    """Spread: the weight lies as it does here."""
    weight, bias = call.needed(1), call.constant(2)
    groups, axes = call.whole("group", 1), weight.ndim - 2
    extra = call.wholes("output_padding") or [0] * axes
    if axes not in TRANSPOSED or groups < 1 or len(extra) != axes or max(extra) > MOST_PIXELS:
        raise Unsupported(f"has a weight {weight.shape} in {groups} groups and output_padding {extra}")
    options = _window(call, weight.shape[2:], extra)
    layer = TRANSPOSED[axes](
        weight.shape[1] * groups, groups=groups, bias=bias is not None, output_padding=_short(extra), **options
    )
    return call.add(layer, {"weight": weight} | ({} if bias is None else {"bias": bias}))


@reads(*WINDOW, "ceil_mode", "storage_order")
def max_pool(call: Call) -> Tensor:
    """Take the maximum of windows."""
    kernel = call.wholes("kernel_shape") or []
    return call.add(_layer(MAX_POOLS, kernel)(**_window(call, kernel), ceil_mode=bool(call.whole("ceil_mode", 0))))


@reads(*WINDOW, "ceil_mode", "count_include_pad")
def average_pool(call: Call) -> Tensor:
    """Take the mean of windows."""
    kernel = call.wholes("kernel_shape") or []
    ceil, counted = (bool(call.whole(name, 0)) for name in ("ceil_mode", "count_include_pad"))
    options = _window(call, kernel) | {"ceil_mode": ceil}
    plain = options["padding"] == 0 and not ceil  # nothing to count: xpcnn's own word for it
    return call.add(_layer(AVG_POOLS, kernel)(**options, count_include_pad=counted or plain))


@reads()
def global_average_pool(call: Call) -> Tensor:
    """Average all pixels; the axes stay, of length 1."""
    size = call.shape[1:]
    layer = la.AdaptiveAvgPool2D(1) if len(size) == 2 else _layer(AVG_POOLS, size)(_short(size))
    return call.add(layer)


@reads()
def global_max_pool(call: Call) -> Tensor:
    """Take the maximum of all pixels; the axes stay, of length 1."""
    size = call.shape[1:]
    if len(size) != 2:
        return call.add(_layer(MAX_POOLS, size)(_short(size)))
    pooled = call.add(la.GlobalMaxPool())
    return call.add(la.Reshape((call.shape[0], 1, 1)), inputs=[pooled])


@reads("axes", "keepdims", "noop_with_empty_axes")
def reduce_mean(call: Call) -> Tensor:
    """Average over all pixels of an image."""
    given, rank = call.listed(1, "axes"), len(call.shape) + 1
    if rank != 4 or sorted(call.axes(given or [], rank)) != [2, 3]:
        raise Unsupported(f"averages over the axes {given} of examples {call.shape}, not over all pixels")
    return call.add(la.AdaptiveAvgPool2D(1) if call.whole("keepdims", 1) else la.GlobalAvgPool())


@reads("mode", "pads", "value")
def pad(call: Call) -> Tensor:
    """Lay pixels of one value around images, or channels of zeros behind them."""
    if call.text("mode", "constant") != "constant":
        raise Unsupported(f"pads in the mode {call.text('mode', '')}, not with a constant")
    rank = len(call.shape) + 1
    given, value = call.listed(1, "pads") or [], call.number(2, "value", 0.0)
    named = call.listed(3, "axes")
    axes = call.axes(list(range(rank)) if named is None else named, rank)
    if len(given) != 2 * len(axes) or not all(0 <= n <= MOST_PIXELS for n in given):
        raise Unsupported(f"pads the axes {axes} by {given}")
    pairs = zip(given[: len(axes)], given[len(axes) :], strict=True)
    padded = {axis: pair for axis, pair in zip(axes, pairs, strict=True) if pair != (0, 0)}
    if not padded:
        return call.x
    if list(padded) == [1] and padded[1][0] == 0 and value == 0:
        return call.add(la.PadChannels(call.shape[0] + padded[1][1]))
    if rank != 4 or not padded.keys() <= {2, 3}:
        raise Unsupported(f"pads examples {call.shape} by {given}: only images are padded, or channels behind them")
    return call.add(la.Pad2D(_short_pairs([padded.get(axis, (0, 0)) for axis in (2, 3)]), float(value or 0.0)))


@reads("mode", "nearest_mode", "coordinate_transformation_mode", "axes", "scales", "antialias",
       "keep_aspect_ratio_policy", "cubic_coeff_a", "exclude_outside", "extrapolation_value")  # fmt: skip
def resize(call: Call) -> Tensor:
    """Repeat every pixel a whole number of times."""
    factors = _factors(call)
    if all(factor == 1 for factor in factors):
        return call.x
    if call.text("mode", "nearest") != "nearest" or call.whole("antialias", 0):
        raise Unsupported(f"resizes in the mode {call.text('mode', 'nearest')}, not by repeating pixels")
    if (
        len(factors) != 4
        or factors[:2] != [1.0, 1.0]
        or not all(f == int(f) and 1 <= f <= MOST_PIXELS for f in factors)
    ):
        raise Unsupported(f"resizes by {factors}: only whole factors of height and width repeat pixels")
    older = call.opset < 11
    way = call.text("coordinate_transformation_mode", "asymmetric" if older else "half_pixel")
    rounding = call.text("nearest_mode", "floor" if older else "round_prefer_floor")
    halved = (way, rounding) == ("asymmetric", "round_prefer_floor") and max(factors) == 2
    if (way, rounding) not in REPEATING and not halved:
        raise Unsupported(f"takes pixels by {way} and {rounding}, which does not repeat them evenly")
    return call.add(la.Upsample2D(_short([int(factor) for factor in factors[2:]])))


def _factors(call: Call) -> list[float]:
    """Return how many times larger each axis of the batch becomes."""
    rank = len(call.shape) + 1
    axes = call.axes(call.wholes("axes") or list(range(rank)), rank)
    older = call.node.op == "Upsample" or call.opset < 11
    given, sizes = (call.constant(1), None) if older else (call.constant(2), call.given[3:])
    found: list[float] = list(call.node.attributes.get("scales", [])) if given is None else []
    if given is not None and given.size <= rank:
        found = [float(n) for n in given.reshape(-1)]
    if not found and sizes and sizes[0] is not None:
        if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("keeps the aspect ratio, which is not understood")
        found = _by_sizes(call, axes)
    if len(found) != len(axes):
        raise Unsupported(f"resizes {len(axes)} axes by {found}")
    by_axis = dict(zip(axes, found, strict=True))
    return [by_axis.get(axis, 1.0) for axis in range(rank)]


def _by_sizes(call: Call, axes: Sequence[int]) -> list[float]:
    """Return the factors that lead to given sizes; the batch's own size may be among them."""
    known = call.given[3]
    if not isinstance(known, Known) or any(value.size != len(axes) for value in known.values):
        raise Unsupported("takes sizes that do not fit its axes or depend on the images' values")
    found = []
    for axis, *sizes in zip(axes, *(map(int, value.reshape(-1)) for value in known.values), strict=True):
        if axis == 0:
            found.append(1.0 if call.is_batch(sizes) else 0.0)
        else:
            found.append(sizes[0] / call.shape[axis - 1] if len(set(sizes)) == 1 else 0.0)
    return found


def _layer(kinds: dict[int, Any], size: Sequence[int]) -> Any:
    """Return the layer for a number of axes."""
    if len(size) not in kinds:
        raise Unsupported(f"works on images of {len(size)} axes; there are layers for 1, 2 and 3")
    return kinds[len(size)]


def _window(call: Call, kernel: Sequence[int], extra: Sequence[int] | None = None) -> dict[str, Any]:
    """Return kernel size, stride, padding and dilation; ``extra`` is a transposed convolution's output_padding."""
    axes = len(kernel)
    stride, dilation = (call.wholes(name) or [1] * axes for name in ("strides", "dilations"))
    pads, way = call.wholes("pads") or [0] * 2 * axes, call.text("auto_pad", "NOTSET")
    numbers = [*kernel, *stride, *dilation]
    lengths = {len(stride), len(dilation), len(pads) // 2} == {axes} and len(pads) % 2 == 0
    stated = call.wholes("kernel_shape") or list(kernel)
    if not lengths or stated != list(kernel) or not all(1 <= n <= MOST_PIXELS for n in numbers):
        raise Unsupported(f"has a kernel {stated}, strides {stride}, dilations {dilation} and pads {pads}")
    if min(pads, default=0) < 0 or max(pads, default=0) > MOST_PIXELS:
        raise Unsupported(f"has pads {pads}: none may be below 0")
    if axes != len(call.shape) - 1:
        raise Unsupported(f"has a kernel {stated} for examples {call.shape}")
    pairs = list(zip(pads[:axes], pads[axes:], strict=True))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if extra is not None:
        pairs = _transposed_pairs(call, pairs, way, stride, spans, extra)
    elif way != "NOTSET":
        sizes = zip(call.shape[1:], spans, stride, strict=True)
        pairs = [_split(way, (-(-n // s) - 1) * s + span - n) for n, span, s in sizes]
    return {
        "kernel_size": _short(kernel), "stride": _short(stride), "padding": _short_pairs(pairs),
        "dilation": _short(dilation),
    }  # fmt: skip


def _split(way: str, total: int) -> tuple[int, int]:
    """Divide padding between both ends of an axis."""
    if way not in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"has the auto_pad {way}, which there is not")
    total = 0 if way == "VALID" else max(0, total)
    return (total - total // 2, total // 2) if way == "SAME_LOWER" else (total // 2, total - total // 2)


def _transposed_pairs(
    call: Call,
    pairs: list[tuple[int, int]],
    way: str,
    stride: Sequence[int],
    spans: Sequence[int],
    extra: Sequence[int],
) -> list[tuple[int, int]]:
    """Return what a transposed convolution leaves away at both ends."""
    wanted = call.wholes("output_shape")
    if way in ("NOTSET", "VALID") and wanted is None:
        return [(0, 0)] * len(pairs) if way == "VALID" else pairs
    sizes = call.shape[1:]
    wanted = [n * s for n, s in zip(sizes, stride, strict=True)] if wanted is None else wanted[-len(sizes) :]
    rows = zip(sizes, stride, spans, extra, wanted, strict=len(wanted) == len(sizes))
    totals = [s * (n - 1) + e + span - out for n, s, span, e, out in rows]
    if min(totals, default=0) < 0 or len(totals) != len(sizes):
        raise Unsupported(f"makes {wanted} of {sizes}, which its kernel does not reach")
    if way == "SAME_UPPER":
        return [(total // 2, total - total // 2) for total in totals]
    return [(total - total // 2, total // 2) for total in totals]


def _short(numbers: Sequence[int] | Shape) -> Any:
    """Return one number instead of several that are the same."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _short_pairs(pairs: Sequence[tuple[int, int]]) -> Any:
    """Return padding in its shortest form."""
    if all(before == after for before, after in pairs):
        return _short([before for before, _ in pairs])
    return tuple(pairs)


WINDOWED: dict[str, Converter] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Resize": resize,
    "Upsample": resize,
}
