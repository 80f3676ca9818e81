"""One converter for each type of layer, and how layers that hold others are written."""

from __future__ import annotations

from functools import reduce

from xpcnn import layers as la
from xpcnn.interop import onnx_export_layers as single
from xpcnn.interop import onnx_export_windows as windows
from xpcnn.interop.onnx_draft import INPUT, Draft, Site
from xpcnn.interop.onnx_export_layers import Converter, global_pool, plain
from xpcnn.layers.base import Layer, Placed

JOINS = {"add": "Add", "multiply": "Mul", "subtract": "Sub"}  # of two tensors at a time


def convert(draft: Draft, placed: Placed, x: str) -> str:
    """Write a layer that is given the tensor x, and return its output's name; what cannot be written is noted."""
    site = Site(draft, *placed)
    converter = CONVERTERS.get(type(placed.layer))  # of just this class: one that inherits may compute something else
    return converter(site, x) if converter else site.fault("has no counterpart")


def sequential(site: Site, x: str) -> str:
    """Write layers one after another."""
    for child in _children(site):
        x = convert(site.draft, child, x)
    return x


def branches(site: Site, x: str) -> str:
    """Write layers side by side, and how their outputs are put together."""
    return joined(site, "concat" if site.layer.joins() else "add", [convert(site.draft, c, x) for c in _children(site)])


def joined(site: Site, how: str, xs: list[str]) -> str:
    """Write what makes one tensor of several, first to last."""
    if len(xs) == 1:
        return xs[0]
    if how == "concat":
        return site.node("Concat", *xs, axis=1)
    return reduce(lambda a, b: site.node(JOINS[how], a, b), xs)


def graph(site: Site, x: str) -> str:
    """Write layers that are given each other's outputs by name."""
    tensors = {INPUT: x}
    for child, (name, layer, inputs) in zip(_children(site), site.layer.nodes, strict=True):
        given = [tensors[one] for one in inputs]
        if type(layer) is la.Join:
            tensors[name] = joined(Site(site.draft, *child), layer.how, given)
        else:
            tensors[name] = convert(site.draft, child, given[0])
    return tensors[site.layer.output]


def _children(site: Site) -> list[Placed]:
    """Return the layers inside one, by their whole paths."""
    inside = site.layer.children(site.input_shape)
    return [child._replace(path=f"{site.path}/{child.path}") if site.path else child for child in inside]


CONVERTERS: dict[type[Layer], Converter] = {
    la.Sequential: sequential,
    la.Graph: graph,
    la.Residual: branches,
    la.Parallel: branches,
    la.Identity: single.identity,
    la.Conv1D: windows.conv,
    la.Conv2D: windows.conv,
    la.Conv3D: windows.conv,
    la.ConvTranspose1D: windows.conv_transpose,
    la.ConvTranspose2D: windows.conv_transpose,
    la.ConvTranspose3D: windows.conv_transpose,
    la.MaxPool1D: windows.max_pool,
    la.MaxPool2D: windows.max_pool,
    la.MaxPool3D: windows.max_pool,
    la.AvgPool1D: windows.avg_pool,
    la.AvgPool2D: windows.avg_pool,
    la.AvgPool3D: windows.avg_pool,
    la.AdaptiveAvgPool2D: windows.adaptive_avg_pool,
    la.GlobalAvgPool: global_pool("GlobalAveragePool"),
    la.GlobalMaxPool: global_pool("GlobalMaxPool"),
    la.Affine: single.affine,
    la.Flatten: single.flatten,
    la.Reshape: single.reshape,
    la.Scale: single.scale,
    la.Upsample2D: single.upsample,
    la.Pad2D: single.pad,
    la.PadChannels: single.pad_channels,
    la.BatchNorm: single.batch_norm,
    la.LayerNorm: single.layer_norm,
    la.GroupNorm: single.group_norm,
    la.Dropout: single.dropout,
    la.ReLU: plain("Relu"),
    la.ReLU6: single.relu6,
    la.Clip: single.clip,
    la.LeakyReLU: single.leaky_relu,
    la.ELU: plain("Elu", alpha=float),
    la.SELU: plain("Selu"),
    la.GELU: single.gelu,
    la.SiLU: single.silu,
    la.Softplus: single.softplus,
    la.HardSwish: plain("HardSwish"),
    la.HardSigmoid: plain("HardSigmoid", alpha=float, beta=float),
    la.Sigmoid: plain("Sigmoid"),
    la.Tanh: plain("Tanh"),
    la.Softmax: plain("Softmax", axis=int),
    la.LogSoftmax: plain("LogSoftmax", axis=int),
}
