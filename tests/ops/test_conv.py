"""Convolution against a naive loop, numerical gradients, PyTorch and the adjoint identity."""

from __future__ import annotations

from itertools import product

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn import XpcnnError, ops

CONV = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}
BACKWARD = {1: ops.conv1d_backward, 2: ops.conv2d_backward, 3: ops.conv3d_backward}

# n, size, channels, filters, kernel, options, the same as (stride, padding pairs, dilation, groups)
CASES = {
    "plain": (2, (6, 5), 2, 3, (3, 2), {}, ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    "stride": (2, (7, 6), 2, 3, (3, 2), {"stride": 2}, ((2, 2), ((0, 0), (0, 0)), (1, 1), 1)),
    "strides": (1, (7, 6), 1, 2, (2, 2), {"stride": (3, 1)}, ((3, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    "stride-beyond-kernel": (2, (9, 8), 1, 2, (2, 1), {"stride": 4}, ((4, 4), ((0, 0), (0, 0)), (1, 1), 1)),
    "padding": (2, (4, 5), 2, 2, (3, 3), {"padding": 2}, ((1, 1), ((2, 2), (2, 2)), (1, 1), 1)),
    "paddings": (1, (4, 5), 1, 2, (3, 3), {"padding": (0, 2)}, ((1, 1), ((0, 0), (2, 2)), (1, 1), 1)),
    "pairs": (1, (4, 5), 1, 2, (3, 3), {"padding": ((0, 1), (2, 0))}, ((1, 1), ((0, 1), (2, 0)), (1, 1), 1)),
    "valid": (1, (4, 5), 1, 2, (3, 3), {"padding": "valid"}, ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    "same-odd": (1, (5, 6), 1, 2, (3, 4), {"padding": "same"}, ((1, 1), ((1, 1), (1, 2)), (1, 1), 1)),
    "same-stride": (1, (5, 6), 2, 2, (3, 3), {"padding": "same", "stride": 2}, ((2, 2), ((1, 1), (0, 1)), (1, 1), 1)),
    "dilation": (2, (7, 8), 2, 2, (3, 2), {"dilation": (2, 3)}, ((1, 1), ((0, 0), (0, 0)), (2, 3), 1)),
    "groups": (2, (5, 5), 4, 6, (3, 3), {"groups": 2}, ((1, 1), ((0, 0), (0, 0)), (1, 1), 2)),
    "depthwise": (2, (5, 5), 3, 6, (3, 3), {"groups": 3, "padding": 1}, ((1, 1), ((1, 1), (1, 1)), (1, 1), 3)),
    "all": (
        2, (9, 8), 4, 4, (3, 2), {"stride": 2, "padding": ((1, 2), (0, 3)), "dilation": 2, "groups": 2},
        ((2, 2), ((1, 2), (0, 3)), (2, 2), 2),
    ),
    "one-pixel": (1, (1, 1), 2, 3, (1, 1), {}, ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    "one-dimension": (2, (9,), 2, 3, (3,), {"stride": 2, "padding": 1}, ((2,), ((1, 1),), (1,), 1)),
    "three-dimensions": (1, (4, 3, 5), 2, 2, (2, 3, 2), {"padding": (0, 1, 1)}, ((1, 1, 1), ((0, 0), (1, 1), (1, 1)), (1, 1, 1), 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_forward_is_the_naive_loop(arrays, dtype, name, rng):
    n, size, channels, filters, kernel, options, plain = CASES[name]
    x, w, b = _operands(rng, dtype, n, size, channels, filters, kernel, plain[3])
    ax, aw, ab = arrays(x), arrays(w), arrays(b)
    y, _ = CONV[len(size)](ax, aw, ab, **options)
    arrays.check(y, oracles.conv(x, w, b, *plain), ax)
    y, _ = CONV[len(size)](ax, aw, **options)
    arrays.check(y, oracles.conv(x, w, None, *plain), ax)
    for given_array, host in ((ax, x), (aw, w), (ab, b)):
        np.testing.assert_array_equal(arrays.backend.to_numpy(given_array), host)


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_numerical_gradient(arrays, dtype, name, rng):
    n, size, channels, filters, kernel, options, plain = CASES[name]
    x, w, b = _operands(rng, "float64", n, size, channels, filters, kernel, plain[3])
    dy = rng.standard_normal(oracles.conv(x, w, b, *plain).shape)
    conv = CONV[len(size)]
    y, saved = conv(arrays(x, dtype), arrays(w, dtype), arrays(b, dtype), **options)
    grads = BACKWARD[len(size)](arrays(dy, dtype), saved)

    def loss(x, w, b):
        return float((conv(x, w, b, **options)[0] * dy).sum())

    expected = (
        oracles.numerical_gradient(lambda a: loss(a, w, b), x),
        oracles.numerical_gradient(lambda a: loss(x, a, b), w),
        oracles.numerical_gradient(lambda a: loss(x, w, a), b),
    )
    for actual, numeric in zip(grads, expected, strict=True):
        arrays.check(actual, numeric, y, 1e-4 if dtype == "float32" else 1e-8)


def test_every_backend_has_numpys_gradients_to_1e_10(arrays, rng):
    x, w, b = _operands(rng, "float64", 3, (9, 8), 4, 6, (3, 3), 2)
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2}
    y, saved = ops.conv2d(x, w, b, **options)
    dy = rng.standard_normal(y.shape)
    there, there_saved = ops.conv2d(arrays(x), arrays(w), arrays(b), **options)
    arrays.check(there, y, there)
    for actual, expected in zip(
        ops.conv2d_backward(arrays(dy), there_saved), ops.conv2d_backward(dy, saved), strict=True
    ):
        arrays.check(actual, expected, there)


def test_backward_without_dx_or_bias(arrays, rng):
    x, w, _ = _operands(rng, "float64", 2, (5, 5), 2, 3, (3, 3), 1)
    y, saved = ops.conv2d(arrays(x), arrays(w))
    dx, dweight, dbias = ops.conv2d_backward(y, saved, need_dx=False)
    assert dx is None
    assert dbias is None
    _, with_dx, _ = ops.conv2d_backward(y, saved)
    arrays.check(dweight, arrays.backend.to_numpy(with_dx), y, 0.0)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_backward_is_the_adjoint_of_forward(data):
    """A convolution is linear in x and in w, so <conv(x, w), g> = <x, dx(g)> = <w, dw(g)>."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    axes = data.draw(st.integers(1, 3))
    numbers = st.integers(1, 3)
    kernel = tuple(data.draw(numbers) for _ in range(axes))
    options = {
        "stride": tuple(data.draw(numbers) for _ in range(axes)),
        "dilation": tuple(data.draw(numbers) for _ in range(axes)),
        "padding": tuple((data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(axes)),
        "groups": data.draw(st.integers(1, 2)),
        "mode": data.draw(st.sampled_from(["cross-correlation", "convolution"])),
    }
    size = tuple(
        d * (k - 1) + 1 + data.draw(st.integers(0, 4)) for k, d in zip(kernel, options["dilation"], strict=True)
    )
    groups = options["groups"]
    x = rng.standard_normal((data.draw(st.integers(0, 3)), 2 * groups, *size))
    w = rng.standard_normal((3 * groups, 2, *kernel))
    y, saved = CONV[axes](x, w, **options)
    g = rng.standard_normal(y.shape)
    dx, dw, _ = BACKWARD[axes](g, saved)
    inner = (y * g).sum()
    scale = max(1.0, abs(y).sum())
    assert abs((x * dx).sum() - inner) < 1e-11 * scale
    assert abs((w * dw).sum() - inner) < 1e-11 * scale


def test_pytorch_agrees_over_a_product_of_options(rng):
    torch = pytest.importorskip("torch")
    for stride, padding, dilation, groups, dtype in product(
        (1, 2, (2, 3)), (0, 2, (2, 1)), (1, (1, 2)), (1, 2), ("float32", "float64")
    ):
        x, w, b = _operands(rng, dtype, 3, (11, 10), 4, 6, (3, 2), groups)
        y, saved = ops.conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)
        leaves = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
        expected = torch.nn.functional.conv2d(*leaves, stride, padding, dilation, groups)
        dy = rng.standard_normal(y.shape).astype(dtype)
        expected.backward(torch.tensor(dy))
        found = (y, *ops.conv2d_backward(dy, saved))
        limit = 1e-10 if dtype == "float64" else 1e-5
        for actual, tensor in zip(found, (expected.detach(), *(leaf.grad for leaf in leaves)), strict=True):
            scale = float(tensor.abs().max())
            np.testing.assert_allclose(actual, tensor.numpy(), rtol=0, atol=limit * scale)


@pytest.mark.parametrize("mode", ["cross-correlation", "convolution"])
def test_center_fixes_the_padding_as_the_contract_words_it(arrays, mode, rng):
    few = "numpy" not in arrays.id  # a backend that compiles each shape takes its time
    kernels, sizes = ((3, 3), (2, 4), (1, 5)), ((5, 4), (1, 1), (2, 7))
    for kernel, size in (((2, 3), (4, 5)),) if few else product(kernels, sizes):
        x, w = rng.standard_normal(size), rng.standard_normal(kernel)
        for center, stride in product(np.ndindex(*kernel), ((1, 1), (2, 3))):
            ax = arrays(x[None, None])
            y, saved = ops.conv2d(ax, arrays(w[None, None]), stride=stride, center=center, mode=mode)
            expected = oracles.centered_conv(x, w, stride, center, mode)
            arrays.check(y, expected[None, None], ax)
            dx, dw, _ = ops.conv2d_backward(y, saved)
            inner = float((expected**2).sum())
            assert float(arrays.backend.to_numpy(dx)[0, 0].ravel() @ x.ravel()) == pytest.approx(inner, rel=1e-10)
            assert float(arrays.backend.to_numpy(dw)[0, 0].ravel() @ w.ravel()) == pytest.approx(inner, rel=1e-10)


def test_true_convolution_of_an_impulse_gives_the_kernel():
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 2, 2] = 1.0
    w = np.arange(9.0).reshape(1, 1, 3, 3)
    np.testing.assert_array_equal(ops.conv2d(x, w, padding=1, mode="convolution")[0][0, 0, 1:4, 1:4], w[0, 0])
    np.testing.assert_array_equal(ops.conv2d(x, w, padding=1)[0][0, 0, 1:4, 1:4], w[0, 0, ::-1, ::-1])


def test_views_and_empty_batches(arrays, rng):
    x, w, b = _operands(rng, "float64", 4, (6, 7), 2, 3, (3, 3), 1)
    flipped = arrays(np.ascontiguousarray(x.transpose(0, 1, 3, 2)))
    view = arrays.xp.permute_dims(flipped, (0, 1, 3, 2))
    y, saved = ops.conv2d(view, arrays(w), arrays(b))
    arrays.check(y, oracles.conv(x, w, b, (1, 1), ((0, 0), (0, 0)), (1, 1)), view)
    ops.conv2d_backward(arrays.xp.permute_dims(arrays(rng.standard_normal((4, 3, 5, 4))), (0, 1, 3, 2)), saved)
    none = view[:0, ...]
    y, saved = ops.conv2d(none, arrays(w), arrays(b), padding=1)
    assert tuple(y.shape) == (0, 3, 6, 7)
    dx, dweight, dbias = ops.conv2d_backward(y, saved)
    arrays.check(dx, np.zeros((0, 2, 6, 7)), view)
    arrays.check(dweight, np.zeros(w.shape), view)
    arrays.check(dbias, np.zeros(3), view)


def test_many_blocks_give_what_one_gives(monkeypatch, rng):
    from xpcnn.kernels import numpy_cpu, reference

    x, w, b = _operands(rng, "float64", 13, (8, 8), 2, 4, (3, 3), 1)
    y, saved = ops.conv2d(x, w, b, padding=1)
    grads = ops.conv2d_backward(y, saved)
    for module in (numpy_cpu, reference):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 13)
    cut, cut_saved = ops.conv2d(x, w, b, padding=1)
    np.testing.assert_allclose(cut, y, rtol=1e-13, atol=1e-13)
    for actual, expected in zip(ops.conv2d_backward(y, cut_saved), grads, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": (2, 3, 5)}, "(2, 3, 5)"),
        ({"x": (2, 4, 5, 5)}, "4 channels"),
        ({"weight": (6, 3, 7, 7)}, "larger than the padded input"),
        ({"weight": (6, 3, 3)}, "(6, 3, 3)"),
        ({"bias": (5,)}, "(5,)"),
        ({"groups": 2}, "groups=2"),
        ({"groups": 0}, "groups"),
        ({"stride": 0}, "stride"),
        ({"stride": (1, 2, 3)}, "stride"),
        ({"stride": 1.5}, "stride"),
        ({"padding": -1}, "padding"),
        ({"padding": "full"}, "'full'"),
        ({"padding": (1, 2, 3)}, "padding"),
        ({"dilation": 3}, "dilated to (7, 7)"),
        ({"mode": "flip"}, "'flip'"),
        ({"center": (3, 0)}, "center (3, 0)"),
        ({"center": (1, 1), "padding": 1}, "center"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(arrays, change, says):
    shapes = {"x": (2, 3, 5, 5), "weight": (6, 3, 3, 3), "bias": (6,)}
    options = {key: value for key, value in change.items() if key not in shapes}
    operands = {key: arrays(np.ones(change.get(key, shape))) for key, shape in shapes.items()}
    with pytest.raises(XpcnnError) as caught:
        ops.conv2d(operands["x"], operands["weight"], operands["bias"], **options)
    assert says in str(caught.value)


def test_types_that_do_not_fit_are_named(arrays):
    x, w = arrays(np.ones((1, 1, 3, 3), np.uint8)), arrays(np.ones((1, 1, 2, 2)))
    with pytest.raises(TypeError, match="x has dtype uint8; normalise"):
        ops.conv2d(x, w)
    with pytest.raises(TypeError, match="x is float32, weight is float64"):
        ops.conv2d(arrays(np.ones((1, 1, 3, 3), np.float32)), w)
    with pytest.raises(TypeError, match="weight must be an array, got list"):
        ops.conv2d(arrays(np.ones((1, 1, 3, 3))), [[[[1.0]]]])
    if "numpy" not in arrays.id:
        with pytest.raises(TypeError, match="one library"):
            ops.conv2d(np.ones((1, 1, 3, 3)), w)


def test_a_gradient_of_the_wrong_shape_is_named(arrays):
    _, saved = ops.conv2d(arrays(np.ones((1, 1, 3, 3))), arrays(np.ones((1, 1, 2, 2))))
    with pytest.raises(XpcnnError, match=r"dy must have shape \(1, 1, 2, 2\).*\(1, 1, 3, 3\)"):
        ops.conv2d_backward(arrays(np.ones((1, 1, 3, 3))), saved)


def test_output_size_counts_the_windows():
    for size, kernel, stride, before, after, dilation in product(
        range(1, 9), (1, 2, 3), (1, 2, 3), (0, 1), (0, 2), (1, 2)
    ):
        last = size + before + after - dilation * (kernel - 1) - 1
        expected = len(range(0, last + 1, stride))
        got = ops.conv_output_size(size, kernel, stride=stride, padding=(before, after), dilation=dilation)
        assert got == expected


def _operands(rng, dtype, n, size, channels, filters, kernel, groups):
    """Return x, weight and bias."""
    shapes = ((n, channels, *size), (filters, channels // groups, *kernel), (filters,))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((5.5, 3), {}, "size"),
        ((5, 0), {}, "kernel"),
        ((5, 3), {"stride": 0}, "stride"),
        ((5, 3), {"dilation": -1}, "dilation"),
        ((5, 3), {"padding": (1,)}, "padding"),
        ((5, 3), {"padding": -1}, "padding"),
        ((5, 3), {"padding": "same"}, "padding"),
    ],
)
def test_an_output_size_is_asked_for_with_whole_numbers(arguments, options, says):
    with pytest.raises(XpcnnError, match=says):
        ops.conv_output_size(*arguments, **options)


def test_a_center_goes_with_any_padding_of_nothing():
    x, w = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))
    expected = ops.conv2d(x, w, center=(1, 1))[0]
    for padding in ([0, 0], ((0, 0), (0, 0)), "valid", np.int64(0)):
        np.testing.assert_array_equal(ops.conv2d(x, w, center=(1, 1), padding=padding)[0], expected)
    for padding in (1, "same", ((0, 1), (0, 0))):
        with pytest.raises(XpcnnError, match="center fixes the padding"):
            ops.conv2d(x, w, center=(1, 1), padding=padding)


def test_a_large_dilation_may_let_the_image_fall_between_two_elements():
    """The contract: an output exists while any of its inputs lies in the image."""
    for n, kernel, dilation, stride, center in product((1, 2, 3), (1, 2, 3), (1, 2, 3, 4), (1, 2), (0, 1, 2)):
        if center < kernel:
            expected = 0
            while expected < n and any(0 <= expected * stride + (k - center) * dilation < n for k in range(kernel)):
                expected += 1
            x, w = np.ones((1, 1, n)), np.ones((1, 1, kernel))
            y = ops.conv1d(x, w, stride=stride, dilation=dilation, center=center)[0]
            assert y.shape[2] == expected
