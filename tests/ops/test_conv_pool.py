"""The fused convolution, ReLU and max pooling against the three ops it stands for."""

from __future__ import annotations

from itertools import product

import numpy as np
import oracles

from xpcnn import ops

CASES = [
    ((2, 2, 8, 9), (3, 2, 3, 3), {}),
    ((3, 1, 11, 10), (4, 1, 5, 4), {"pool_size": (2, 3)}),
    ((2, 2, 9, 9), (3, 2, 3, 2), {"stride": 2, "padding": "same"}),
    ((2, 1, 7, 8), (2, 1, 3, 3), {"padding": ((1, 0), (2, 2)), "pool_size": 3}),
    ((1, 1, 4, 4), (2, 1, 3, 3), {"pool_size": 1}),
]


def test_it_is_convolution_relu_and_pooling(arrays, dtype, rng):
    for shape, kernel, options in CASES[:2] if arrays.id == "jax" else CASES:  # which compiles every shape
        x, w, b = (rng.standard_normal(s).astype(dtype) for s in (shape, kernel, kernel[:1]))
        ax = arrays(x)
        y, saved = ops.conv2d_relu_max_pool2d(ax, arrays(w), arrays(b), **options)
        dy = rng.standard_normal(tuple(y.shape)).astype(dtype)
        expected, grads = _three_ops(x, w, b, dy, **options)
        arrays.check(y, expected, ax)
        for actual, value in zip(ops.conv2d_relu_max_pool2d_backward(arrays(dy), saved), grads, strict=True):
            arrays.check(actual, value, ax)


def test_ties_go_to_the_first_place(arrays):
    """On a constant image every place of the pooling window ties, as on MNIST's black ground."""
    x, w, b = np.ones((1, 1, 6, 6)), np.arange(9.0).reshape(1, 1, 3, 3) / 9, np.full(1, 0.5)
    y, saved = ops.conv2d_relu_max_pool2d(arrays(x), arrays(w), arrays(b))
    expected, grads = _three_ops(x, w, b, np.ones((1, 1, 2, 2)))
    arrays.check(y, expected, y)
    found = ops.conv2d_relu_max_pool2d_backward(arrays(np.ones((1, 1, 2, 2))), saved)
    for actual, value in zip(found, grads, strict=True):
        arrays.check(actual, value, y)


def test_backward_is_the_numerical_gradient(rng):
    x, w, b = rng.standard_normal((2, 2, 7, 7)), rng.standard_normal((3, 2, 3, 3)), rng.standard_normal(3)
    y, saved = ops.conv2d_relu_max_pool2d(x, w, b, padding=1)
    dy = rng.standard_normal(y.shape)

    def loss(x, w, b):
        return float((ops.conv2d_relu_max_pool2d(x, w, b, padding=1)[0] * dy).sum())

    numeric = (
        oracles.numerical_gradient(lambda a: loss(a, w, b), x),
        oracles.numerical_gradient(lambda a: loss(x, a, b), w),
        oracles.numerical_gradient(lambda a: loss(x, w, a), b),
    )
    for actual, expected in zip(ops.conv2d_relu_max_pool2d_backward(dy, saved), numeric, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)
    assert ops.conv2d_relu_max_pool2d_backward(dy, saved, need_dx=False)[0] is None


def test_many_blocks_give_what_one_gives(monkeypatch, rng):
    from xpcnn.kernels import numpy_cpu

    x, w, b = rng.standard_normal((37, 1, 12, 12)), rng.standard_normal((5, 1, 3, 3)), rng.standard_normal(5)
    y, saved = ops.conv2d_relu_max_pool2d(x, w, b)
    grads = ops.conv2d_relu_max_pool2d_backward(y, saved)
    for size, serial in product((1 << 12, 1 << 15), (1, 1 << 40)):
        monkeypatch.setattr(numpy_cpu, "BLOCK_BYTES", size)
        monkeypatch.setattr(numpy_cpu, "WORTH_A_THREAD", serial)
        cut, cut_saved = ops.conv2d_relu_max_pool2d(x, w, b)
        np.testing.assert_allclose(cut, y, rtol=0, atol=1e-13)
        for actual, expected in zip(ops.conv2d_relu_max_pool2d_backward(y, cut_saved), grads, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)


def _three_ops(x, w, b, dy, stride=1, padding=0, pool_size=2):
    """Return what the separate ops, each proven by itself, make of it."""
    z, conv_saved = ops.conv2d(x, w, b, stride=stride, padding=padding)
    r, relu_saved = ops.relu(z)
    y, pool_saved = ops.max_pool2d(r, pool_size)
    dz = ops.relu_backward(ops.max_pool2d_backward(dy, pool_saved), relu_saved)
    return y, ops.conv2d_backward(dz, conv_saved)
