"""Transposed convolution against a naive loop, numerical gradients, PyTorch and its adjoint, the convolution."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import oracles
import pytest
from calls import not_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn import XpcnnError, ops

OP = {1: ops.conv_transpose1d, 2: ops.conv_transpose2d, 3: ops.conv_transpose3d}
BACKWARD = {1: ops.conv_transpose1d_backward, 2: ops.conv_transpose2d_backward, 3: ops.conv_transpose3d_backward}
CONV = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}

# n, size, channels, filters, kernel, options, the same as (stride, padding pairs, output_padding, dilation, groups)
CASES = {
    "plain": (2, (3, 4), 2, 3, (3, 2), {}, ((1, 1), ((0, 0), (0, 0)), (0, 0), (1, 1), 1)),
    "overlap": (1, (3, 4), 1, 2, (3, 2), {"stride": 2}, ((2, 2), ((0, 0), (0, 0)), (0, 0), (1, 1), 1)),
    "gaps": (1, (2, 3), 2, 1, (1, 2), {"stride": (3, 4)}, ((3, 4), ((0, 0), (0, 0)), (0, 0), (1, 1), 1)),
    "padding": (1, (3, 4), 2, 2, (3, 3), {"padding": (1, 2)}, ((1, 1), ((1, 1), (2, 2)), (0, 0), (1, 1), 1)),
    "pairs": (
        1, (3, 4), 2, 2, (3, 4), {"padding": ((0, 1), (2, 0)), "stride": 2},
        ((2, 2), ((0, 1), (2, 0)), (0, 0), (1, 1), 1),
    ),
    "output-padding": (
        1, (2, 3), 2, 2, (2, 2), {"stride": (2, 3), "output_padding": (1, 2)},
        ((2, 3), ((0, 0), (0, 0)), (1, 2), (1, 1), 1),
    ),
    "output-padding-below-dilation": (
        1, (2, 3), 2, 2, (2, 2), {"dilation": 3, "output_padding": 2}, ((1, 1), ((0, 0), (0, 0)), (2, 2), (3, 3), 1),
    ),
    "output-padding-meets-padding": (
        1, (3, 3), 1, 2, (3, 3), {"stride": 2, "padding": 1, "output_padding": 1},
        ((2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    ),
    "valid": (1, (3, 4), 2, 2, (3, 3), {"padding": "valid"}, ((1, 1), ((0, 0), (0, 0)), (0, 0), (1, 1), 1)),
    "same": (1, (3, 4), 2, 2, (3, 4), {"padding": "same"}, ((1, 1), ((1, 1), (1, 2)), (0, 0), (1, 1), 1)),
    "same-stride": (
        1, (3, 4), 2, 2, (3, 5), {"padding": "same", "stride": 2}, ((2, 2), ((0, 1), (1, 2)), (0, 0), (1, 1), 1),
    ),
    "same-stride-beyond-kernel": (
        1, (3, 4), 2, 2, (2, 1), {"padding": "same", "stride": 3}, ((3, 3), ((0, 0), (0, 0)), (1, 2), (1, 1), 1),
    ),
    "dilation": (2, (3, 2), 2, 2, (2, 3), {"dilation": (3, 2)}, ((1, 1), ((0, 0), (0, 0)), (0, 0), (3, 2), 1)),
    "groups": (2, (3, 3), 4, 6, (2, 2), {"groups": 2}, ((1, 1), ((0, 0), (0, 0)), (0, 0), (1, 1), 2)),
    "depthwise": (
        2, (3, 3), 3, 6, (3, 3), {"groups": 3, "padding": 1, "stride": 2},
        ((2, 2), ((1, 1), (1, 1)), (0, 0), (1, 1), 3),
    ),
    "all": (
        2, (4, 3), 4, 4, (3, 2),
        {"stride": 2, "padding": ((1, 2), (0, 1)), "output_padding": (0, 1), "dilation": 2, "groups": 2},
        ((2, 2), ((1, 2), (0, 1)), (0, 1), (2, 2), 2),
    ),
    "one-pixel": (1, (1, 1), 2, 3, (1, 1), {}, ((1, 1), ((0, 0), (0, 0)), (0, 0), (1, 1), 1)),
    "one-pixel-out-of-many": (1, (1, 1), 2, 1, (3, 3), {"padding": 1}, ((1, 1), ((1, 1), (1, 1)), (0, 0), (1, 1), 1)),
    "one-dimension": (
        2, (4,), 2, 3, (3,), {"stride": 2, "padding": 1, "output_padding": 1}, ((2,), ((1, 1),), (1,), (1,), 1),
    ),
    "three-dimensions": (
        1, (2, 3, 2), 2, 2, (2, 1, 3), {"padding": (0, 0, 1), "stride": (1, 2, 1)},
        ((1, 2, 1), ((0, 0), (0, 0), (1, 1)), (0, 0, 0), (1, 1, 1), 1),
    ),
}  # fmt: skip


@cache
def _solved(name):
    """Return operands that fit float32, dy, y with and without bias by the loop, and the numerical gradients."""
    n, size, channels, filters, kernel, options, plain = CASES[name]
    rng = np.random.default_rng(20_240_608)
    operands = [a.astype(float) for a in _operands(rng, "float32", n, size, channels, filters, kernel, plain[4])]
    y = oracles.conv_transpose(*operands, *plain)
    dy = rng.standard_normal(y.shape).astype(np.float32).astype(float)
    gradients = oracles.numerical_gradients(lambda *a: OP[len(size)](*a, **options)[0], operands, dy)
    return operands, dy, y, oracles.conv_transpose(*operands[:2], None, *plain), gradients


@pytest.mark.parametrize("name", CASES)
def test_forward_is_the_naive_loop(arrays, dtype, name):
    not_compiled(arrays)
    operands, _, expected, without_bias, _ = _solved(name)
    op, options = OP[len(CASES[name][1])], CASES[name][5]
    given = [arrays(a, dtype) for a in operands]
    arrays.check(op(*given, **options)[0], expected, given[0])
    arrays.check(op(*given[:2], **options)[0], without_bias, given[0])
    for array, host in zip(given, operands, strict=True):
        np.testing.assert_array_equal(arrays.backend.to_numpy(array), host)


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_numerical_gradient(arrays, dtype, name):
    not_compiled(arrays)
    operands, dy, _, _, expected = _solved(name)
    n, options = len(CASES[name][1]), CASES[name][5]
    y, saved = OP[n](*(arrays(a, dtype) for a in operands), **options)
    for actual, numeric in zip(BACKWARD[n](arrays(dy, dtype), saved), expected, strict=True):
        arrays.check(actual, numeric, y, 1e-4 if dtype == "float32" else 1e-8)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pytorch_agrees_over_a_product_of_options(axes, rng):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn.functional, f"conv_transpose{axes}d")
    mixed = {1: ((2,), (1,), (2,)), 2: ((2, 3), (2, 1), (1, 3)), 3: ((1, 2, 3), (0, 2, 1), (2, 1, 1))}[axes]
    for stride, padding, output_padding, dilation, groups, biased, dtype in product(
        (1, 2, mixed[0]), (0, 1, mixed[1]), (0, 1), (1, mixed[2]), (1, 2), (False, True), ("float32", "float64")
    ):
        s, d, extra, p = (np.broadcast_to(a, axes) for a in (stride, dilation, output_padding, padding))
        out = (np.array((4, 3, 3)[:axes]) - 1) * s + d * (np.array((3, 2, 4)[:axes]) - 1) + 1 + extra - 2 * p
        if (extra >= np.maximum(s, d)).any() or (out < 1).any():
            continue
        operands = _operands(rng, dtype, 2, (4, 3, 3)[:axes], 4, 6, (3, 2, 4)[:axes], groups)[: 2 + biased]
        options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        y, saved = OP[axes](*operands, groups=groups, **options)
        dy = rng.standard_normal(y.shape).astype(dtype)

        def run(*leaves, options=options, groups=groups):
            return theirs(*leaves, groups=groups, **options)

        expected, grads = oracles.torch_gradients(run, operands, dy)
        limit = 1e-10 if dtype == "float64" else 1e-5
        oracles.assert_close(y, expected, limit)
        found = BACKWARD[axes](dy, saved)
        assert biased or found[2] is None
        for actual, gradient in zip(found, grads, strict=False):
            oracles.assert_close(actual, gradient, limit)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.data())
def test_it_is_the_adjoint_of_the_convolution(data):
    """<conv_transpose(x, w), g> = <x, conv(g, w)>, and the same weight serves both."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    axes = data.draw(st.integers(1, 3))
    numbers = st.integers(1, 3)
    kernel, stride, dilation = (tuple(data.draw(numbers) for _ in range(axes)) for _ in range(3))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    options = {
        "stride": stride,
        "dilation": dilation,
        "padding": tuple((data.draw(st.integers(0, s // 2)), data.draw(st.integers(0, s // 2))) for s in spans),
        "groups": data.draw(st.integers(1, 2)),
    }
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in stride)
    size = tuple(2 + data.draw(st.integers(0, 2)) for _ in range(axes))
    groups = options["groups"]
    x = rng.standard_normal((data.draw(st.integers(0, 3)), 2 * groups, *size))
    w = rng.standard_normal((2 * groups, 3, *kernel))
    y, saved = OP[axes](x, w, output_padding=extra, **options)
    g = rng.standard_normal(y.shape)
    back, conv_saved = CONV[axes](g, w, **options)
    assert back.shape == x.shape
    scale = max(1.0, abs(y).sum())
    assert abs((y * g).sum() - (x * back).sum()) < 1e-11 * scale
    dx, dw, _ = BACKWARD[axes](g, saved)
    np.testing.assert_allclose(dx, back, rtol=0, atol=1e-11 * max(1.0, abs(back).max(initial=0.0)))
    assert abs((w * dw).sum() - (y * g).sum()) < 1e-11 * scale
    dg, dw_conv, _ = getattr(ops, f"conv{axes}d_backward")(x, conv_saved)
    np.testing.assert_allclose(dg, y, rtol=0, atol=1e-11 * max(1.0, abs(y).max(initial=0.0)))
    np.testing.assert_allclose(dw_conv, dw, rtol=0, atol=1e-11 * max(1.0, abs(dw).max(initial=0.0)))


def test_same_is_the_adjoint_of_a_same_convolution(rng):
    for size, kernel, stride, dilation in product((1, 2, 5), (1, 2, 3, 4), (1, 2, 3), (1, 2)):
        x, w = rng.standard_normal((1, 2, size)), rng.standard_normal((2, 3, kernel))
        y, _ = ops.conv_transpose1d(x, w, stride=stride, padding="same", dilation=dilation)
        assert y.shape == (1, 3, size * stride)
        g = rng.standard_normal(y.shape)
        back, _ = ops.conv1d(g, w, stride=stride, padding="same", dilation=dilation)
        assert (y * g).sum() == pytest.approx((x * back).sum(), rel=1e-10, abs=1e-10)


def test_an_impulse_gives_the_kernel():
    """Worked by hand: one pixel spreads the kernel unflipped, at stride 2 two neighbours' kernels overlap by one."""
    w = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    np.testing.assert_array_equal(ops.conv_transpose2d(np.full((1, 1, 1, 1), 2.0), w)[0], 2 * w)
    y, _ = ops.conv_transpose1d(np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]]), stride=2)
    np.testing.assert_array_equal(y, [[[1.0, 2.0, 13.0, 20.0, 30.0]]])


