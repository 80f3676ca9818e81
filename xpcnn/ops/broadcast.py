"""Arithmetic of arrays whose shapes may differ: axes of length 1, and missing leading ones, are stretched."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError
from xpcnn.ops import _check, half

Shape = tuple[int, ...]


class TotalSaved(NamedTuple):
    """What the backward of a sum or a difference needs."""

    shapes: tuple[Shape, Shape]
    sign: int  # of the second array
    kin: Array


class ProductSaved(NamedTuple):
    """What the backward of a product needs."""

    a: Array
    b: Array


class ScaleSaved(NamedTuple):
    """What `scale_backward` needs."""

    x: Array  # an empty array of its kind where there is no factor
    factor: Array | None
    shape: Shape  # of x
    shift: Shape | None


@half.forward
def add(a: Array, b: Array, *, xp: Namespace | None = None) -> tuple[Array, TotalSaved]:
    """Return ``a + b``."""
    xp = _check.namespace(xp, a=a, b=b)
    joined(tuple(a.shape), tuple(b.shape))
    return kernels.of(xp).add(a, b, xp), TotalSaved((tuple(a.shape), tuple(b.shape)), 1, _check.kin(a, xp))


@half.forward
def subtract(a: Array, b: Array, *, xp: Namespace | None = None) -> tuple[Array, TotalSaved]:
    """Return ``a - b``."""
    xp = _check.namespace(xp, a=a, b=b)
    shape = joined(tuple(a.shape), tuple(b.shape))
    both = [xp.broadcast_to(a, shape), xp.broadcast_to(b, shape)]
    (y,) = kernels.of(xp).elementwise(lambda xp, a, b: (a - b,), both, xp)
    return y, TotalSaved((tuple(a.shape), tuple(b.shape)), -1, _check.kin(a, xp))


@half.backward
def add_backward(dy: Array, saved: TotalSaved, *, xp: Namespace | None = None) -> tuple[Array, Array]:
    """Return da and db: dy, or minus it, added up along the axes that were stretched."""
    xp = _check.namespace(xp, dy=dy, x=saved.kin)
    _check.same_shape("dy", dy, joined(*saved.shapes), "the shape of y")
    da, db = (summed(dy, shape, xp) for shape in saved.shapes)
    if saved.sign < 0:
        (db,) = kernels.of(xp).elementwise(lambda xp, g: (-g,), [db], xp)
    return da, db


subtract_backward = add_backward


@half.forward
def multiply(a: Array, b: Array, *, xp: Namespace | None = None) -> tuple[Array, ProductSaved]:
    """Return ``a · b``, element by element."""
    xp = _check.namespace(xp, a=a, b=b)
    joined(tuple(a.shape), tuple(b.shape))
    return kernels.of(xp).multiply(a, b, xp), ProductSaved(a, b)


@half.backward
def multiply_backward(dy: Array, saved: ProductSaved, *, xp: Namespace | None = None) -> tuple[Array, Array]:
    """Return ``da = dy · b`` and ``db = dy · a``, added up along the axes that were stretched."""
    a, b = saved
    xp = _check.namespace(xp, dy=dy, a=a, b=b)
    _check.same_shape("dy", dy, joined(tuple(a.shape), tuple(b.shape)), "the shape of y")
    k = kernels.of(xp)
    return summed(k.multiply(dy, b, xp), tuple(a.shape), xp), summed(k.multiply(dy, a, xp), tuple(b.shape), xp)


@half.forward
def scale(
    x: Array, factor: Array | None, shift: Array | None, *, xp: Namespace | None = None
) -> tuple[Array, ScaleSaved]:
    """Return ``x · factor + shift``; either may be None, and both are stretched to x's shape."""
    xp = _check.namespace(xp, {"scale": factor, "shift": shift}, x=x)
    shape = tuple(x.shape)
    for name, array in (("scale", factor), ("shift", shift)):
        if array is not None and not _stretches(tuple(array.shape), shape):
            raise XpcnnError(f"{name} of shape {tuple(array.shape)} does not broadcast to x's shape {shape}.")
    k = kernels.of(xp)
    y = x if factor is None else k.multiply(x, factor, xp)
    y = y if shift is None else k.add(y, shift, xp)
    kept = _check.kin(x, xp) if factor is None else x
    return y, ScaleSaved(kept, factor, shape, None if shift is None else tuple(shift.shape))


@half.backward
def scale_backward(
    dy: Array, saved: ScaleSaved, *, need_dx: bool = True, xp: Namespace | None = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return ``dx = dy · factor``, ``dfactor = Σ dy · x`` and ``dshift = Σ dy``; None for what there is not."""
    x, factor, shape, shift = saved
    xp = _check.namespace(xp, dy=dy, x=x)
    _check.same_shape("dy", dy, shape, "the shape of y")
    dshift = None if shift is None else summed(dy, shift, xp)
    if factor is None:
        return dy if need_dx else None, None, dshift
    k = kernels.of(xp)
    dx = k.multiply(dy, factor, xp) if need_dx else None
    return dx, summed(k.multiply(dy, x, xp), tuple(factor.shape), xp), dshift


def summed(dy: Array, shape: Shape, xp: Namespace) -> Array:
    """Adjoint of stretching an array of a shape to dy's: add dy up along the axes that were stretched."""
    if tuple(dy.shape) == shape:
        return dy
    missing = dy.ndim - len(shape)
    same = zip(dy.shape[missing:], shape, strict=True)
    axes = (*range(missing), *(axis for axis, (n, own) in enumerate(same, start=missing) if n != own))
    return xp.reshape(kernels.of(xp).sum_axes(dy, axes, xp), shape)


def joined(a: Shape, b: Shape) -> Shape:
    """Return the shape of the result, or raise unless the shapes agree but for axes of length 1."""
    if a == b:
        return a
    if len(a) == len(b) and all(m == n or m == 1 or n == 1 for m, n in zip(a, b, strict=True)):
        return tuple(n if m == 1 else m for m, n in zip(a, b, strict=True))
    raise XpcnnError(f"the shapes {a} and {b} must agree on each axis, or have length 1 there.")


def _stretches(shape: Shape, full: Shape) -> bool:
    """Whether an array of a shape can be stretched to another."""
    return len(shape) <= len(full) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(full), strict=False))
