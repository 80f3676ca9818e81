"""The moving average of weights over updates, written as an optimizer whose gradients are the weights."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.optim.base import Numbers, Optimizer, made, within


def moving_average(decay: float) -> Optimizer:
    """Average: ``a = a + (1 - d)·(w - a)`` with ``d = min(decay, (1 + step) / (10 + step))``.

    `update` takes the weights as ``grads`` and their averages as ``params``, and returns the new averages.

    Parameters
    ----------
    decay : float
        In [0, 1); the first updates average over fewer, so that the initial weights are soon forgotten.

    References
    ----------
    B. Polyak, A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the decay's beginning is
    that of TensorFlow's `ExponentialMovingAverage`.
    """
    decay = within("ema", decay, 0.0, 1.0)

    def numbers(step: int) -> Numbers:
        return (1.0 - min(decay, (1 + step) / (10 + step)),)

    def rule(numbers: Numbers, a: Array, w: Array) -> tuple[Array, ...]:
        (share,) = numbers
        return (a + share * (w - a),)

    return made("average", (), numbers, rule, "average")
