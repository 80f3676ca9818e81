"""What every op means, in NumPy float64: the textbook's formula, independent of `xpcnn.ops`.

The functions take complex numbers too. They branch on real parts only, so that the imaginary part of
``f(x + i·h·u)`` is ``h`` times the derivative of the branch that the definition takes, at kinks and ties as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpcnn.verify import windowed

Array = Any
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # Klambauer et al. 2017


def affine(x: Array, weight: Array, bias: Array = None) -> Array:
    """Multiply flattened examples by a matrix."""
    y = x.reshape(x.shape[0], weight.shape[0]) @ weight
    return y if bias is None else y + bias


def relu(x: Array) -> Array:
    """Keep what is above 0."""
    return np.where(x.real > 0, x, 0)


def relu6(x: Array) -> Array:
    """Keep what is above 0, up to 6."""
    return np.where(x.real < 6, relu(x), 6)


def clip(x: Array, low: float | None = None, high: float | None = None) -> Array:
    """Keep what is above one bound and below the other; the bound itself elsewhere."""
    above = x if low is None else np.where(x.real > low, x, low)
    return above if high is None else np.where(above.real < high, above, high)


def hard_sigmoid(x: Array, alpha: float = 1 / 6, beta: float = 0.5) -> Array:
    """Keep a line where it is between 0 and 1."""
    return clip(alpha * x + beta, 0.0, 1.0)


def upsample2d(x: Array, factor: Any) -> Array:
    """Take each output's pixel, the one at its place divided by the factor, rounded down."""
    tall, wide = (factor, factor) if isinstance(factor, int) else factor
    rows, columns = (np.arange(n * f) // f for n, f in zip(x.shape[2:], (tall, wide), strict=True))
    return x[:, :, rows[:, None], columns]


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """Shrink what is below 0."""
    return np.where(x.real > 0, x, negative_slope * x)


def elu(x: Array, alpha: float = 1.0) -> Array:
    """Bend what is below 0 towards -alpha."""
    return np.where(x.real > 0, x, alpha * np.expm1(np.where(x.real > 0, 0, x)))


def selu(x: Array) -> Array:
    """Scale an ELU so that mean 0 and variance 1 are kept."""
    return SELU_SCALE * elu(x, SELU_ALPHA)


def gelu(x: Array, approximate: str = "none") -> Array:
    """Multiply by the normal distribution function, or by its approximation with tanh."""
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * erfc(-x / math.sqrt(2))


def erfc(z: Array) -> Array:
    """Return 1 - erf(z); the imaginary part by its derivative, which is exact for small ones."""
    real = np.vectorize(math.erfc, otypes=[np.float64])(z.real)
    return real if not np.iscomplexobj(z) else real - 1j * z.imag * (2 / math.sqrt(math.pi)) * np.exp(-(z.real**2))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), with an exponential that cannot overflow."""
    power = np.exp(np.where(x.real < 0, x, -x))
    return np.where(x.real < 0, power, 1) / (1 + power)


def silu(x: Array) -> Array:
    """Multiply by the sigmoid."""
    return x * sigmoid(x)


def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """Return log(1 + exp(beta·x)) / beta; x itself where beta·x is above the threshold."""
    z = beta * x
    stable = np.where(z.real < 0, 0, z) + np.log1p(np.exp(np.where(z.real < 0, z, -z)))
    return np.where(z.real > threshold, x, stable / beta)


def hard_swish(x: Array) -> Array:
    """Return x · relu6(x + 3) / 6."""
    return np.where(x.real <= -3, 0, np.where(x.real >= 3, x, x * (x + 3) / 6))


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent."""
    return np.tanh(x)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return log(exp(x) / sum exp(x))."""
    shifted = x - x.real.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def softmax(x: Array, axis: int = -1) -> Array:
    """Return exp(x) / sum exp(x)."""
    return np.exp(log_softmax(x, axis))


def dropout(x: Array, mask: Array, rate: float) -> Array:
    """Keep what the mask keeps, divided by the share that is kept."""
    return np.where(mask, x / (1 - rate), 0)


def normalized(x: Array, axes: Any, eps: float) -> Array:
    """Subtract the mean and divide by the deviation over some axes."""
    centered = x - x.mean(axis=axes, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=axes, keepdims=True) + eps)


def scaled(x: Array, gamma: Array, beta: Array, shape: Any) -> Array:
    """Return gamma·x + beta, each of the shape given."""
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def batch_norm(
    x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, *, train: bool,
    momentum: float = 0.1, eps: float = 1e-5,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Normalise each channel over batch and places, or by the running statistics, and return the new ones."""
    axes, shape = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    if not train:
        y = (x - running_mean.reshape(shape)) / np.sqrt(running_var.reshape(shape) + eps)
        return scaled(y, gamma, beta, shape), running_mean, running_var
    batch = x.real.mean(axis=axes), x.real.var(axis=axes, ddof=1)
    running = zip((running_mean, running_var), batch, strict=True)
    mixed = (None if old is None else (1 - momentum) * old + momentum * new for old, new in running)
    return scaled(normalized(x, axes, eps), gamma, beta, shape), *mixed


