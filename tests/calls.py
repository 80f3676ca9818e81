"""One small call of every op, for the tests of what all ops promise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from xpcnn import ops

COMPILED = {  # calls that JAX makes in float64: one of each kind of op that no other test makes there
    "conv_transpose2d", "avg_pool2d", "adaptive_avg_pool2d", "global_avg_pool2d", "global_max_pool2d", "leaky_relu",
    "elu", "gelu", "silu", "softplus", "hard_swish", "upsample2d", "softmax", "log_softmax", "batch_norm-train", "batch_norm-eval",
    "layer_norm", "group_norm", "dropout", "binary_cross_entropy_with_logits-weighted", "mean_squared_error",
    "half_squared_error",
}  # fmt: skip


def not_compiled(arrays, name=None, dtype="float64"):
    """Leave a call to the backends that run at once, unless JAX, which compiles it for minutes, is to make it too."""
    if arrays.id == "jax" and (name not in COMPILED or dtype != "float64"):
        pytest.skip("JAX compiles every operation anew for every shape")


@dataclass(frozen=True)
class Call:
    """An op, the shapes of its floating operands, its other operands and its options."""

    op: str
    shapes: dict[str, tuple[int, ...]]
    others: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    batched: tuple[str, ...] = ("x",)

    @property
    def first(self) -> str:
        """The operand that backward gives the gradient of first."""
        return next(iter(self.shapes))

    @property
    def is_loss(self) -> bool:
        return self.first != "x"

    def operands(self, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Return host operands in float64; variances, weights and probabilities lie between 0.5 and 1.5."""
        rng = np.random.default_rng(seed)
        positive = ("running_var", "targets", "class_weights", "pos_weight")
        made = {k: rng.random(s) + 0.5 if k in positive else rng.standard_normal(s) for k, s in self.shapes.items()}
        return made | self.others

    def run(self, operands: dict[str, Any], **more: Any) -> Any:
        """Return (y, saved), or (y, saved, statistics)."""
        return getattr(ops, self.op)(**operands, **self.options, **more)

    def backward(self, saved: Any, dy: Any, **more: Any) -> tuple[Any, ...]:
        """Return the gradients as a tuple."""
        run = getattr(ops, f"{self.op}_backward")
        found = run(saved, dy, **more) if self.is_loss else run(dy, saved, **more)
        return found if isinstance(found, tuple) else (found,)

    def both(self, operands: dict[str, Any], dy: Any) -> tuple[Any, ...]:
        """Return y and the gradients."""
        y, saved, *_ = self.run(operands)
        return (y, *self.backward(saved, dy))

    def emptied(self, operands: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Return the operands with a batch of none."""
        return {name: a[:0] if name in self.batched else a for name, a in operands.items()}


SIZES = {1: (5,), 2: (5, 4), 3: (3, 4, 3)}
POOL = {"kernel_size": 2, "stride": 1, "padding": 1}
LABELS = np.array([0, 3, 1])
MASK = np.random.default_rng(0).random((3, 4, 2)) > 0.5
ACTIVATIONS = (
    "relu", "relu6", "hard_sigmoid", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "hard_swish", "sigmoid", "tanh",
)  # fmt: skip


def _windows():
    """Yield the calls of the ops over windows in one to three dimensions."""
    for n, size in SIZES.items():
        x, kernel = (3, 4, *size), (2,) * n
        options = {"padding": 1, "groups": 2}
        yield f"conv{n}d", Call(f"conv{n}d", {"x": x, "weight": (6, 2, *kernel), "bias": (6,)}, options=options)
        shapes = {"x": x, "weight": (4, 3, *kernel), "bias": (6,)}
        yield f"conv_transpose{n}d", Call(f"conv_transpose{n}d", shapes, options=options)
        yield f"max_pool{n}d", Call(f"max_pool{n}d", {"x": x}, options=POOL)
        yield f"avg_pool{n}d", Call(f"avg_pool{n}d", {"x": x}, options=POOL)


def _all():
    """Yield every call by its name: the op's, and what is special about it."""
    yield from _windows()
    x = (3, 4, 5, 4)
    fused = {"x": x, "weight": (6, 4, 2, 2), "bias": (6,)}
    yield "conv2d_relu_max_pool2d", Call("conv2d_relu_max_pool2d", fused)
    yield "adaptive_avg_pool2d", Call("adaptive_avg_pool2d", {"x": x}, options={"output_size": (2, 3)})
    for op in ("global_avg_pool2d", "global_max_pool2d"):
        yield op, Call(op, {"x": x})
    yield "affine", Call("affine", {"x": (3, 4, 2), "weight": (8, 5), "bias": (5,)})
    for op in (*ACTIVATIONS, "softmax", "log_softmax"):
        yield op, Call(op, {"x": (3, 4, 2)})
    yield "clip", Call("clip", {"x": (3, 4, 2)}, options={"low": -0.5, "high": 0.75})
    yield "upsample2d", Call("upsample2d", {"x": x}, options={"factor": (2, 3)})
    yield "gelu-tanh", Call("gelu", {"x": (3, 4, 2)}, options={"approximate": "tanh"})
    channels = {"gamma": (4,), "beta": (4,)}
    statistics = {"running_mean": (4,), "running_var": (4,)}
    for kind, train in (("train", True), ("eval", False)):
        yield f"batch_norm-{kind}", Call("batch_norm", {"x": x} | channels | statistics, options={"train": train})
    yield "layer_norm", Call("layer_norm", {"x": x, "gamma": (5, 4), "beta": (5, 4)}, options={"axes": (2, 3)})
    yield "group_norm", Call("group_norm", {"x": x} | channels, options={"groups": 2})
    yield "dropout", Call("dropout", {"x": (3, 4, 2)}, {"mask": MASK}, {"rate": 0.25}, ("x", "mask"))
    yield from _losses()


def _losses():
    """Yield the calls of the losses, whose batched operands are all but the weights."""
    pairs, two = {"y": (3, 4), "t": (3, 4)}, ("y", "t")
    logits = {"logits": (3, 4)}
    op = "softmax_cross_entropy"
    yield op, Call(op, logits, {"targets": LABELS}, {}, ("logits", "targets"))
    weighted, smooth = logits | {"class_weights": (4,)}, {"label_smoothing": 0.1, "reduction": "none"}
    yield f"{op}-weighted", Call(op, weighted, {"targets": LABELS}, smooth, ("logits", "targets"))
    yield f"{op}-soft", Call(op, logits | {"targets": (3, 4)}, {}, {}, ("logits", "targets"))
    op = "binary_cross_entropy_with_logits"
    shapes = logits | {"targets": (3, 4)}
    yield op, Call(op, shapes, {}, {}, ("logits", "targets"))
    weighted = shapes | {"weight": (4,), "pos_weight": (4,)}
    yield f"{op}-weighted", Call(op, weighted, {}, {"reduction": "none"}, ("logits", "targets"))
    yield "mean_squared_error", Call("mean_squared_error", pairs, {}, {}, two)
    yield "mean_squared_error-none", Call("mean_squared_error", pairs, {}, {"reduction": "none"}, two)
    yield "half_squared_error", Call("half_squared_error", pairs, {}, {}, two)


CALLS = dict(_all())
