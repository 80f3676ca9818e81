"""The fully connected layer against its definition and numerical gradients."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

from xpcnn import XpcnnError, ops


@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 3), (2, 1, 3, 2), (0, 6), (1, 6)])
def test_forward_and_backward(arrays, dtype, shape, rng):
    x, w, b = rng.standard_normal(shape), rng.standard_normal((6, 4)), rng.standard_normal(4)
    ax = arrays(x, dtype)
    y, saved = ops.affine(ax, arrays(w, dtype), arrays(b, dtype))
    expected = np.array(
        [[sum(row[i] * w[i, o] for i in range(6)) + b[o] for o in range(4)] for row in x.reshape(shape[0], 6)]
    )
    arrays.check(y, expected.reshape(shape[0], 4), ax)
    dy = rng.standard_normal((shape[0], 4))
    grads = ops.affine_backward(arrays(dy, dtype), saved)

    def loss(x, w, b):
        return float((ops.affine(x, w, b)[0] * dy).sum())

    numeric = (
        oracles.numerical_gradient(lambda a: loss(a, w, b), x),
        oracles.numerical_gradient(lambda a: loss(x, a, b), w),
        oracles.numerical_gradient(lambda a: loss(x, w, a), b),
    )
    for actual, expected_gradient in zip(grads, numeric, strict=True):
        arrays.check(actual, expected_gradient, ax, 1e-4 if dtype == "float32" else 1e-8)


def test_without_bias_or_dx(arrays, rng):
    y, saved = ops.affine(arrays(rng.standard_normal((2, 3))), arrays(rng.standard_normal((3, 4))))
    dx, dweight, dbias = ops.affine_backward(y, saved, need_dx=False)
    assert (dx, dbias) == (None, None)
    assert tuple(dweight.shape) == (3, 4)


def test_large_products_shared_between_threads_are_right(rng):
    """NumPy's version cuts large products by rows or by columns."""
    for n, features, out in ((300, 400, 20), (20, 400, 300)):
        x, w = rng.standard_normal((n, features)), rng.standard_normal((features, out))
        y, saved = ops.affine(x, w)
        np.testing.assert_allclose(y, np.einsum("ni,io->no", x, w), rtol=1e-11, atol=1e-11)
        dx, dw, _ = ops.affine_backward(y, saved)
        np.testing.assert_allclose(dx, np.einsum("no,io->ni", y, w), rtol=1e-11, atol=1e-9)
        np.testing.assert_allclose(dw, np.einsum("ni,no->io", x, y), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((2, 5), (6, 4), (4,)), "5 features"),
        (((6,), (6, 4), (4,)), "no features"),
        (((2, 6), (6,), (4,)), "in, out"),
        (((2, 6), (6, 4), (5,)), "(5,)"),
    ],
)
def test_what_does_not_fit_is_named(arrays, shapes, says):
    with pytest.raises(XpcnnError) as caught:
        ops.affine(*(arrays(np.ones(shape)) for shape in shapes))
    assert says in str(caught.value)


def test_a_long_column_is_added_up_exactly_enough():
    dy = np.full((2_000_000, 1), 0.1, np.float32)
    _, saved = ops.affine(np.zeros((2_000_000, 1), np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32))
    dbias = ops.affine_backward(dy, saved, need_dx=False)[2]
    assert float(dbias[0]) == pytest.approx(200_000, rel=1e-3)  # a running sum in float32 is off by 1.5e-2
