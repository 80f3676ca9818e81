"""Adaptive and global pooling against their definitions, numerical gradients and PyTorch."""

from __future__ import annotations

from itertools import product

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import XpcnnError, ops

CASES = [((7, 5), (3, 2)), ((4, 6), (2, 3)), ((2, 3), (5, 4)), ((5, 4), (1, 1)), ((1, 1), (1, 1)), ((1, 1), (3, 2))]


@pytest.mark.parametrize(("size", "out"), CASES)
def test_adaptive_averages_are_the_bins(arrays, dtype, size, out, rng):
    not_compiled(arrays)
    x = rng.standard_normal((2, 3, *size)).astype(dtype)
    given = arrays(x)
    y, saved = ops.adaptive_avg_pool2d(given, out)
    arrays.check(y, oracles.adaptive_avg_pool(x, out), given)
    dy = rng.standard_normal(tuple(y.shape))
    (expected,) = oracles.numerical_gradients(lambda a: oracles.adaptive_avg_pool(a, out), [x], dy)
    arrays.check(
        ops.adaptive_avg_pool2d_backward(arrays(dy, dtype), saved),
        expected,
        given,
        1e-4 if dtype == "float32" else 1e-9,
    )


def test_pytorchs_bins_for_all_small_sizes(rng):
    torch = pytest.importorskip("torch")
    pairs = list(product(range(1, 10), repeat=2))  # every size to every other, on both axes, the two not the same
    for number, (size, out) in enumerate(pairs):
        other_size, other_out = pairs[(number * 31 + 7) % 81]
        for dtype, limit in (("float64", 1e-10), ("float32", 1e-5)):
            x = rng.standard_normal((2, 3, size, other_size)).astype(dtype)
            wanted = (out, other_out)
            y, saved = ops.adaptive_avg_pool2d(x, wanted)
            dy = rng.standard_normal((2, 3, *wanted)).astype(dtype)
            expected, (gradient,) = oracles.torch_gradients(
                lambda a, wanted=wanted: torch.nn.functional.adaptive_avg_pool2d(a, wanted), [x], dy
            )
            oracles.assert_close(y, expected, limit)
            oracles.assert_close(ops.adaptive_avg_pool2d_backward(dy, saved), gradient, limit)


@pytest.mark.parametrize(
    ("output_size", "means"),
    [(2, (2, 2)), ((2, 3), (2, 3)), ([2, 3], (2, 3)), ((None, 3), (5, 3)), ((2, None), (2, 4)), ((None, None), (5, 4)), (None, (5, 4)), (np.int64(3), (3, 3))],
)  # fmt: skip
def test_an_output_size_is_an_int_a_pair_or_none(arrays, output_size, means, rng):
    not_compiled(arrays)
    x = rng.standard_normal((2, 3, 5, 4))
    y, saved = ops.adaptive_avg_pool2d(arrays(x), output_size)
    arrays.check(y, oracles.adaptive_avg_pool(x, means), y)
    assert tuple(ops.adaptive_avg_pool2d_backward(y, saved).shape) == (2, 3, 5, 4)


@pytest.mark.parametrize("output_size", [0, -1, (2, 0), (2, 3, 4), (2,), 2.5, "all", (2, "b"), True, np.array([2, 2])])
def test_an_output_size_that_is_none_of_these_is_named(output_size):
    with pytest.raises(XpcnnError, match="output_size"):
        ops.adaptive_avg_pool2d(np.ones((1, 1, 4, 4)), output_size)


def test_global_average_is_the_mean(arrays, dtype, rng):
    not_compiled(arrays)
    x = rng.standard_normal((3, 2, 4, 5)).astype(dtype)
    given = arrays(x)
    y, saved = ops.global_avg_pool2d(given)
    arrays.check(y, x.astype(np.float64).mean(axis=(2, 3)), given)
    dy = rng.standard_normal((3, 2)).astype(dtype)
    expected = np.broadcast_to((dy / 20)[:, :, None, None], x.shape)
    arrays.check(ops.global_avg_pool2d_backward(arrays(dy), saved), expected, given)


def test_global_maximum_is_the_first_of_the_largest(arrays, dtype, rng):
    not_compiled(arrays)
    x = rng.integers(-2, 3, (4, 3, 4, 5)).astype(dtype)  # many ties
    x[0, 0] = -np.inf
    x[0, 1] = 7.0
    given = arrays(x)
    y, saved = ops.global_max_pool2d(given)
    np.testing.assert_array_equal(arrays.backend.to_numpy(y), x.max(axis=(2, 3)))
    assert y.dtype == given.dtype
    index = np.array([[min(i for i in range(20) if plane.flat[i] == plane.max()) for plane in image] for image in x])
    np.testing.assert_array_equal(arrays.backend.to_numpy(saved.indices), index)
    dy = rng.standard_normal((4, 3)).astype(dtype)
    expected = np.zeros((4, 3, 20))
    np.put_along_axis(expected, index[:, :, None], dy[:, :, None], axis=2)
    arrays.check(ops.global_max_pool2d_backward(arrays(dy), saved), expected.reshape(x.shape), given, 0.0)


def test_not_a_number_is_passed_on(arrays):
    not_compiled(arrays)
    x = np.arange(8.0).reshape(1, 2, 2, 2)
    x[0, 0, 1, 0] = np.nan
    for op in (ops.global_avg_pool2d, ops.global_max_pool2d):
        y = arrays.backend.to_numpy(op(arrays(x))[0])
        assert np.isnan(y[0, 0])
        assert np.isfinite(y[0, 1])


def test_pytorch_agrees(rng):
    torch = pytest.importorskip("torch")
    pool = torch.nn.functional
    for dtype, limit, size in product(("float64", "float32"), (1e-5,), ((1, 1), (7, 1), (6, 5), (40, 41))):
        x = rng.standard_normal((3, 4, *size)).astype(dtype)
        dy = rng.standard_normal((3, 4)).astype(dtype)
        for op, theirs in (
            ("global_avg_pool2d", pool.adaptive_avg_pool2d),
            ("global_max_pool2d", pool.adaptive_max_pool2d),
        ):
            y, saved = getattr(ops, op)(x)
            expected, (gradient,) = oracles.torch_gradients(lambda a, theirs=theirs: theirs(a, 1)[:, :, 0, 0], [x], dy)
            oracles.assert_close(y, expected, limit if dtype == "float32" else 1e-10)
            oracles.assert_close(
                getattr(ops, f"{op}_backward")(dy, saved), gradient, limit if dtype == "float32" else 1e-10
            )


@pytest.mark.parametrize("op", ["adaptive_avg_pool2d", "global_avg_pool2d", "global_max_pool2d"])
def test_what_does_not_fit_is_named(arrays, op):
    more = (1,) if "adaptive" in op else ()
    with pytest.raises(XpcnnError) as caught:
        getattr(ops, op)(arrays(np.ones((3, 4, 4))), *more)
    assert "N, C, H, W" in str(caught.value)
    assert "(3, 4, 4)" in str(caught.value)
    for empty in ((1, 2, 0, 3), (1, 2, 3, 0)):
        with pytest.raises(XpcnnError) as caught:
            getattr(ops, op)(arrays(np.ones(empty)), *more)
        assert str(empty) in str(caught.value) or str(empty[2:]) in str(caught.value)
    _, saved = getattr(ops, op)(arrays(np.ones((2, 3, 4, 4))), *more)
    with pytest.raises(XpcnnError, match=r"dy must have shape .*got \(2, 4\)"):
        getattr(ops, f"{op}_backward")(arrays(np.ones((2, 4))), saved)
