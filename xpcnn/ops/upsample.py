"""Images made larger by repeating their pixels."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.ops import _check, half
from xpcnn.ops.window import AXES, ints


class UpsampleSaved(NamedTuple):
    """What `upsample2d_backward` needs."""

    kin: Array
    shape: tuple[int, ...]  # of x
    factor: tuple[int, ...]


@half.forward
def upsample2d(x: Array, factor: Any, *, xp: Namespace | None = None) -> tuple[Array, UpsampleSaved]:
    """Repeat every pixel: ``y[n, c, i, j] = x[n, c, ⌊i / f⌋, ⌊j / g⌋]`` for a factor (f, g).

    Parameters
    ----------
    x : array (N, C, H, W)
        Images, of any floating dtype.
    factor : int or (int, int)
        How often each pixel is repeated along H and W.

    Returns
    -------
    y : array (N, C, f·H, g·W)
    saved : UpsampleSaved
    """
    xp = _check.namespace(xp, x=x)
    _check.rank("x", x, AXES[2])
    tall, wide = ints("factor", factor, 2, 1)
    n, c, h, w = x.shape
    rows = xp.reshape(xp.concat([x[..., None]] * wide, axis=4), (n, c, h, w * wide))
    y = xp.reshape(xp.concat([rows[:, :, :, None, :]] * tall, axis=3), (n, c, h * tall, w * wide))
    return y, UpsampleSaved(_check.kin(x, xp), tuple(x.shape), (tall, wide))


@half.backward
def upsample2d_backward(dy: Array, saved: UpsampleSaved, *, xp: Namespace | None = None) -> Array:
    """Return dx (N, C, H, W): the sum of the gradients of each pixel's repetitions."""
    kin, (n, c, h, w), (tall, wide) = saved
    xp = _check.namespace(xp, dy=dy, x=kin)
    _check.same_shape("dy", dy, (n, c, h * tall, w * wide), "the shape of y")
    rows = xp.reshape(dy, (n, c, h, tall, w * wide))
    total = _sum([rows[:, :, :, i, :] for i in range(tall)], xp)  # (N, C, H, W·g)
    columns = xp.reshape(total, (n, c, h, w, wide))
    return _sum([columns[..., j] for j in range(wide)], xp)


def _sum(parts: list[Array], xp: Namespace) -> Array:
    """Add a few slices up: a sum along their axis would take as long for each element as for a long row."""
    return reduce(lambda a, b: kernels.of(xp).add(a, b, xp), parts)
