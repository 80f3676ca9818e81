"""How a network predicts: batch normalisation goes into the weights of the layer before it.

With the running statistics, ``γ·(W·x + b - mean) / √(var + ε) + β`` is ``W'·x + b'``, where ``W' = s·W``,
``b' = s·(b - mean) + β`` and ``s = γ / √(var + ε)`` for each output channel: a pass over the outputs less. W' and b'
are made anew in every call, so they are never out of date. W' rounds as the product with s would: the error is of the
same size either way, unless ε, which bounds s, is next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, prod
from typing import Any

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.layers.activation import Clip, HardSigmoid, HardSwish, ReLU, ReLU6
from xpcnn.layers.affine import Affine
from xpcnn.layers.base import Arrays, Layer
from xpcnn.layers.container import naming
from xpcnn.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D, ConvTranspose3D
from xpcnn.layers.fused import fuse
from xpcnn.layers.norm import BatchNorm
from xpcnn.ops import _check

CONVS = (Conv1D, Conv2D, Conv3D)
TRANSPOSED = (ConvTranspose1D, ConvTranspose2D, ConvTranspose3D)
ACTIVATIONS = (ReLU, ReLU6, HardSwish, HardSigmoid, Clip)
LEAST_EPS = 1e-10  # of a normalisation that is folded
IMAGES = 4  # axes of a batch of images
NORMS = 4  # arrays of a normalisation: gamma, beta, mean, var
MOST_BOUND = 8  # shapes of batches that are remembered

Groups = dict[str, Arrays]  # a layer's name -> its own arrays


class _Bound(dict[Any, Any]):
    """What is remembered of arrays' places in memory, which no copy and no pickle takes along."""

    def __reduce__(self) -> tuple[type[_Bound], tuple[()]]:
        return _Bound, ()


@dataclass(frozen=True)
class Step:
    """A layer, or neighbours computed together, as prediction runs it."""

    name: str
    layer: Layer
    then: Step | None = None  # an activation after a convolution
    bound: _Bound = field(default_factory=lambda: _Bound(), compare=False, repr=False)  # by what x is

    def run(self, params: Groups, state: Groups, x: Array) -> Array:
        """Return y."""
        if type(self.layer) is Conv2D and (bound := self._bound(params[self.name], (), x, 0.0)) is not None:
            return bound(x)
        with naming(self.name):
            y = self.layer.predict(params.get(self.name, {}), state.get(self.name, {}), x)
        return y if self.then is None else self.then.run(params, state, y)

    def _bound(self, own: Arrays, norm: Sequence[Array], x: Array, eps: float) -> Any:
        """Return a function of x that remembers what it looked up, where an engine has one for such arrays."""
        arrays = own.get("weight"), own.get("bias"), *norm
        key = x.shape, type(x), x.dtype
        known = self.bound.get(key)
        if known is not None and known.is_of(arrays):
            return known
        conv: Any = self.layer
        engine = kernels.of(array_namespace(x)).engine("prediction", x)
        if engine is None or conv.mode != "cross-correlation" or x.ndim != IMAGES or len(own) != 1 + conv.bias:
            return None
        example = tuple(x.shape[1:])
        with naming(self.name):
            shape = conv.weight_shape(example)
            known = engine.bound(x, conv.window(example), conv.groups, shape, arrays, eps, self._activation)
        if known is not None:
            if len(self.bound) >= MOST_BOUND:
                self.bound.clear()
            self.bound[key] = known
        return known

    @property
    def _activation(self) -> tuple[str, tuple[float, ...]] | None:
        """The pass over what a convolution made, and its numbers: a factor, a shift, and the bounds it holds within."""
        layer: Any = None if self.then is None else self.then.layer
        if layer is None:
            return None
        if type(layer) is HardSwish:
            return "hard_swish", ()
        if type(layer) is HardSigmoid:
            return "clip", (layer.alpha, layer.beta, 0.0, 1.0)
        low, high = (layer.low, layer.high) if type(layer) is Clip else (0.0, 6.0 if type(layer) is ReLU6 else None)
        return "clip", (1.0, 0.0, -inf if low is None else low, inf if high is None else high)


@dataclass(frozen=True)
class FoldedStep(Step):
    """A convolution or affine layer, alone or with what is fused to it, and the batch normalisation it takes in."""

    linear: Layer = field(kw_only=True)
    norm: Step = field(kw_only=True)
    after: tuple[Step, ...] = field(kw_only=True)  # what is fused to it beyond the normalisation

    def run(self, params: Groups, state: Groups, x: Array) -> Array:
        """Return y; the weights are scaled if they are fewer than the outputs, and else those."""
        own, norm_params, norm_state = params[self.name], params[self.norm.name], state[self.norm.name]
        others = *norm_params.values(), *norm_state.values()
        eps: float = self.norm.layer.eps  # type: ignore[attr-defined]
        if type(self.layer) is Conv2D and len(others) == NORMS and _pays(self.linear, own["weight"], x):
            bound = self._bound(own, others, x, eps)
            if bound is not None:
                y: Array = bound(x)
                return y
        biases = [own["bias"]] if "bias" in own else []
        if not kernels.of(array_namespace(x)).FOLDS or not _fit(self.linear, own["weight"], (*others, *biases)):
            x = Step(self.name, self.linear).run(params, state, x)
            x = self.norm.run(params, state, x)
            return self._finish(params, state, x)
        scale, shift = _line(own, norm_params, norm_state, eps)
        with naming(self.name):
            if _pays(self.linear, own["weight"], x):
                folded = {"weight": scaled(self.linear, own["weight"], scale), "bias": shift}
                y = self.layer.predict(folded, {}, x)
                return y if self.then is None else self.then.run(params, state, y)
            x = self.linear.predict({"weight": own["weight"]}, {}, x)
        ones = (1,) * (x.ndim - 2)
        xp = array_namespace(x)
        x *= xp.reshape(scale, (-1, *ones))  # in place where the namespace can: x is the convolution's own
        x += xp.reshape(shift, (-1, *ones))
        return self._finish(params, state, x)

    def _finish(self, params: Groups, state: Groups, x: Array) -> Array:
        """Run what comes after the normalisation."""
        for step in (*self.after, *([self.then] if self.then else [])):
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
            made.append(FoldedStep(name, layer, linear=left[first][1], norm=norms[name], after=after))
        else:
            made.append(Step(name, layer))
    return _activated(made)


def _activated(made: list[Step]) -> list[Step]:
    """Put activations to the convolutions before them, whose results they may write over."""
    kept: list[Step] = []
    for step in made:
        if kept and type(kept[-1].layer) is Conv2D and kept[-1].then is None and type(step.layer) in ACTIVATIONS:
            kept[-1] = replace(kept[-1], then=step, bound=_Bound())
        else:
            kept.append(step)
    return kept


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