def test_weight_is_channels_then_filters():
    x = np.array([1.0, 10.0]).reshape(1, 2, 1, 1)
    w = np.arange(6.0).reshape(2, 3, 1, 1)  # (C, F, 1, 1)
    np.testing.assert_array_equal(ops.conv_transpose2d(x, w)[0].ravel(), [30.0, 41.0, 52.0])
    np.testing.assert_array_equal(ops.conv_transpose2d(x, w, groups=2)[0].ravel(), [0.0, 1.0, 2.0, 30.0, 40.0, 50.0])


def test_backward_without_dx_or_bias(arrays, rng):
    not_compiled(arrays)
    x, w, _ = _operands(rng, "float64", 2, (3, 4), 2, 3, (3, 2), 1)
    y, saved = ops.conv_transpose2d(arrays(x), arrays(w))
    dx, dweight, dbias = ops.conv_transpose2d_backward(y, saved, need_dx=False)
    assert (dx, dbias) == (None, None)
    _, with_dx, _ = ops.conv_transpose2d_backward(y, saved)
    arrays.check(dweight, arrays.backend.to_numpy(with_dx), y, 1e-12)


def test_views_and_empty_batches(arrays, rng):
    not_compiled(arrays)
    x, w, b = _operands(rng, "float64", 3, (3, 4), 2, 3, (3, 2), 1)
    view = arrays.xp.permute_dims(arrays(np.ascontiguousarray(x.transpose(0, 1, 3, 2))), (0, 1, 3, 2))
    y, saved = ops.conv_transpose2d(view, arrays(w), arrays(b), stride=2)
    arrays.check(y, oracles.conv_transpose(x, w, b, (2, 2), ((0, 0), (0, 0)), (0, 0), (1, 1)), view)
    none = view[:0, ...]
    y, saved = ops.conv_transpose2d(none, arrays(w), arrays(b), stride=2)
    assert tuple(y.shape) == (0, 3, 7, 8)
    dx, dweight, dbias = ops.conv_transpose2d_backward(y, saved)
    arrays.check(dx, np.zeros((0, 2, 3, 4)), view)
    arrays.check(dweight, np.zeros(w.shape), view)
    arrays.check(dbias, np.zeros(3), view)


