"""Sums, differences, products and scales of arrays that are stretched: NumPy's numbers, numerical gradients."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import ArrayTypeError, XpcnnError
from xpcnn.ops import broadcast

TWO = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply}
SHAPES = [
    ((3, 4), (3, 4)),
    ((3, 4, 5, 2), (3, 4, 1, 1)),
    ((3, 1, 5), (3, 4, 1)),
    ((1, 4), (3, 4)),
    ((2, 1, 1), (2, 1, 1)),
]
SCALES = [((3, 4, 5, 2), (4, 1, 1)), ((3, 4), ()), ((3, 4), (4,)), ((2, 3, 4), (3, 4)), ((2, 3, 1), (1, 1))]


@pytest.mark.parametrize(("a", "b"), SHAPES)
@pytest.mark.parametrize("op", TWO)
def test_two_arrays(arrays, dtype, op, a, b, rng):
    not_compiled(arrays)
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in (a, b))
    dy = rng.standard_normal(np.broadcast_shapes(a.shape, b.shape)).astype(dtype)
    y, saved = getattr(broadcast, op)(arrays(a), arrays(b))
    arrays.check(y, TWO[op](a.astype(float), b.astype(float)), y, 1e-6)
    wide = [array.astype(float) for array in (a, b)]
    expected = oracles.numerical_gradients(TWO[op], wide, dy.astype(float))
    for found, gradient in zip(getattr(broadcast, f"{op}_backward")(arrays(dy), saved), expected, strict=True):
        arrays.check(found, gradient, y, 1e-5 if dtype == "float32" else 1e-8)


@pytest.mark.parametrize("both", [(True, True), (True, False), (False, True)], ids=["both", "scale", "shift"])
@pytest.mark.parametrize(("shape", "own"), SCALES)
def test_scales(arrays, dtype, shape, own, both, rng):
    not_compiled(arrays)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    factor, shift = (rng.standard_normal(own).astype(dtype) if there else None for there in both)

    def definition(x, *given):
        rest = list(given)
        y = x * rest.pop(0) if factor is not None else x
        return y + rest.pop(0) if shift is not None else y

    given = [np.asarray(array, float) for array in (x, factor, shift) if array is not None]
    y, saved = broadcast.scale(arrays(x), *(None if part is None else arrays(part, dtype) for part in (factor, shift)))
    arrays.check(y, definition(*given), y, 1e-6)
    expected = iter(oracles.numerical_gradients(definition, given, dy.astype(float)))
    dx, *others = broadcast.scale_backward(arrays(dy), saved)
    for found, there in zip((dx, *others), (True, *both), strict=True):
        if there:
            arrays.check(found, next(expected), y, 1e-5 if dtype == "float32" else 1e-8)
        else:
            assert found is None
    alone = broadcast.scale_backward(arrays(dy), saved, need_dx=False)
    assert alone[0] is None
    for part, whole in zip(alone[1:], others, strict=True):
        assert (part is None) == (whole is None)
        if whole is not None:
            arrays.check(part, arrays.backend.to_numpy(whole), y, 0.0)


def test_large_arrays_are_as_small_ones(rng):
    """NumPy's version takes memory that was used before."""
    a, b = rng.standard_normal((3, 8, 40, 50)).astype(np.float32), rng.standard_normal((3, 8, 1, 1)).astype(np.float32)
    for op, plain in TWO.items():
        for first, second in ((a, b), (b, a), (a, a), (a[::-1], b), (a, b[:1])):
            np.testing.assert_array_equal(getattr(broadcast, op)(first, second)[0], plain(first, second))


def test_half_precision_is_computed_in_float32_and_rounded_once(rng):
    torch = pytest.importorskip("torch")
    a, b = (torch.tensor(rng.standard_normal((2, 300, n)), dtype=torch.bfloat16) for n in (3, 1))
    y, saved = broadcast.multiply(a, b)
    assert torch.equal(y, (a.float() * b.float()).bfloat16())
    _, db = broadcast.multiply_backward(y, saved)
    assert db.dtype == torch.bfloat16
    assert torch.equal(db, (y.float() * a.float()).sum(2, keepdim=True).bfloat16())


@pytest.mark.parametrize("op", TWO)
def test_shapes_and_dtypes_that_do_not_fit_are_named(op):
    with pytest.raises(XpcnnError, match=r"\(2, 3\) and \(2, 4\) must agree on each axis"):
        getattr(broadcast, op)(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(XpcnnError, match=r"\(2, 3\) and \(3,\) must agree"):
        getattr(broadcast, op)(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ArrayTypeError, match="a is float64, b is float32"):
        getattr(broadcast, op)(np.ones((2, 3)), np.ones((2, 3), np.float32))
    _, saved = getattr(broadcast, op)(np.ones((2, 3)), np.ones((2, 1)))
    with pytest.raises(XpcnnError, match=r"dy must have shape \(2, 3\)"):
        getattr(broadcast, f"{op}_backward")(np.ones((2, 1)), saved)


def test_scales_that_do_not_fit_are_named():
    x = np.ones((2, 3, 4))
    for name, options in (("scale", (np.ones(3), None)), ("shift", (None, np.ones((1, 2, 3, 4))))):
        with pytest.raises(XpcnnError, match=rf"{name} of shape .* does not broadcast to x's shape \(2, 3, 4\)"):
            broadcast.scale(x, *options)
