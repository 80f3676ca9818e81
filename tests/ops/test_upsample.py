"""Upsampling by repeated pixels: each output's own pixel, the sum of gradients, and PyTorch's nearest neighbour."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import ArrayTypeError, XpcnnError, ops


@pytest.mark.parametrize("factor", [1, 2, 3, (1, 4), (5, 1), (2, 3)])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (5, 2)])
def test_every_pixel_is_repeated_and_gets_the_sum_back(arrays, dtype, factor, size, rng):
    not_compiled(arrays, "upsample2d" if factor == 3 and size == (3, 4) else None, dtype)
    f, g = (factor, factor) if isinstance(factor, int) else factor
    x = rng.standard_normal((2, 3, *size)).astype(dtype)
    given = arrays(x)
    y, saved = ops.upsample2d(given, factor)
    expected = np.empty((2, 3, f * size[0], g * size[1]))
    dx = np.zeros(x.shape)
    dy = rng.standard_normal(expected.shape).astype(dtype)
    for i, j in np.ndindex(*expected.shape[2:]):
        expected[:, :, i, j] = x[:, :, i // f, j // g]
        dx[:, :, i // f, j // g] += dy[:, :, i, j]
    arrays.check(y, expected, given, 0.0)
    arrays.check(ops.upsample2d_backward(arrays(dy), saved), dx, given, 1e-5 if dtype == "float32" else 1e-12)
    arrays.check(given, x, given, 0.0)


def test_it_is_pytorchs_nearest_neighbour(rng):
    functional = pytest.importorskip("torch").nn.functional
    x, dy = rng.standard_normal((2, 3, 7, 6)), rng.standard_normal((2, 3, 28, 18))
    expected, (dx,) = oracles.torch_gradients(lambda a: functional.interpolate(a, scale_factor=(4, 3)), [x], dy)
    y, saved = ops.upsample2d(x, (4, 3))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(ops.upsample2d_backward(dy, saved), dx, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [0, -1, 1.5, (2,), (2, 2, 2), "2", None, True])
def test_a_factor_that_is_none_is_named(factor):
    with pytest.raises(XpcnnError, match="factor must be one int or 2 ints, each at least 1"):
        ops.upsample2d(np.ones((1, 1, 2, 2)), factor)


def test_what_does_not_fit_is_named():
    with pytest.raises(XpcnnError, match=r"x must have the axes \(N, C, H, W\), got shape \(2, 3, 4\)"):
        ops.upsample2d(np.ones((2, 3, 4)), 2)
    _, saved = ops.upsample2d(np.ones((1, 2, 3, 4)), (2, 3))
    with pytest.raises(XpcnnError, match=r"dy must have shape \(1, 2, 6, 12\).*\(1, 2, 3, 4\)"):
        ops.upsample2d_backward(np.ones((1, 2, 3, 4)), saved)
    with pytest.raises(ArrayTypeError, match="one dtype"):
        ops.upsample2d_backward(np.ones((1, 2, 6, 12), np.float32), saved)
