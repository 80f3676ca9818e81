"""Average pooling against a naive loop, numerical gradients and PyTorch."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import XpcnnError, ops

POOL = {1: ops.avg_pool1d, 2: ops.avg_pool2d, 3: ops.avg_pool3d}
BACKWARD = {1: ops.avg_pool1d_backward, 2: ops.avg_pool2d_backward, 3: ops.avg_pool3d_backward}

# size, kernel, options, the same as (stride, padding pairs, dilation, ceil_mode, count_include_pad)
CASES = {
    "tiles": ((6, 4), 2, {}, ((2, 2), ((0, 0), (0, 0)), (1, 1), False, True)),
    "leftover": ((7, 5), (2, 3), {}, ((2, 3), ((0, 0), (0, 0)), (1, 1), False, True)),
    "overlap": ((6, 7), 3, {"stride": 2}, ((2, 2), ((0, 0), (0, 0)), (1, 1), False, True)),
    "gaps": ((9, 8), (2, 1), {"stride": (3, 4)}, ((3, 4), ((0, 0), (0, 0)), (1, 1), False, True)),
    "padding": ((5, 6), 3, {"padding": 1}, ((3, 3), ((1, 1), (1, 1)), (1, 1), False, True)),
    "padding-uncounted": (
        (5, 6), 3, {"padding": 1, "count_include_pad": False}, ((3, 3), ((1, 1), (1, 1)), (1, 1), False, False),
    ),
    "padding-kernel-less-one": (
        (4, 4), 3, {"padding": 2, "stride": 1, "count_include_pad": False},
        ((1, 1), ((2, 2), (2, 2)), (1, 1), False, False),
    ),
    "pairs": (
        (5, 6), 3, {"padding": ((0, 2), (1, 0)), "stride": 2}, ((2, 2), ((0, 2), (1, 0)), (1, 1), False, True),
    ),
    "pairs-uncounted": (
        (5, 6), 3, {"padding": ((0, 2), (1, 0)), "stride": 2, "count_include_pad": False},
        ((2, 2), ((0, 2), (1, 0)), (1, 1), False, False),
    ),
    "same": ((5, 6), 3, {"padding": "same", "stride": 2}, ((2, 2), ((1, 1), (0, 1)), (1, 1), False, True)),
    "valid": ((5, 6), 3, {"padding": "valid", "stride": 2}, ((2, 2), ((0, 0), (0, 0)), (1, 1), False, True)),
    "dilation": ((8, 9), 2, {"dilation": (2, 3), "stride": 1}, ((1, 1), ((0, 0), (0, 0)), (2, 3), False, True)),
    "ceil": ((7, 6), 2, {"ceil_mode": True, "stride": 3}, ((3, 3), ((0, 0), (0, 0)), (1, 1), True, True)),
    "ceil-padding": (
        (6, 5), 3, {"ceil_mode": True, "padding": 1, "stride": 2}, ((2, 2), ((1, 1), (1, 1)), (1, 1), True, True),
    ),
    "ceil-padding-uncounted": (
        (6, 5), 3, {"ceil_mode": True, "padding": 1, "stride": 2, "count_include_pad": False},
        ((2, 2), ((1, 1), (1, 1)), (1, 1), True, False),
    ),
    "ceil-dilation-pairs": (
        (7, 8), 2, {"ceil_mode": True, "padding": ((1, 0), (0, 2)), "stride": 3, "dilation": (2, 3)},
        ((3, 3), ((1, 0), (0, 2)), (2, 3), True, True),
    ),
    "one-pixel": ((1, 1), 1, {}, ((1, 1), ((0, 0), (0, 0)), (1, 1), False, True)),
    "one-dimension": ((9,), 3, {"stride": 2, "padding": 1}, ((2,), ((1, 1),), (1,), False, True)),
    "three-dimensions": (
        (4, 5, 3), (2, 3, 1), {"stride": 1, "padding": (0, 1, 0), "count_include_pad": False},
        ((1, 1, 1), ((0, 0), (1, 1), (0, 0)), (1, 1, 1), False, False),
    ),
}  # fmt: skip


@cache
def _solved(name):
    """Return x and dy that fit float32, and y and dx by the loop: at a pixel dx is <pool(that pixel alone), dy>."""
    size, kernel, _, plain = CASES[name]
    kernel = (kernel,) * len(size) if isinstance(kernel, int) else kernel
    rng = np.random.default_rng(20_240_608)
    x = rng.standard_normal((2, 3, *size)).astype(np.float32).astype(float)
    y = oracles.avg_pool(x, kernel, *plain)
    dy = rng.standard_normal(y.shape).astype(np.float32).astype(float)
    dx = np.zeros_like(x)
    for place in np.ndindex(*size):
        spot = np.zeros((1, 1, *size))
        spot[(..., *place)] = 1.0
        dx[(..., *place)] = (oracles.avg_pool(spot, kernel, *plain) * dy).sum(axis=tuple(range(2, 2 + len(size))))
    return x, dy, y, dx


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_are_the_naive_loops(arrays, dtype, name):
    not_compiled(arrays)
    size, kernel, options, _ = CASES[name]
    x, dy, expected, expected_dx = _solved(name)
    given = arrays(x, dtype)
    y, saved = POOL[len(size)](given, kernel, **options)
    arrays.check(y, expected, given)
    arrays.check(BACKWARD[len(size)](arrays(dy, dtype), saved), expected_dx, given)
    np.testing.assert_array_equal(arrays.backend.to_numpy(given), x)


def test_backward_is_the_numerical_gradient(arrays, rng):
    not_compiled(arrays)
    x = rng.standard_normal((1, 2, 7, 6))
    options = {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}
    y, saved = ops.avg_pool2d(arrays(x), 3, **options)
    dy = rng.standard_normal(tuple(y.shape))
    (expected,) = oracles.numerical_gradients(lambda a: ops.avg_pool2d(a, 3, **options)[0], [x], dy)
    arrays.check(ops.avg_pool2d_backward(arrays(dy), saved), expected, y, 1e-8)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pytorch_agrees_over_a_product_of_options(axes, rng):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn.functional, f"avg_pool{axes}d")
    mixed = {1: 4, 2: (2, 3), 3: (1, 2, 3)}[axes]
    for kernel, stride, padding, ceil_mode, counted, dtype in product(
        (1, 2, 3, mixed), (None, 1, 2, 4, mixed), (0, 1), (False, True), (True, False), ("float32", "float64")
    ):
        if 2 * padding > np.min(kernel):  # PyTorch takes no more than half the kernel
            continue
        x = rng.standard_normal((2, 3, 7, 6, 5)[: 2 + axes]).astype(dtype)
        y, saved = POOL[axes](
            x, kernel, stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=counted
        )  # fmt: skip
        dy = rng.standard_normal(y.shape).astype(dtype)
        plain = (kernel, stride, padding, ceil_mode, counted)
        expected, (gradient,) = oracles.torch_gradients(lambda a, plain=plain: theirs(a, *plain), [x], dy)
        limit = 1e-10 if dtype == "float64" else 1e-5
        oracles.assert_close(y, expected, limit)
        oracles.assert_close(BACKWARD[axes](dy, saved), gradient, limit)


def test_the_loop_agrees_where_pytorch_has_no_word(rng):
    """Dilation, padding beyond half the kernel and on one side, overhanging windows."""
    for kernel, stride, padding, dilation, ceil_mode, counted in product(
        (2, 3), (1, 2, 3), ((0, 0), (1, 0), (0, 2), (2, 1)), (1, 2, 3), (False, True), (False, True)
    ):
        span = dilation * (kernel - 1) + 1
        plain = ((kernel,), (stride,), (padding,), (dilation,), ceil_mode)
        if max(padding) >= span or sum(padding) + 8 < span:
            continue
        x = rng.standard_normal((1, 2, 8))
        options = {"stride": stride, "padding": (padding,), "dilation": dilation, "ceil_mode": ceil_mode}
        y, saved = ops.avg_pool1d(x, kernel, count_include_pad=counted, **options)
        expected = oracles.avg_pool(x, *plain, counted)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        dy = rng.standard_normal(y.shape)
        assert (ops.avg_pool1d_backward(dy, saved) * x).sum() == pytest.approx((expected * dy).sum(), abs=1e-11)


def test_an_overhang_never_counts():
    """Worked by hand: of the last window of 3 at stride 2 over 6 pixels and one of padding, the 3rd is overhang."""
    x = np.ones((1, 1, 6))
    options = {"stride": 2, "padding": 1, "ceil_mode": True}
    np.testing.assert_allclose(ops.avg_pool1d(x, 3, **options)[0][0, 0], [2 / 3, 1, 1, 1 / 2], rtol=1e-15)
    np.testing.assert_array_equal(ops.avg_pool1d(x, 3, count_include_pad=False, **options)[0][0, 0], np.ones(4))


def test_a_window_that_meets_no_pixel_is_zero_and_silent(arrays):
    """Kernel 2 dilated to 4 over one pixel padded by 3: of the four windows the two in the middle step over it."""
    not_compiled(arrays)
    x = arrays(np.full((1, 1, 1), 6.0))
    options = {"stride": 1, "padding": 3, "dilation": 3}
    y, saved = ops.avg_pool1d(x, 2, **options)
    arrays.check(y, [[[3.0, 0.0, 0.0, 3.0]]], x)
    y, saved = ops.avg_pool1d(x, 2, count_include_pad=False, **options)
    arrays.check(y, [[[6.0, 0.0, 0.0, 6.0]]], x)
    arrays.check(ops.avg_pool1d_backward(arrays(np.array([[[1.0, 2.0, 4.0, 8.0]]])), saved), [[[9.0]]], x)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("mode", ["cross-correlation", "convolution"])
def test_center_averages_what_the_contract_words(arrays, mode, counted, rng):
    not_compiled(arrays)
    x = rng.standard_normal((4, 5))
    for center, stride in product(np.ndindex(2, 3), ((1, 1), (1, 2), (3, 2))):
        options = {"stride": stride, "center": center, "mode": mode, "count_include_pad": counted}
        y, saved = ops.avg_pool2d(arrays(x[None, None]), (2, 3), **options)
        expected = oracles.centered_avg_pool(x, (2, 3), stride, center, mode, counted)
        arrays.check(y, expected[None, None], y)
        dx = arrays.backend.to_numpy(ops.avg_pool2d_backward(y, saved))[0, 0]
        assert (dx * x).sum() == pytest.approx((expected**2).sum(), rel=1e-10)


def test_convolution_mode_averages_the_same_windows(rng):
    x = rng.standard_normal((2, 3, 7, 8))
    options = {"stride": (2, 3), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)}
    y, saved = ops.avg_pool2d(x, (2, 3), mode="convolution", **options)
    same, same_saved = ops.avg_pool2d(x, (2, 3), **options)
    np.testing.assert_allclose(y, same, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(ops.avg_pool2d_backward(y, saved), ops.avg_pool2d_backward(same, same_saved), atol=1e-13)


def test_many_images_at_once(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((17, 16, 41, 40)).astype(np.float32)
    y, saved = ops.avg_pool2d(x, 3, stride=2, padding=1)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    expected, (gradient,) = oracles.torch_gradients(
        lambda a: torch.nn.functional.avg_pool2d(a, 3, stride=2, padding=1), [x], dy
    )
    oracles.assert_close(y, expected, 1e-6)
    oracles.assert_close(ops.avg_pool2d_backward(dy, saved), gradient, 1e-6)


def test_not_a_number_stays_in_its_windows(arrays):
    not_compiled(arrays)
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    x[0, 0, 0, 1] = np.nan
    y = arrays.backend.to_numpy(ops.avg_pool2d(arrays(x), 2)[0])
    np.testing.assert_array_equal(y[0, 0], [[np.nan, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kernel_size": 0}, ["kernel_size"]),
        ({"kernel_size": 6}, ["(6, 6)", "(4, 4)"]),
        ({"kernel_size": (2, 2, 2)}, ["kernel_size"]),
        ({"kernel_size": 2.0}, ["kernel_size"]),
        ({"stride": 0}, ["stride"]),
        ({"padding": 2}, ["padding", "(2, 2)"]),
        ({"padding": -1}, ["padding"]),
        ({"padding": "all"}, ["'all'"]),
        ({"dilation": 5}, ["(6, 6)", "(4, 4)"]),
        ({"dilation": 0}, ["dilation"]),
        ({"mode": "flip"}, ["'flip'"]),
        ({"center": (2, 0)}, ["center (2, 0)"]),
        ({"x": (4, 4)}, ["N, C, H, W", "(4, 4)"]),
    ],
)
def test_what_does_not_fit_is_named(arrays, change, says):
    x = arrays(np.ones(change.get("x", (1, 1, 4, 4))))
    options = {"kernel_size": 2} | {key: value for key, value in change.items() if key != "x"}
    with pytest.raises(XpcnnError) as caught:
        ops.avg_pool2d(x, **options)
    for part in says:
        assert part in str(caught.value)
