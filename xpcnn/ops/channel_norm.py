"""Batch normalisation in training put together of few passes over blocks of images, with the interface of an engine.

Statistics, γ and β are all one per channel, so that sums over a channel do where other normalisations need arrays:
``mean(γ·dy) = γ·dβ/n`` and ``mean(γ·dy·x̂) = γ·dγ/n``, which makes dx a sum of two arrays with factors.
"""

from __future__ import annotations

from math import inf, prod
from typing import NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.kernels.reference import mixed
from xpcnn.ops import _check

Arrays = tuple[Array, ...]
ARRAYS = 4  # of an image's size that a block takes


class Kept(NamedTuple):
    """What `backward` needs."""

    normal: Array  # x̂, (N, C, P)
    scale: Array  # 1 / √(var + ε), (C,)
    gamma: Array | None
    active: Array | None  # with an activation, where it is not flat


def forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    most: float | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
) -> tuple[Array, Kept, Array | None, Array | None]:
    """Return y = γ·x̂ + β, held between 0 and ``most`` if given, what backward needs, and the new running statistics.

    These are None where there are no old ones, else ``(1 - momentum)·old + momentum·batch`` with the unbiased variance.
    """
    xp = _check.namespace(None, x=x)
    k = kernels.of(xp)
    images = xp.reshape(x, (*x.shape[:2], prod(x.shape[2:])))  # (N, C, P)
    mean, var = _statistics(images, xp)
    scale = 1.0 / xp.sqrt(var + eps)

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        normal = images[rows, ...] - mean[:, None]
        normal *= scale[:, None]  # in place where the namespace can, as below: new arrays are this block's own
        y = xp.asarray(normal, copy=True) if gamma is None else normal * gamma[:, None]
        if beta is not None:
            y += beta[:, None]
        if most is None:
            return (y, normal), ()
        y, active = k.relu(y, xp) if most == inf else (xp.clip(y, 0.0, most), (y > 0) & (y < most))
        return (y, normal, active), ()

    (y, normal, *active), _ = k.map_blocks(block, x.shape[0], _bytes(images), xp)
    count = x.shape[0] * images.shape[2]
    new_mean, new_var = mixed(running_mean, mean, momentum), mixed(running_var, var * (count / (count - 1)), momentum)
    return xp.reshape(y, x.shape), Kept(normal, scale, gamma, active[0] if active else None), new_mean, new_var


def _statistics(images: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return the mean and the biased variance (C,) of images (N, C, P)."""
    k = kernels.of(xp)
    count = images.shape[0] * images.shape[2]

    def values(rows: slice) -> tuple[Arrays, Arrays]:
        return (), (xp.sum(xp.sum(images[rows, ...], axis=2), axis=0),)

    def squares(rows: slice) -> tuple[Arrays, Arrays]:
        centered = images[rows, ...] - mean[:, None]
        return (), (xp.sum(xp.vecdot(centered, centered), axis=0),)

    mean = k.map_blocks(values, images.shape[0], _bytes(images), xp)[1][0] / count
    return mean, k.map_blocks(squares, images.shape[0], _bytes(images), xp)[1][0] / count


def backward(dy: Array, kept: Kept) -> tuple[Array, Array, Array]:
    """Return (dx, dγ, dβ): dβ = Σ dy, dγ = Σ dy·x̂, dx = γ/√(var + ε)·(dy - dβ/n - x̂·dγ/n)."""
    normal, scale, gamma, active = kept
    xp = _check.namespace(None, dy=dy)
    k = kernels.of(xp)
    given = xp.reshape(dy, normal.shape)  # (N, C, P)
    count = normal.shape[0] * normal.shape[2]

    def slope(rows: slice) -> Array:
        return given[rows, ...] if active is None else k.keep(given[rows, ...], active[rows, ...], xp)

    def sums(rows: slice) -> tuple[Arrays, Arrays]:
        g = slope(rows)
        return (), (xp.sum(xp.vecdot(g, normal[rows, ...]), axis=0), xp.sum(xp.sum(g, axis=2), axis=0))

    _, (dgamma, dbeta) = k.map_blocks(sums, normal.shape[0], _bytes(normal), xp)
    factor = scale if gamma is None else scale * gamma  # (C,)
    of_normal, shift = factor * dgamma / -count, factor * dbeta / -count

    def block(rows: slice) -> tuple[Arrays, Arrays]:
        dx = slope(rows) * factor[:, None]
        dx += normal[rows, ...] * of_normal[:, None]  # in place where the namespace can: dx is this block's own
        dx += shift[:, None]
        return (dx,), ()

    (dx,), _ = k.map_blocks(block, normal.shape[0], _bytes(normal), xp)
    return xp.reshape(dx, dy.shape), dgamma, dbeta


def _bytes(images: Array) -> int:
    """Bytes that a block takes for each image."""
    return ARRAYS * prod(images.shape[1:]) * (8 if _check.dtype_name(images) == "float64" else 4)
