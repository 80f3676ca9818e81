"""Normalising layers; `xpcnn.ops` has their formulas."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers.base import Arrays, Layer, Parameter, Shape, options_of
from xpcnn.ops._check import axes_of, number
from xpcnn.ops.sync_norm import sync_batch_norm, sync_batch_norm_backward
from xpcnn.optim.initializers import Ones, Zeros
from xpcnn.random import Key


@dataclass(frozen=True)
class _Norm(Layer):
    """What normalising layers share: γ and β, and a backward."""

    kind = "norm"
    wide_parameters = True

    @abstractmethod
    def normalised(self, input_shape: Shape) -> Shape:
        """Return the shape of γ and β, or raise unless the layer fits its input."""

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape."""
        number("eps", options_of(self)["eps"], 0.0, float("inf"))
        self.normalised(input_shape)
        return input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Gamma and beta."""
        shape = self.normalised(input_shape)
        return {"gamma": Parameter(shape, 1, Ones()), "beta": Parameter(shape, 1, Zeros())}

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and the gradients of gamma and beta."""
        dx, dgamma, dbeta = ops.batch_norm_backward(dy, saved)  # which all normalisations share
        return dx if need_dx else None, {"gamma": dgamma, "beta": dbeta}


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Normalise each channel over the batch and its pixels; in prediction, by the running mean and variance."""

    momentum: float = 0.1
    eps: float = 1e-5

    couples_batch = True

    def normalised(self, input_shape: Shape) -> Shape:
        """Return (C,)."""
        number("momentum", self.momentum, 0.0, 1.0, closed=True)
        return _channels(self, input_shape)

    def state(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return running mean and variance (C,)."""
        shape = self.normalised(input_shape)
        return {"mean": Parameter(shape, 1, Zeros()), "var": Parameter(shape, 1, Ones())}

    def forward(
        self,
        params: Arrays,
        state: Arrays,
        x: Array,
        *,
        train: bool = False,
        key: Key | None = None,
        activation: str | None = None,
    ) -> tuple[Array, Any, Arrays]:
        """Normalise a batch, and hold y within the bounds of an activation that follows at once."""
        y, saved, (mean, var) = ops.batch_norm(
            x, params["gamma"], params["beta"], state["mean"], state["var"],
            train=train, momentum=self.momentum, eps=self.eps, activation=activation,
        )  # fmt: skip
        return y, saved, {"mean": mean, "var": var}


@dataclass(frozen=True)
class _SyncBatchNorm(BatchNorm):
    """The same in training, for a batch that lies in parts; nobody writes this, `synchronised` makes it."""

    total: Callable[[Array], Array] | None = None

    def forward(
        self,
        params: Arrays,
        state: Arrays,
        x: Array,
        *,
        train: bool = False,
        key: Key | None = None,
        activation: str | None = None,
    ) -> tuple[Array, Any, Arrays]:
        """Normalise this part of a batch, by the statistics of all."""
        if not train or self.total is None:
            return super().forward(params, state, x, train=train, key=key, activation=activation)
        y, saved, (mean, var) = sync_batch_norm(
            x, params["gamma"], params["beta"], state["mean"], state["var"],
            total=self.total, momentum=self.momentum, eps=self.eps,
        )  # fmt: skip
        return y, saved, {"mean": mean, "var": var}

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Return dx and this part's share of the gradients of gamma and beta."""
        dx, dgamma, dbeta = sync_batch_norm_backward(dy, saved)
        return dx if need_dx else None, {"gamma": dgamma, "beta": dbeta}


def synchronised(layer: Layer, total: Callable[[Array], Array]) -> Layer:
    """Return a batch norm whose statistics are added up by ``total`` over all parts of a batch; others as they are."""
    return _SyncBatchNorm(layer.momentum, layer.eps, total) if type(layer) is BatchNorm else layer


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Normalise each example over ``axes`` of the batch (N, ...), by default over all but the first."""

    axes: Any = None
    eps: float = 1e-5

    def normalised(self, input_shape: Shape) -> Shape:
        """Return the input's shape on the axes."""
        return tuple(input_shape[axis - 1] for axis in self._axes(len(input_shape)))

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Normalise a batch."""
        y, saved = ops.layer_norm(x, params["gamma"], params["beta"], axes=self._axes(x.ndim - 1), eps=self.eps)
        return y, saved, state

    def _axes(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the batch as numbers above 0."""
        given = tuple(range(1, ndim + 1)) if self.axes is None else self.axes
        axes = axes_of("axes", given, ndim + 1)
        if 0 in axes:
            raise XpcnnError(f"LayerNorm's axes {self.axes!r} must leave out axis 0, the batch.")
        return axes


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Normalise each example over the pixels of each of ``groups`` groups of channels."""

    groups: int
    eps: float = 1e-5

    def normalised(self, input_shape: Shape) -> Shape:
        """Return (C,)."""
        (channels,) = _channels(self, input_shape)
        if channels % whole("groups", self.groups, 1):
            raise XpcnnError(f"GroupNorm's groups={self.groups} must divide the {channels} channels of {input_shape}.")
        return (channels,)

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Normalise a batch."""
        y, saved = ops.group_norm(x, params["gamma"], params["beta"], groups=self.groups, eps=self.eps)
        return y, saved, state


def _channels(layer: Layer, input_shape: Shape) -> Shape:
    """Return (C,), or raise if there is no such axis."""
    if not input_shape:
        raise XpcnnError(f"{type(layer).__name__} takes examples (C, ...), got the shape ().")
    return input_shape[:1]
