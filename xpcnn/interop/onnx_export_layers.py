"""Layers without windows as ONNX nodes: products, activations, normalisations, shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import TensorProto

from xpcnn.interop.onnx_draft import Site
from xpcnn.interop.onnx_export_windows import padded
from xpcnn.ops._check import axes_of
from xpcnn.ops.window import ints, padding_pairs

Converter = Callable[[Site, str], str]

GELU, GROUPED = 20, 21  # the opsets that have Gelu, and GroupNormalization with a gamma for each channel
NEAREST: dict[str, Any] = {
    "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor",
}  # fmt: skip
SOFT = 14.0  # softplus(x) and x are the same in float32 from here on


def plain(op: str, **options: type) -> Converter:
    """Return a converter to a node whose attributes, of these types, are called like the layer's options."""

    def converted(site: Site, x: str) -> str:
        return site.node(op, x, **{name: kind(getattr(site.layer, name)) for name, kind in options.items()})

    return converted


def affine(site: Site, x: str) -> str:
    """Write a product, flattened before where an example has several axes."""
    if len(site.input_shape) > 1:
        x = site.node("Flatten", x, word="flatten", axis=1)
    return site.node("Gemm", x, *site.parameters("weight", "bias"))


def flatten(site: Site, x: str) -> str:
    """Write flattening."""
    return site.node("Flatten", x, axis=1)


def reshape(site: Site, x: str) -> str:
    """Write a reshaping; 0 keeps the number of images."""
    return site.node("Reshape", x, site.constant("shape", [0, *site.output_shape], "int64"))


def scale(site: Site, x: str) -> str:
    """Write a product, a sum or both."""
    for op, name in (("Mul", "scale"), ("Add", "shift")):
        if getattr(site.layer, name):
            x = site.node(op, x, *site.parameters(name))
    return x


def upsample(site: Site, x: str) -> str:
    """Write a repetition of pixels."""
    factors = site.constant("scales", [1, 1, *ints("factor", site.layer.factor, 2, 1)], "float32")
    options: dict[str, Any] = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return site.node("Resize", x, "", factors, **options)


def pad(site: Site, x: str) -> str:
    """Write pixels around images."""
    edges = padding_pairs(site.layer.padding, (1, 1), (1, 1), (1, 1), (1, 1))
    return padded(site, x, edges, float(site.layer.value))


def global_pool(op: str) -> Converter:
    """Return a converter to a global pooling, which keeps axes of length 1, and their removal."""

    def converted(site: Site, x: str) -> str:
        return site.node("Flatten", site.node(op, x), word="flatten", axis=1)

    return converted


def identity(site: Site, x: str) -> str:
    """Write nothing."""
    return x


def leaky_relu(site: Site, x: str) -> str:
    """Write a leaky ReLU."""
    return site.node("LeakyRelu", x, alpha=float(site.layer.negative_slope))


def gelu(site: Site, x: str) -> str:
    """Write a GELU."""
    return site.node("Gelu", x, since=GELU, approximate=site.layer.approximate)


def silu(site: Site, x: str) -> str:
    """Write ``x · σ(x)``."""
    return site.node("Mul", x, site.node("Sigmoid", x))


def softplus(site: Site, x: str) -> str:
    """Write ``log(1 + exp(beta·x)) / beta``, without the threshold, which saves work but changes nothing if high."""
    beta, threshold = site.layer.beta, site.layer.threshold
    if threshold < SOFT:
        return site.fault(f"has the threshold {threshold!r}, and Softplus has none there; {SOFT:g} or more is the same")
    if beta == 1:
        return site.node("Softplus", x)
    scaled = site.node("Mul", x, site.constant("scale", beta))
    soft = site.node("Softplus", scaled)
    return site.node("Mul", soft, site.constant("scale", 1.0 / beta))


def relu6(site: Site, x: str) -> str:
    """Write a ReLU up to 6."""
    return _clip(site, x, 0.0, 6.0)


def clip(site: Site, x: str) -> str:
    """Write a clip, which may have one bound or none."""
    return _clip(site, x, site.layer.low, site.layer.high)


def dropout(site: Site, x: str) -> str:
    """Write dropout, which does nothing but in training."""
    return site.node("Dropout", x, site.constant("ratio", site.layer.rate))


def batch_norm(site: Site, x: str) -> str:
    """Write batch normalisation by running statistics; ONNX's momentum is the share of the old ones."""
    options: dict[str, Any] = {"epsilon": float(site.layer.eps), "momentum": 1.0 - float(site.layer.momentum)}
    return site.node("BatchNormalization", x, *site.parameters("gamma", "beta", "mean", "var"), **options)


def layer_norm(site: Site, x: str) -> str:
    """Write layer normalisation, with the axes brought to the end where they are elsewhere."""
    ndim = len(site.input_shape) + 1
    given = tuple(range(1, ndim)) if site.layer.axes is None else site.layer.axes
    axes = axes_of("axes", given, ndim)
    order = [axis for axis in range(ndim) if axis not in axes] + list(axes)
    moved = order != sorted(order)
    if moved:
        x = site.node("Transpose", x, word="transpose", perm=order)
    options: dict[str, Any] = {"axis": -len(axes), "epsilon": float(site.layer.eps)} | _stage(site)
    y = site.node("LayerNormalization", x, *site.parameters("gamma", "beta"), **options)
    return site.node("Transpose", y, word="back", perm=[order.index(n) for n in range(ndim)]) if moved else y


def group_norm(site: Site, x: str) -> str:
    """Write group normalisation."""
    options: dict[str, Any] = {"num_groups": int(site.layer.groups), "epsilon": float(site.layer.eps)} | _stage(site)
    return site.node("GroupNormalization", x, *site.parameters("gamma", "beta"), since=GROUPED, **options)


def pad_channels(site: Site, x: str) -> str:
    """Write channels of zeros."""
    ndim = len(site.input_shape) + 1
    edges = [0] * (2 * ndim)
    edges[ndim + 1] = site.output_shape[0] - site.input_shape[0]
    return site.node("Pad", x, site.constant("pads", edges, "int64"))


def _clip(site: Site, x: str, low: float | None, high: float | None) -> str:
    """Write bounds; an input that is left out is called by nothing."""
    names = ["" if value is None else site.constant(name, value) for name, value in (("min", low), ("max", high))]
    while names and not names[-1]:
        names.pop()
    return site.node("Clip", x, *names)


def _stage(site: Site) -> dict[str, Any]:
    """Return what makes a normalisation's statistics float64 in a network that is."""
    return {"stash_type": int(TensorProto.DOUBLE)} if site.draft.dtype == "float64" else {}
