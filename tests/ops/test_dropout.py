"""Dropout with a given mask."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import XpcnnError, ops


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.9])
def test_kept_values_are_divided_by_the_kept_share(arrays, dtype, rate, rng):
    not_compiled(arrays)
    x, dy = (rng.standard_normal((3, 4, 5)).astype(dtype) for _ in range(2))
    mask = rng.random((3, 4, 5)) >= rate
    given, given_mask = arrays(x), arrays(mask)
    y, saved = ops.dropout(given, given_mask, rate)
    arrays.check(
        y, np.where(mask, x.astype(np.float64) / (1 - rate), 0.0), given, 1e-6 if dtype == "float32" else 1e-15
    )
    dx = ops.dropout_backward(arrays(dy), saved)
    arrays.check(
        dx, np.where(mask, dy.astype(np.float64) / (1 - rate), 0.0), given, 1e-6 if dtype == "float32" else 1e-15
    )
    np.testing.assert_array_equal(arrays.backend.to_numpy(given), x)
    np.testing.assert_array_equal(arrays.backend.to_numpy(given_mask), mask)


def test_backward_is_the_numerical_gradient(arrays, rng):
    not_compiled(arrays)
    x, dy, mask = rng.standard_normal((2, 7)), rng.standard_normal((2, 7)), rng.random((2, 7)) > 0.4
    _, saved = ops.dropout(arrays(x), arrays(mask), 0.4)
    (expected,) = oracles.numerical_gradients(lambda a: ops.dropout(a, mask, 0.4)[0], [x], dy)
    arrays.check(ops.dropout_backward(arrays(dy), saved), expected, arrays(x), 1e-8)


def test_the_mean_is_kept(rng):
    x = np.full((400, 500), 3.0, np.float32)
    for rate in (0.2, 0.7):
        y, _ = ops.dropout(x, rng.random(x.shape) >= rate, rate)
        assert float(y.mean()) == pytest.approx(3.0, rel=0.01)


def test_a_large_array(rng):
    x = rng.standard_normal((40, 50, 61)).astype(np.float32)
    mask = rng.random(x.shape) >= 0.3
    y, saved = ops.dropout(x, mask, 0.3)
    np.testing.assert_allclose(y, np.where(mask, x / 0.7, 0), rtol=1e-6)
    np.testing.assert_allclose(ops.dropout_backward(x, saved), np.where(mask, x / 0.7, 0), rtol=1e-6)


def test_nothing_kept_is_zero_and_all_kept_at_rate_0_is_a_copy(arrays):
    x = arrays(np.array([1.0, -2.0]))
    arrays.check(ops.dropout(x, arrays(np.zeros(2, bool)), 0.5)[0], [0.0, 0.0], x, 0.0)
    arrays.check(ops.dropout(x, arrays(np.ones(2, bool)), 0.0)[0], [1.0, -2.0], x, 0.0)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), "half", None])
def test_a_rate_that_is_no_share_is_named(rate):
    with pytest.raises(XpcnnError, match="rate"):
        ops.dropout(np.ones(3), np.ones(3, bool), rate)


def test_a_mask_that_does_not_fit_is_named(arrays):
    x = arrays(np.ones((2, 3)))
    with pytest.raises(XpcnnError) as caught:
        ops.dropout(x, arrays(np.ones((2, 4), bool)), 0.5)
    assert "(2, 3)" in str(caught.value)
    assert "(2, 4)" in str(caught.value)
    for mask in (np.ones((2, 3)), np.ones((2, 3), np.int64)):
        with pytest.raises(TypeError, match=f"mask.*{mask.dtype.name}"):
            ops.dropout(x, arrays(mask), 0.5)
    with pytest.raises(TypeError, match=r"mask must be an array.*got list"):
        ops.dropout(x, [[True, False, True]] * 2, 0.5)
    _, saved = ops.dropout(x, arrays(np.ones((2, 3), bool)), 0.5)
    with pytest.raises(XpcnnError, match=r"dy must have shape \(2, 3\).*\(3, 2\)"):
        ops.dropout_backward(arrays(np.ones((3, 2))), saved)


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 3, 1, 1), (1,), (), (4, 1), (2, 1, 1, 5)])
def test_a_mask_may_broadcast(arrays, shape, rng):
    not_compiled(arrays)
    x, dy = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    mask = np.array(rng.random(shape) > 0.5)
    y, saved = ops.dropout(arrays(x), arrays(mask), 0.5)
    arrays.check(y, x * mask * 2.0, y)
    arrays.check(ops.dropout_backward(arrays(dy), saved), dy * mask * 2.0, y)


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (5, 2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_a_mask_broadcasts_to_x_and_x_never_to_the_mask(arrays, shape):
    with pytest.raises(XpcnnError) as caught:
        ops.dropout(arrays(np.ones((2, 3, 4, 5))), arrays(np.ones(shape, bool)), 0.5)
    assert str(shape) in str(caught.value)
    assert "(2, 3, 4, 5)" in str(caught.value)


def test_what_is_dropped_is_gone_whatever_it_was(arrays):
    x = arrays(np.array([np.inf, np.nan, -np.inf, 1.0]))
    y, saved = ops.dropout(x, arrays(np.array([False, False, False, True])), 0.5)
    arrays.check(y, [0.0, 0.0, 0.0, 2.0], x, 0.0)
    arrays.check(ops.dropout_backward(x, saved), [0.0, 0.0, 0.0, 2.0], x, 0.0)