def test_many_images_at_once(rng):
    """Large enough for NumPy's version to cut the batch into blocks."""
    torch = pytest.importorskip("torch")
    operands = _operands(rng, "float64", 33, (14, 15), 8, 12, (4, 4), 2)
    y, saved = ops.conv_transpose2d(*operands, stride=2, padding=1, groups=2)
    dy = rng.standard_normal(y.shape)
    expected, grads = oracles.torch_gradients(
        lambda x, w, b: torch.nn.functional.conv_transpose2d(x, w, b, 2, 1, groups=2), operands, dy
    )
    oracles.assert_close(y, expected, 1e-12)
    for actual, gradient in zip(ops.conv_transpose2d_backward(dy, saved), grads, strict=True):
        oracles.assert_close(actual, gradient, 1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": (2, 3, 5)}, ["(2, 3, 5)"]),
        ({"x": (2, 4, 5, 5)}, ["4", "3"]),
        ({"weight": (3, 6, 3)}, ["(3, 6, 3)"]),
        ({"bias": (5,)}, ["(5,)", "(6,)"]),
        ({"groups": 2}, ["groups"]),
        ({"groups": 0}, ["groups"]),
        ({"groups": 1.0}, ["groups"]),
        ({"stride": 0}, ["stride"]),
        ({"stride": (1, 2, 3)}, ["stride"]),
        ({"stride": 1.5}, ["stride"]),
        ({"padding": -1}, ["padding"]),
        ({"padding": "full"}, ["'full'"]),
        ({"padding": (1, 2, 3)}, ["padding"]),
        ({"padding": 4}, ["padding", "4"]),
        ({"dilation": 0}, ["dilation"]),
        ({"output_padding": 1}, ["output_padding", "1"]),
        ({"output_padding": -1}, ["output_padding"]),
        ({"output_padding": 2, "stride": 2}, ["output_padding", "2"]),
        ({"output_padding": (1, 2), "stride": (3, 2)}, ["output_padding", "2"]),
        ({"output_padding": 1, "stride": 2, "padding": "same"}, ["output_padding", "same"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(arrays, change, says):
    shapes = {"x": (2, 3, 5, 5), "weight": (3, 6, 3, 3), "bias": (6,)}
    options = {key: value for key, value in change.items() if key not in shapes}
    operands = {key: arrays(np.ones(change.get(key, shape))) for key, shape in shapes.items()}
    with pytest.raises(XpcnnError) as caught:
        ops.conv_transpose2d(operands["x"], operands["weight"], operands["bias"], **options)
    for part in says:
        assert part in str(caught.value)


def _operands(rng, dtype, n, size, channels, filters, kernel, groups):
    """Return x, weight and bias."""
    shapes = ((n, channels, *size), (channels, filters // groups, *kernel), (filters,))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def test_a_long_column_is_added_up_exactly_enough():
    """A running sum of 200,000 tenths in float32 is off by 2e-3, as in the fully connected layer's test."""
    x, w = np.zeros((200_000, 1, 1), np.float32), np.ones((1, 2, 1), np.float32)
    y, saved = ops.conv_transpose1d(x, w, np.zeros(2, np.float32))
    dbias = ops.conv_transpose1d_backward(np.full(y.shape, 0.1, np.float32), saved)[2]
    np.testing.assert_allclose(dbias, 20_000, rtol=1e-3)
