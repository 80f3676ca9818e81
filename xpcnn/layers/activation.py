"""Activation layers; `xpcnn.ops` has their formulas."""

from __future__ import annotations

from dataclasses import dataclass

from xpcnn.layers.base import OpLayer


@dataclass(frozen=True)
class ReLU(OpLayer):
    """max(x, 0)."""

    op = kind = "relu"


@dataclass(frozen=True)
class ReLU6(OpLayer):
    """min(max(x, 0), 6)."""

    op = kind = "relu6"


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
class Softmax(OpLayer):
    """``exp(x) / Σ exp(x)`` along an axis; for training, leave it out: the cross-entropy takes logits."""

    axis: int = -1

    op = kind = "softmax"


@dataclass(frozen=True)
class LogSoftmax(OpLayer):
    """The logarithm of softmax along an axis."""

    axis: int = -1

    op = kind = "log_softmax"
