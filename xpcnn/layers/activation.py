"""Activation layers; `xpcnn.ops` has their formulas."""

from __future__ import annotations

from dataclasses import dataclass

from xpcnn.errors import XpcnnError
from xpcnn.layers.base import OpLayer, Shape
from xpcnn.ops._check import axes_of


@dataclass(frozen=True)
class ReLU(OpLayer):
    """max(x, 0)."""

    op = kind = "relu"


@dataclass(frozen=True)
class ReLU6(OpLayer):
    """min(max(x, 0), 6)."""

    op = kind = "relu6"


@dataclass(frozen=True)
class Clip(OpLayer):
    """min(max(x, low), high); one of the bounds may be None."""

    low: float | None = None
    high: float | None = None

    op = kind = "clip"


@dataclass(frozen=True)
class LeakyReLU(OpLayer):
    """X above 0, ``negative_slope · x`` elsewhere."""

    negative_slope: float = 0.01

    op = kind = "leaky_relu"


@dataclass(frozen=True)
class ELU(OpLayer):
    """X above 0, ``alpha · (exp(x) - 1)`` elsewhere."""

    alpha: float = 1.0

    op = kind = "elu"


@dataclass(frozen=True)
class SELU(OpLayer):
    """The scaled ELU that keeps mean 0 and variance 1."""

    op = kind = "selu"


@dataclass(frozen=True)
class GELU(OpLayer):
    """``x · Φ(x)``, exactly or, with ``approximate="tanh"``, nearly."""

    approximate: str = "none"

    op = kind = "gelu"


@dataclass(frozen=True)
class SiLU(OpLayer):
    """``x · σ(x)``."""

    op = kind = "silu"


@dataclass(frozen=True)
class Softplus(OpLayer):
    """``log(1 + exp(beta·x)) / beta``."""

    beta: float = 1.0
    threshold: float = 20.0

    op = kind = "softplus"


@dataclass(frozen=True)
class HardSigmoid(OpLayer):
    """``min(max(alpha·x + beta, 0), 1)``."""

    alpha: float = 1 / 6
    beta: float = 0.5

    op = kind = "hard_sigmoid"


@dataclass(frozen=True)
class HardSwish(OpLayer):
    """``x · min(max(x + 3, 0), 6) / 6``."""

    op = kind = "hard_swish"


@dataclass(frozen=True)
class Sigmoid(OpLayer):
    """``1 / (1 + exp(-x))``."""

    op = kind = "sigmoid"


@dataclass(frozen=True)
class Tanh(OpLayer):
    """The hyperbolic tangent."""

    op = kind = "tanh"


@dataclass(frozen=True)
class _OverAxis(OpLayer):
    """An op along an axis of the batch (N, ...), but not along N."""

    axis: int = -1

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the same shape."""
        (axis,) = axes_of("axis", (self.axis,), len(input_shape) + 1)
        if axis == 0:
            raise XpcnnError(f"{type(self).__name__}'s axis {self.axis} must not be axis 0, the batch.")
        return input_shape


@dataclass(frozen=True)
class Softmax(_OverAxis):
    """``exp(x) / Σ exp(x)`` along an axis; for training, leave it out: the cross-entropy takes logits."""

    op = kind = "softmax"


@dataclass(frozen=True)
class LogSoftmax(_OverAxis):
    """The logarithm of softmax along an axis."""

    op = kind = "log_softmax"
