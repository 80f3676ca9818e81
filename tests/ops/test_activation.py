"""Activations against their definitions."""

from __future__ import annotations

import numpy as np

from xpcnn import ops


def test_relu(arrays, dtype):
    x = np.array([[-np.inf, -2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, np.inf]], dtype)
    given = arrays(x)
    y, saved = ops.relu(given)
    np.testing.assert_array_equal(arrays.backend.to_numpy(y), np.array([[0, 0, 0, 0, 0, 1e-30, 3.0, np.inf]], dtype))
    dx = ops.relu_backward(arrays(np.arange(1.0, 9.0).reshape(1, 8), dtype), saved)
    arrays.check(dx, [[0, 0, 0, 0, 0, 6, 7, 8]], given, 0.0)


def test_relu_stops_infinite_gradients_and_passes_nan_on(arrays):
    y, saved = ops.relu(arrays(np.array([-1.0, 1.0, np.nan])))
    assert np.isnan(arrays.backend.to_numpy(y)[2])
    dx = arrays.backend.to_numpy(ops.relu_backward(arrays(np.array([np.inf, np.inf, 1.0])), saved))
    np.testing.assert_array_equal(dx[:2], [0.0, np.inf])


def test_relu_of_a_large_array(arrays, rng):
    x = rng.standard_normal((40, 50, 60)).astype(np.float32)
    y, saved = ops.relu(arrays(x))
    arrays.check(y, np.where(x > 0, x, 0), y, 0.0)
    arrays.check(ops.relu_backward(arrays(x), saved), np.where(x > 0, x, 0), y, 0.0)


def test_writing_to_y_does_not_change_backward(arrays):
    y, saved = ops.relu(arrays(np.array([-1.0, 2.0])))
    y -= 5.0
    arrays.check(ops.relu_backward(arrays(np.ones(2)), saved), [0.0, 1.0], y, 0.0)
