"""Max pooling against a naive loop, numerical gradients and PyTorch."""

from __future__ import annotations

from itertools import product

import numpy as np
import oracles
import pytest

from xpcnn import XpcnnError, ops

POOL = {1: ops.max_pool1d, 2: ops.max_pool2d, 3: ops.max_pool3d}
BACKWARD = {1: ops.max_pool1d_backward, 2: ops.max_pool2d_backward, 3: ops.max_pool3d_backward}

# size, kernel, options, the same as (stride, padding pairs, dilation, ceil_mode)
CASES = {
    "tiles": ((6, 4), 2, {}, ((2, 2), ((0, 0), (0, 0)), (1, 1), False)),
    "leftover": ((7, 5), 2, {}, ((2, 2), ((0, 0), (0, 0)), (1, 1), False)),
    "overlap": ((6, 7), 3, {"stride": 2}, ((2, 2), ((0, 0), (0, 0)), (1, 1), False)),
    "gaps": ((9, 8), (2, 1), {"stride": (3, 4)}, ((3, 4), ((0, 0), (0, 0)), (1, 1), False)),
    "padding": ((5, 6), 3, {"padding": 1}, ((3, 3), ((1, 1), (1, 1)), (1, 1), False)),
    "padding-kernel-less-one": ((4, 4), 3, {"padding": 2, "stride": 1}, ((1, 1), ((2, 2), (2, 2)), (1, 1), False)),
    "pairs": ((5, 6), 3, {"padding": ((0, 2), (1, 0)), "stride": 2}, ((2, 2), ((0, 2), (1, 0)), (1, 1), False)),
    "dilation": ((8, 9), 2, {"dilation": (2, 3), "stride": 1}, ((1, 1), ((0, 0), (0, 0)), (2, 3), False)),
    "ceil": ((7, 6), 2, {"ceil_mode": True, "stride": 3}, ((3, 3), ((0, 0), (0, 0)), (1, 1), True)),
    "ceil-padding": ((6, 5), 3, {"ceil_mode": True, "padding": 1, "stride": 2}, ((2, 2), ((1, 1), (1, 1)), (1, 1), True)),
    "one-pixel": ((1, 1), 1, {}, ((1, 1), ((0, 0), (0, 0)), (1, 1), False)),
    "one-dimension": ((9,), 3, {"stride": 2, "padding": 1}, ((2,), ((1, 1),), (1,), False)),
    "three-dimensions": ((4, 5, 3), (2, 3, 1), {"stride": 1, "padding": (0, 1, 0)}, ((1, 1, 1), ((0, 0), (1, 1), (0, 0)), (1, 1, 1), False)),
}  # fmt: skip


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", CASES)
def test_maxima_and_positions_are_the_naive_loops(arrays, dtype, name, ties, rng):
    size, kernel, options, plain = CASES[name]
    x = _images(rng, (2, 3, *size), dtype, ties)
    given = arrays(x)
    y, saved = POOL[len(size)](given, kernel, **options)
    expected, index = oracles.max_pool(x, _tuple(kernel, len(size)), *plain)
    arrays.check(y, expected, given, 0.0)
    np.testing.assert_array_equal(arrays.backend.to_numpy(saved.indices), index)
    np.testing.assert_array_equal(arrays.backend.to_numpy(given), x)


@pytest.mark.parametrize("name", CASES)
def test_each_gradient_goes_to_its_maximum_alone(arrays, dtype, name, rng):
    size, kernel, options, plain = CASES[name]
    x = _images(rng, (2, 2, *size), dtype, ties=True)
    y, saved = POOL[len(size)](arrays(x), kernel, **options)
    dy = rng.standard_normal(tuple(y.shape)).astype(dtype)
    _, index = oracles.max_pool(x, _tuple(kernel, len(size)), *plain)
    expected = np.zeros((2, 2, np.prod(size)))
    for n, c in product(range(2), range(2)):
        np.add.at(expected[n, c], index[n, c].ravel(), dy[n, c].ravel().astype(np.float64))
    arrays.check(BACKWARD[len(size)](arrays(dy), saved), expected.reshape(x.shape), y)


def test_backward_is_the_numerical_gradient(arrays, rng):
    x = rng.permutation(2 * 7 * 6).reshape(1, 2, 7, 6).astype(np.float64)
    options = {"stride": 2, "padding": 1, "ceil_mode": True}
    y, saved = ops.max_pool2d(arrays(x), 3, **options)
    dy = rng.standard_normal(tuple(y.shape))
    numeric = oracles.numerical_gradient(lambda a: float((ops.max_pool2d(a, 3, **options)[0] * dy).sum()), x)
    arrays.check(ops.max_pool2d_backward(arrays(dy), saved), numeric, y, 1e-6)