def layer_norm(x: Array, gamma: Array, beta: Array, *, axes: Any, eps: float = 1e-5) -> Array:
    """Normalise over the axes; gamma and beta have x's shape there."""
    over = {axis % x.ndim for axis in windowed.each(axes, 1)}
    shape = tuple(n if axis in over else 1 for axis, n in enumerate(x.shape))
    return scaled(normalized(x, tuple(over), eps), gamma, beta, shape)


def group_norm(x: Array, gamma: Array, beta: Array, *, groups: int, eps: float = 1e-5) -> Array:
    """Normalise each example over a group of channels and all places."""
    y = np.empty_like(x)
    size = x.shape[1] // groups
    for group in (slice(g * size, (g + 1) * size) for g in range(groups)):
        y[:, group] = normalized(x[:, group], tuple(range(1, x.ndim)), eps)
    return scaled(y, gamma, beta, (1, -1) + (1,) * (x.ndim - 2))


def softmax_cross_entropy(
    logits: Array, targets: Array, *, label_smoothing: float = 0.0, class_weights: Array = None,
    ignore_index: int | None = None, reduction: str = "mean",
) -> Array:  # fmt: skip
    """Return -Σ w·((1-ε)·t + ε/K)·log p of each example; a mean over labels divides by the sum of their weights."""
    log_p = np.moveaxis(log_softmax(logits, axis=1), 1, -1)  # (N, ..., K)
    classes = log_p.shape[-1]
    weights = np.ones(classes) if class_weights is None else class_weights
    are_labels = targets.ndim < logits.ndim
    targets = targets if are_labels else np.moveaxis(targets, 1, -1)
    losses, shares = np.zeros(log_p.shape[:-1], log_p.dtype), np.zeros(log_p.shape[:-1])
    for place in np.ndindex(losses.shape):
        if are_labels and targets[place] == ignore_index:
            continue
        t = np.eye(classes)[targets[place]] if are_labels else targets[place]
        losses[place] = -(weights * ((1 - label_smoothing) * t + label_smoothing / classes) * log_p[place]).sum()
        shares[place] = weights[targets[place]] if are_labels else 1
    return reduced(losses, reduction, shares.sum())


def binary_cross_entropy_with_logits(
    logits: Array, targets: Array, *, weight: Array = None, pos_weight: Array = None, reduction: str = "mean"
) -> Array:
    """Return -w·(p·t·log σ(x) + (1 - t)·log σ(-x)), where log σ(x) = -softplus(-x)."""
    yes, no = softplus(-logits, threshold=math.inf), softplus(logits, threshold=math.inf)
    losses = targets * yes * (1 if pos_weight is None else pos_weight) + (1 - targets) * no
    return reduced(losses * (1 if weight is None else weight), reduction, losses.size)


def mean_squared_error(y: Array, t: Array, *, reduction: str = "mean") -> Array:
    """Return (y - t)²."""
    return reduced((y - t) ** 2, reduction, y.size)


def half_squared_error(y: Array, t: Array) -> Array:
    """Return ½·Σ(t - y)² of each example, averaged over the batch."""
    return ((t - y) ** 2).sum() / 2 / y.shape[0]


def reduced(losses: Array, reduction: str, count: float) -> Array:
    """Return the losses, their sum, or their sum divided by a count."""
    return losses if reduction == "none" else losses.sum() / (count if reduction == "mean" else 1)


_FUNCTIONS = (
    windowed.adaptive_avg_pool2d, windowed.global_avg_pool2d, windowed.global_max_pool2d,
    windowed.conv2d_relu_max_pool2d, affine, relu, relu6, clip, hard_sigmoid, leaky_relu, elu, selu, gelu, silu,
    softplus, hard_swish, upsample2d, sigmoid, tanh, softmax, log_softmax, batch_norm, layer_norm, group_norm, dropout,
    softmax_cross_entropy, binary_cross_entropy_with_logits, mean_squared_error, half_squared_error,
)  # fmt: skip
_WINDOWED = (windowed.conv, windowed.conv_transpose, windowed.max_pool, windowed.avg_pool)
DEFINITIONS: dict[str, Callable[..., Any]] = {
    **{f"{function.__name__}{n}d": function for function in _WINDOWED for n in (1, 2, 3)},
    **{function.__name__: function for function in _FUNCTIONS},
}
