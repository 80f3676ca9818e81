"""How a network predicts: batch normalisation goes into the weights of the layer before it.

With the running statistics, ``γ·(W·x + b - mean) / √(var + ε) + β`` is ``W'·x + b'``, where ``W' = s·W``,
``b' = s·(b - mean) + β`` and ``s = γ / √(var + ε)`` for each output channel: a pass over the outputs less. W' and b'
are made anew in every call, so they are never out of date. W' rounds as the product with s would: the error is of the
same size either way, unless ε, which bounds s, is next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, prod

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.layers.affine import Affine
from xpcnn.layers.base import Arrays, Layer
from xpcnn.layers.container import naming
from xpcnn.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D, ConvTranspose3D
from xpcnn.layers.fused import fuse
from xpcnn.layers.norm import BatchNorm
from xpcnn.ops import _check

CONVS = (Conv1D, Conv2D, Conv3D)
TRANSPOSED = (ConvTranspose1D, ConvTranspose2D, ConvTranspose3D)
LEAST_EPS = 1e-10  # of a normalisation that is folded

Groups = dict[str, Arrays]  # a layer's name -> its own arrays


@dataclass(frozen=True)
class Step:
    """A layer, or neighbours computed together, as prediction runs it."""

    name: str
    layer: Layer

    def run(self, params: Groups, state: Groups, x: Array) -> Array:
        """Return y."""
        with naming(self.name):
            return self.layer.predict(params.get(self.name, {}), state.get(self.name, {}), x)


@dataclass(frozen=True)
class FoldedStep(Step):
    """A convolution or affine layer, alone or with what is fused to it, and the batch normalisation it takes in."""

    linear: Layer
    norm: Step
    after: tuple[Step, ...]  # what is fused to it beyond the normalisation

    def run(self, params: Groups, state: Groups, x: Array) -> Array:
        """Return y; the weights are scaled if they are fewer than the outputs, and else those."""
        own, norm_params, norm_state = params[self.name], params[self.norm.name], state[self.norm.name]
        others = *norm_params.values(), *norm_state.values()
        if not kernels.of(array_namespace(x)).FOLDS or not _fit(self.linear, own["weight"], others):
            x = Step(self.name, self.linear).run(params, state, x)
            x = self.norm.run(params, state, x)
            return self._finish(params, state, x)
        scale, shift = _line(own, norm_params, norm_state, self.norm.layer.eps)  # type: ignore[attr-defined]
        with naming(self.name):
            if _pays(self.linear, own["weight"], x):
                return self.layer.predict({"weight": scaled(self.linear, own["weight"], scale), "bias": shift}, {}, x)
            x = self.linear.predict({"weight": own["weight"]}, {}, x)
        ones = (1,) * (x.ndim - 2)
        xp = array_namespace(x)
        x *= xp.reshape(scale, (-1, *ones))  # in place where the namespace can: x is the convolution's own
        x += xp.reshape(shift, (-1, *ones))
        return self._finish(params, state, x)

    def _finish(self, params: Groups, state: Groups, x: Array) -> Array:
        """Run what comes after the normalisation."""
        for step in self.after:
            x = step.run(params, state, x)
        return x


def steps(layers: Sequence[tuple[str, Layer]]) -> list[Step]:
    """Return layers as prediction runs them: neighbours fused, normalisations folded where that is exact enough."""
    made: list[Step] = []
    norms = {a[0]: Step(*b) for a, b in pairwise(layers) if _foldable(a[1], b[1])}
    away = {norm.name for norm in norms.values()}
    left = [(name, layer) for name, layer in layers if name not in away]
    starts = [name for name, _ in left]
    fused = fuse(left)
    edges = [*(starts.index(name) for name, _ in fused), len(left)]
    for (name, layer), (first, end) in zip(fused, pairwise(edges), strict=True):
        if name in norms:
            after = tuple(Step(*pair) for pair in left[first + 1 : end])
            made.append(FoldedStep(name, layer, left[first][1], norms[name], after))
        else:
            made.append(Step(name, layer))
    return made


def scaled(linear: Layer, weight: Array, scale: Array) -> Array:
    """Multiply a layer's weight by a factor for each of its output channels."""
    xp = array_namespace(weight)
    if isinstance(linear, Affine):
        return weight * scale  # (in, out)
    ones = (1,) * (weight.ndim - 2)
    if not isinstance(linear, TRANSPOSED):
        return weight * xp.reshape(scale, (-1, 1, *ones))  # (F, C/G, *kernel)
    inputs, filters, *kernel = weight.shape  # C, F/G
    grouped = xp.reshape(weight, (linear.groups, inputs // linear.groups, filters, *kernel))
    return xp.reshape(grouped * xp.reshape(scale, (linear.groups, 1, filters, *ones)), weight.shape)


def _line(params: Arrays, norm_params: Arrays, norm_state: Arrays, eps: float) -> tuple[Array, Array]:
    """Return s and b', one of each per output channel."""
    bias, mean = params.get("bias"), norm_state["mean"]
    scale = norm_params["gamma"] / array_namespace(mean).sqrt(norm_state["var"] + eps)
    return scale, norm_params["beta"] + scale * (-mean if bias is None else bias - mean)


def _foldable(layer: Layer, after: Layer) -> bool:
    """Whether a layer takes in the one after it."""
    return type(layer) in (*CONVS, *TRANSPOSED, Affine) and type(after) is BatchNorm and LEAST_EPS <= after.eps < inf


def _pays(linear: Layer, weight: Array, x: Array) -> bool:
    """Whether a layer has at most about as many weights as outputs; for one image it rather has more."""
    places = x.shape[0] * (1 if isinstance(linear, Affine) else prod(x.shape[2:]))
    return prod(weight.shape) <= places * _filters(linear, weight)


def _filters(linear: Layer, weight: Array) -> int:
    """Return the number of output channels that a weight makes, 0 if it is none of the layer's."""
    if weight.ndim != getattr(linear, "axes", 0) + 2:
        return 0
    if isinstance(linear, TRANSPOSED):
        return 0 if weight.shape[0] % linear.groups else weight.shape[1] * linear.groups
    return weight.shape[1 if isinstance(linear, Affine) else 0]


def _fit(linear: Layer, weight: Array, others: Sequence[Array]) -> bool:
    """Whether a weight and a normalisation's arrays fit together; else the ops, which say what does not, are to run.

    Folding half-precision weights would round them to that precision, which the ops never do.
    """
    shape = (_filters(linear, weight),)
    same = all(array.dtype == weight.dtype and tuple(array.shape) == shape for array in others)
    return same and _check.dtype_name(weight) in _check.FLOATS
