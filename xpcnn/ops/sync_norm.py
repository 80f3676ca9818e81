"""Batch normalisation of a batch that lies in parts: the statistics are those of all of it.

As in `xpcnn.ops.norm`, with two sums over all parts forward (Σx, then Σ(x - mean)²) and one backward (Σdx̂ and Σdx̂·x̂).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from array_api_compat import device

from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half
from xpcnn.ops.norm import Shape, batch_norm
from xpcnn.ops.reduction import sum_over

Total = Callable[[Array], Array]


class SyncSaved(NamedTuple):
    """What backward needs."""

    normal: Array  # x̂, of this part
    scale: Array  # 1 / √(var + ε), (1, C, 1, ...)
    gamma: Array | None
    has_beta: bool
    count: Array  # () values per channel in the whole batch
    total: Total


@half.forward_beside("gamma", "beta", "running_mean", "running_var")
def sync_batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array,
    running_var: Array,
    *,
    total: Total,
    momentum: float = 0.1,
    eps: float = 1e-5,
    xp: Namespace | None = None,
) -> tuple[Array, SyncSaved, tuple[Array, Array]]:
    """Normalise each channel over the whole batch and its pixels, in training.

    Parameters
    ----------
    x : array (N, C, ...)
        This part of the batch; it may be empty.
    gamma, beta : array (C,) or None
        Scale and shift.
    running_mean, running_var : array (C,)
        Statistics so far.
    total : function
        Adds up an array over all parts, such as `xpcnn.parallel.Group.sum`; it is called by all of them alike.
    momentum, eps : float
        As in `xpcnn.ops.batch_norm`.

    Returns
    -------
    y : array (N, C, ...)
    saved : SyncSaved
    statistics : (new_mean, new_var)
        The same for every part.

    Raises
    ------
    XpcnnError
        When shapes do not fit, or the whole batch has a single value per channel.
    """
    # an empty batch leaves the statistics alone, so that this only checks the arguments
    batch_norm(x[:0, ...], gamma, beta, running_mean, running_var, train=True, momentum=momentum, eps=eps)
    given = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    xp = _check.namespace(xp, given, x=x)
    channels, ones = x.shape[1], (1,) * (x.ndim - 2)
    spread, axes = (1, channels, *ones), (0, *range(2, x.ndim))
    own = xp.full((1,), prod(x.shape) / channels, dtype=x.dtype, device=device(x))
    found = total(xp.concat([_summed(x, axes, xp), own]))
    count = found[channels]
    if prod(x.shape) <= channels and float(count) <= 1:
        raise XpcnnError("batch norm cannot train on a batch of one value per channel, which has no variance.")
    mean = found[:channels] / count
    centered = x - xp.reshape(mean, spread)
    squares = total(_summed(centered * centered, axes, xp))
    scale = 1.0 / xp.sqrt(xp.reshape(squares / count, spread) + eps)
    normal = centered * scale
    y = normal if gamma is None else normal * xp.reshape(gamma, spread)
    y = y + (0.0 if beta is None else xp.reshape(beta, spread))
    unbiased = squares / (count - 1)
    new_mean = (1 - momentum) * running_mean + momentum * mean
    new_var = (1 - momentum) * running_var + momentum * unbiased
    return y, SyncSaved(normal, scale, gamma, beta is not None, count, total), (new_mean, new_var)


@half.backward
def sync_batch_norm_backward(
    dy: Array, saved: SyncSaved, *, xp: Namespace | None = None
) -> tuple[Array, Array | None, Array | None]:
    """Return ``(dx, dgamma, dbeta)`` of this part; dgamma and dbeta of the batch are the sums over all parts.

    Parameters
    ----------
    dy : array of y's shape
    saved : SyncSaved
        From the forward call.
    """
    normal, scale, gamma, has_beta, count, total = saved
    xp = _check.namespace(xp, dy=dy, normal=normal)
    _check.same_shape("dy", dy, normal.shape, "the shape of y")
    channels, spread, axes = normal.shape[1], scale.shape, (0, *range(2, normal.ndim))
    dbeta, dgamma = _summed(dy, axes, xp), _summed(dy * normal, axes, xp)
    sums = total(xp.concat([dbeta, dgamma])) / count
    g = dy - xp.reshape(sums[:channels], spread) - normal * xp.reshape(sums[channels:], spread)
    dx = g * (scale if gamma is None else scale * xp.reshape(gamma, spread))
    return dx, None if gamma is None else dgamma, dbeta if has_beta else None


def _summed(values: Array, axes: Shape, xp: Namespace) -> Array:
    """Add up all but the channels (C,)."""
    if not values.shape[0]:
        return xp.zeros((values.shape[1],), dtype=values.dtype, device=device(values))
    return xp.reshape(sum_over(values, axes, xp), (values.shape[1],))
