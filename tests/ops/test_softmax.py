"""Softmax and its logarithm against their definitions, numerical gradients and PyTorch; far out too."""

from __future__ import annotations

from itertools import product

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import XpcnnError, ops


def _log_softmax(x, axis=-1):
    x = x.astype(np.longdouble)
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


CASES = {"softmax": lambda x, axis=-1: np.exp(_log_softmax(x, axis)), "log_softmax": _log_softmax}


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("op", CASES)
def test_values_and_gradients_are_the_definitions(arrays, dtype, op, axis, rng):
    not_compiled(arrays)
    x = (rng.standard_normal((2, 3, 4)) * 3).astype(dtype)
    options = {} if axis is None else {"axis": axis}
    given = arrays(x)
    y, saved = getattr(ops, op)(given, **options)
    arrays.check(y, CASES[op](x, **options).astype(float), given, 2e-6 if dtype == "float32" else 1e-13)
    dy = rng.standard_normal(x.shape)
    (expected,) = oracles.numerical_gradients(lambda a: CASES[op](a, **options), [x], dy)
    found = getattr(ops, f"{op}_backward")(arrays(dy, dtype), saved)
    arrays.check(found, expected, given, 1e-5 if dtype == "float32" else 1e-8)
    np.testing.assert_array_equal(arrays.backend.to_numpy(given), x)


@pytest.mark.parametrize("op", CASES)
def test_pytorch_agrees(op, rng):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn.functional, op)
    for shape, dtype, scale in product(
        [(7,), (4, 5), (3, 4, 5), (2, 3, 4, 5), (1, 1), (600, 300)], ("float32", "float64"), (0.1, 5.0, 100.0)
    ):
        for axis in range(-len(shape), len(shape)):
            x = (rng.standard_normal(shape) * scale).astype(dtype)
            dy = rng.standard_normal(shape).astype(dtype)
            y, saved = getattr(ops, op)(x, axis=axis)
            expected, (gradient,) = oracles.torch_gradients(lambda a, axis=axis: theirs(a, dim=axis), [x], dy)
            limit = 1e-5 if dtype == "float32" else 1e-12
            oracles.assert_close(y, expected, limit)
            oracles.assert_close(getattr(ops, f"{op}_backward")(dy, saved), gradient, limit)


@pytest.mark.parametrize("op", CASES)
def test_far_out_all_is_finite_and_right(arrays, dtype, op):
    if dtype == "float64":
        not_compiled(arrays)
    x = np.array(
        [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e30, 1e30, -1e30], [-1e30, 0.0, 1.0], [1e38, 1e38, 1e38], [1e-40, 0.0, -1e-40]]
    )  # fmt: skip
    x = x.astype(dtype)
    dy = np.linspace(-1, 2, x.size).reshape(x.shape).astype(dtype)
    y, saved = getattr(ops, op)(arrays(x))
    log_p = _log_softmax(x)
    p = np.exp(log_p)
    expected = (p if op == "softmax" else log_p).astype(float)
    found = arrays.backend.to_numpy(y)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    g = dy.astype(np.longdouble)
    gradient = p * (g - (g * p).sum(-1, keepdims=True)) if op == "softmax" else g - p * g.sum(-1, keepdims=True)
    arrays.check(getattr(ops, f"{op}_backward")(arrays(dy), saved), gradient.astype(float), y, 1e-6)


def test_what_is_impossible_stays_impossible(arrays):
    """Minus infinity masks a class out: probability 0, and no gradient through it."""
    not_compiled(arrays)
    x = arrays(np.array([[1.0, -np.inf, 1.0]]))
    y, saved = ops.softmax(x)
    arrays.check(y, [[0.5, 0.0, 0.5]], x, 1e-15)
    arrays.check(ops.softmax_backward(arrays(np.array([[1.0, 5.0, 3.0]])), saved), [[-0.5, 0.0, 0.5]], x, 1e-15)
    y, saved = ops.log_softmax(x)
    found = arrays.backend.to_numpy(y)
    np.testing.assert_allclose(found, [[-np.log(2), -np.inf, -np.log(2)]], rtol=1e-15)
    arrays.check(ops.log_softmax_backward(arrays(np.array([[1.0, 0.0, 3.0]])), saved), [[-1.0, 0.0, 1.0]], x, 1e-15)


def test_rows_add_up_to_1_and_a_constant_changes_nothing(arrays, rng):
    not_compiled(arrays)
    x = rng.standard_normal((5, 6))
    y = arrays.backend.to_numpy(ops.softmax(arrays(x))[0])
    np.testing.assert_allclose(y.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(arrays.backend.to_numpy(ops.softmax(arrays(x + 64.0))[0]), y, rtol=1e-12)


def test_one_class_is_certain(arrays):
    not_compiled(arrays)
    x = arrays(np.array([[3.0], [-1e4]]))
    arrays.check(ops.softmax(x)[0], [[1.0], [1.0]], x, 0.0)
    y, saved = ops.log_softmax(x)
    arrays.check(y, [[0.0], [0.0]], x, 0.0)
    arrays.check(ops.log_softmax_backward(arrays(np.ones((2, 1))), saved), [[0.0], [0.0]], x, 0.0)


@pytest.mark.parametrize("op", CASES)
def test_empty_batches(arrays, op):
    not_compiled(arrays)
    x = arrays(np.ones((0, 3)))
    y, saved = getattr(ops, op)(x)
    arrays.check(y, np.ones((0, 3)), x)
    arrays.check(getattr(ops, f"{op}_backward")(y, saved), np.ones((0, 3)), x)
    for shape, axis in (((0, 3), 0), ((2, 0), 1)):
        with pytest.raises(XpcnnError) as caught:
            getattr(ops, op)(arrays(np.ones(shape)), axis=axis)
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("axis", [2, -3, 1.5, "1", None, (0, 1), True])
@pytest.mark.parametrize("op", CASES)
def test_an_axis_that_is_not_there_is_named(op, axis):
    with pytest.raises(XpcnnError, match="axis"):
        getattr(ops, op)(np.ones((2, 3)), axis=axis)


@pytest.mark.parametrize("op", CASES)
def test_what_does_not_fit_is_named(op):
    with pytest.raises(XpcnnError, match="axis"):
        getattr(ops, op)(np.array(1.0))
    _, saved = getattr(ops, op)(np.ones((2, 3)))
    with pytest.raises(XpcnnError, match=r"dy must have shape \(2, 3\).*\(2, 1\)"):
        getattr(ops, f"{op}_backward")(np.ones((2, 1)), saved)


def test_the_whole_range_of_a_dtype_is_safe(dtype):
    """The largest number less the lowest is out of range; NumPy's warnings are errors here."""
    top = float(np.finfo(dtype).max)
    x = np.array([[top, -top], [0.0, -np.inf], [-top, -top]], dtype)
    np.testing.assert_array_equal(ops.softmax(x)[0], np.array([[1, 0], [1, 0], [0.5, 0.5]], dtype))
    np.testing.assert_array_equal(ops.log_softmax(x)[0][:2], np.array([[0, -top], [0, -np.inf]], dtype))
    loss, saved = ops.softmax_cross_entropy(x, np.array([0, 0, 1]), reduction="none")
    np.testing.assert_allclose(loss, [0, 0, np.log(2)], rtol=1e-6)
    assert np.isfinite(ops.softmax_cross_entropy_backward(saved)).all()