def test_pytorch_agrees_over_a_product_of_options(rng):
    torch = pytest.importorskip("torch")
    for kernel, stride, padding, dilation, ceil_mode in product((2, 3), (None, 1, 2, 3), (0, 1), (1, 2), (False, True)):
        x = _images(rng, (2, 3, 11, 10), "float64", ties=True)
        leaf = torch.tensor(x, requires_grad=True)
        expected, index = torch.nn.functional.max_pool2d(
            leaf, kernel, stride, padding, dilation, ceil_mode, return_indices=True
        )
        y, saved = ops.max_pool2d(x, kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
        np.testing.assert_array_equal(y, expected.detach().numpy())
        np.testing.assert_array_equal(saved.indices, index.numpy())
        dy = rng.standard_normal(y.shape)
        expected.backward(torch.tensor(dy))
        np.testing.assert_allclose(ops.max_pool2d_backward(dy, saved), leaf.grad.numpy(), rtol=0, atol=1e-12)


def test_padding_never_wins_even_over_minus_infinity(arrays):
    x = np.full((1, 1, 3, 3), -np.inf)
    for mode in ("cross-correlation", "convolution"):
        y, saved = ops.max_pool2d(arrays(x), 2, stride=1, padding=1, mode=mode)
        assert np.isneginf(arrays.backend.to_numpy(y)).all()
        index = arrays.backend.to_numpy(saved.indices)
        assert index.min() >= 0
        assert index.max() < 9
        dx = ops.max_pool2d_backward(arrays(np.ones((1, 1, 4, 4))), saved)
        assert float(arrays.backend.to_numpy(dx).sum()) == 16.0


def test_a_window_that_meets_no_pixel_has_no_index(arrays):
    """A dilated window's elements may lie on both sides of a small image."""
    y, saved = ops.max_pool1d(arrays(np.ones((1, 1, 1))), 2, stride=1, dilation=3, padding=2)
    assert np.isneginf(arrays.backend.to_numpy(y)).all()
    np.testing.assert_array_equal(arrays.backend.to_numpy(saved.indices), [[[-1, -1]]])
    arrays.check(ops.max_pool1d_backward(arrays(np.ones((1, 1, 2))), saved), [[[0.0]]], y)


def test_convolution_mode_meets_the_inputs_backwards(arrays):
    x = np.zeros((1, 1, 2, 4))
    y, saved = ops.max_pool2d(arrays(x), (1, 3), stride=1, mode="convolution")
    np.testing.assert_array_equal(arrays.backend.to_numpy(saved.indices)[0, 0], [[2, 3], [6, 7]])
    arrays.check(ops.max_pool2d_backward(y + 1.0, saved), [[[[0, 0, 1, 1], [0, 0, 1, 1]]]], y)


@pytest.mark.parametrize("mode", ["cross-correlation", "convolution"])
def test_center_pools_what_the_contract_words(arrays, mode):
    """Pooling with a center picks the same windows as a convolution: compare with a convolution of ones."""
    x = np.arange(20.0).reshape(1, 1, 4, 5) ** 2
    for center in np.ndindex(2, 3):
        options = {"stride": (1, 2), "center": center, "mode": mode}
        y, saved = ops.max_pool2d(arrays(x), (2, 3), **options)
        seen = {}
        for place in np.ndindex(4, 5):
            spot = np.zeros((1, 1, 4, 5))
            spot[(0, 0, *place)] = 1.0
            for o in np.argwhere(ops.conv2d(spot, np.ones((1, 1, 2, 3)), **options)[0][0, 0]):
                seen.setdefault(tuple(o), []).append(x[(0, 0, *place)])
        expected = np.array([max(seen[o]) for o in np.ndindex(*y.shape[2:])]).reshape(y.shape)
        arrays.check(y, expected, y, 0.0)
        np.testing.assert_array_equal(np.sqrt(expected), arrays.backend.to_numpy(saved.indices))


def test_not_a_number_is_passed_on(arrays):
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    x[0, 0, 0, 1] = np.nan
    y = arrays.backend.to_numpy(ops.max_pool2d(arrays(x), 2)[0])
    assert np.isnan(y[0, 0, 0, 0])
    np.testing.assert_array_equal(y[0, 0].ravel()[1:], [7.0, 13.0, 15.0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": 6}, "larger than the padded input"),
        ({"stride": 0}, "stride"),
        ({"padding": 2}, "smaller than the (dilated) kernel (2, 2)"),
        ({"padding": "all"}, "'all'"),
        ({"dilation": 5}, "dilated to (6, 6)"),
        ({"x": (4, 4)}, "N, C, H, W"),
    ],
)
def test_what_does_not_fit_is_named(arrays, change, says):
    x = arrays(np.ones(change.get("x", (1, 1, 4, 4))))
    options = {"kernel_size": 2} | {key: value for key, value in change.items() if key != "x"}
    with pytest.raises(XpcnnError) as caught:
        ops.max_pool2d(x, **options)
    assert says in str(caught.value)


def _images(rng, shape, dtype, ties):
    """Return images without equal values, or with many."""
    if ties:
        return rng.integers(-2, 3, shape).astype(dtype)
    return (rng.permutation(np.prod(shape)).reshape(shape) - 10.0).astype(dtype)


def _tuple(kernel, axes):
    return (kernel,) * axes if isinstance(kernel, int) else kernel


def test_what_comes_back_is_not_what_was_given(arrays):
    """A window of one pixel gives a copy, which may be written to without changing x."""
    x = arrays(np.ones((1, 1, 4, 4)))
    for stride in (1, 2):
        y, _ = ops.max_pool2d(x, 1, stride=stride)
        y += 5.0
        assert float(arrays.backend.to_numpy(x).max()) == 1.0


def test_a_last_window_may_hang_over_by_less_than_the_stride(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((1, 1, 4, 5))
    options = {"stride": 3, "padding": (0, 1), "dilation": (2, 1), "ceil_mode": True}
    expected = torch.nn.functional.max_pool2d(torch.tensor(x), (3, 2), **options).numpy()
    np.testing.assert_array_equal(ops.max_pool2d(x, (3, 2), **options)[0], expected)
