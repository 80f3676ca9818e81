"""Convolutions and poolings as ONNX nodes.

Padding always becomes numbers, one before and one after each axis. ``ceil_mode`` is never written: files disagree
about it from version to version, while padding after the image says the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.interop.onnx_draft import Site
from xpcnn.kernels import Window
from xpcnn.ops.pool import pool_window
from xpcnn.ops.window import padding_pairs

Pairs = list[tuple[int, int]]

DILATED_AVERAGE = 19  # the opset from which AveragePool has dilations


def conv(site: Site, x: str) -> str:
    """Write a convolution; a true one has its kernel turned round, and a center becomes padding."""
    layer, weight = site.layer, site.array("weight")
    win: Window = layer.window(site.input_shape)
    pads = _covering(win, _given(layer, win))
    if layer.mode == "convolution":
        weight = np.flip(weight, tuple(range(2, weight.ndim)))
    names = [site.constant("weight", weight), *site.parameters("bias")]
    return site.node("Conv", x, *names, group=int(layer.groups), **_geometry(win, pads), dilations=win.dilation)


def conv_transpose(site: Site, x: str) -> str:
    """Write a transposed convolution; what padding cannot take away at the end is output padding."""
    layer = site.layer
    win: Window = layer.window(site.input_shape)  # of the convolution from the output to the input
    after = [e - s - b for e, s, b in zip(win.extent, win.size, win.before, strict=True)]
    ends = [max(0, a) for a in after]
    if layer.padding != "same":  # what was given is kept, unless less padding says the same without too much at the end
        given = padding_pairs(layer.padding, win.out, win.kernel, win.stride, win.dilation)
        ends = [p if p - a < s else end for (_, p), a, s, end in zip(given, after, win.stride, ends, strict=True)]
    extra = [end - a for end, a in zip(ends, after, strict=True)]
    if any(e >= s for e, s in zip(extra, win.stride, strict=True)):
        return site.fault(f"has output_padding {layer.output_padding!r}, which onnxruntime takes only below the stride")
    names = site.parameters("weight", "bias")
    options = _geometry(win, list(zip(win.before, ends, strict=True))) | {"output_padding": extra}
    return site.node("ConvTranspose", x, *names, group=int(layer.groups), **options, dilations=win.dilation)


def max_pool(site: Site, x: str) -> str:
    """Write max pooling; padding never wins, so a last window's overhang is more of it."""
    win = _pool_window(site)
    pads = _covering(win, _given(site.layer, win))
    if not _below_kernel(win, pads):
        x, pads = padded(site, x, pads, -np.inf, "pad"), [(0, 0)] * len(pads)
    return site.node("MaxPool", x, **_geometry(win, pads), dilations=win.dilation)


def avg_pool(site: Site, x: str) -> str:
    """Write average pooling; where padding counts and an overhang does not, the padding is a node of its own."""
    layer, win = site.layer, _pool_window(site)
    given = _given(layer, win)
    pads, counted = _covering(win, given), bool(layer.count_include_pad)
    if counted and pads != given:
        counted = False
        if any(map(any, given)):
            x = padded(site, x, given, 0.0, "pad")
            pads = [(0, a - stated) for (_, a), (_, stated) in zip(pads, given, strict=True)]
    if not _below_kernel(win, pads):
        return site.fault(f"has padding that is no smaller than the kernel {win.kernel} before it is dilated")
    options = _geometry(win, pads) | {"count_include_pad": int(counted)}
    if any(d > 1 for d in win.dilation):
        options |= {"dilations": win.dilation, "since": DILATED_AVERAGE}
    return site.node("AveragePool", x, **options)


def adaptive_avg_pool(site: Site, x: str) -> str:
    """Write pooling to a given size, where all bins are of one size."""
    size, out = site.input_shape[1:], site.output_shape[1:]
    if set(out) == {1}:
        return site.node("GlobalAveragePool", x)
    if any(n % o for n, o in zip(size, out, strict=True)):
        return site.fault(f"has bins of different sizes, {size} to {out}")
    bins = tuple(n // o for n, o in zip(size, out, strict=True))
    return site.node("AveragePool", x, kernel_shape=bins, strides=bins, pads=(0,) * 4, count_include_pad=0)


def padded(site: Site, x: str, pads: Pairs, value: float, word: str = "") -> str:
    """Write pixels around images."""
    edges = [0, 0, *(b for b, _ in pads), 0, 0, *(a for _, a in pads)]
    names = [site.constant("pads", edges, "int64", word)]
    if value:
        names.append(site.constant("value", value, word=word))
    return site.node("Pad", x, *names, word=word)


def _pool_window(site: Site) -> Window:
    """Return where a pooling's windows lie."""
    layer = site.layer
    mode, center = getattr(layer, "mode", "cross-correlation"), getattr(layer, "center", None)
    options = layer.stride, layer.padding, layer.dilation, layer.ceil_mode, mode, center
    return pool_window(site.input_shape[1:], layer.kernel_size, *options)


def _given(layer: Any, win: Window) -> Pairs:
    """Return the padding that a layer states, or what its center means before the image."""
    if getattr(layer, "center", None) is not None:
        return [(b, 0) for b in win.before]
    return padding_pairs(layer.padding, win.size, win.kernel, win.stride, win.dilation)


def _covering(win: Window, given: Pairs) -> Pairs:
    """Return padding that also covers the last window's overhang."""
    axes = zip(given, win.extent, win.size, strict=True)
    return [(before, max(after, extent - size - before)) for (before, after), extent, size in axes]


def _below_kernel(win: Window, pads: Pairs) -> bool:
    """Whether padding is below the undilated kernel, which onnxruntime's poolings ask for."""
    return all(max(pair) < k for pair, k in zip(pads, win.kernel, strict=True))


def _geometry(win: Window, pads: Pairs) -> dict[str, Any]:
    """Return the attributes that all nodes with windows have."""
    edges = [b for b, _ in pads] + [a for _, a in pads]
    return {"kernel_shape": win.kernel, "strides": win.stride, "pads": edges}
