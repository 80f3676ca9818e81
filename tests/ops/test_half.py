"""Half precision on every op: computed in float32, handed back in what came."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace, device
from calls import ACTIVATIONS, CALLS, Call, not_compiled

from xpcnn import ops

EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half the distance from 1 to the next number


def _halves(arrays):
    """Return the half-precision dtypes of a backend."""
    return [name for name in EPSILON if hasattr(arrays.xp, name)]


def _float32(arrays, array):
    """Return an array's values on the host as float32."""
    return arrays.backend.to_numpy(arrays.xp.astype(array, arrays.xp.float32))


def _both(arrays, call, dtype):
    """Return the operands in half precision and, of the very same values, in float32."""
    half, wide = {}, {}
    for name, host in call.operands().items():
        if name in call.others:
            half[name] = wide[name] = arrays(host)
        else:
            half[name] = arrays.xp.astype(arrays(host, "float32"), getattr(arrays.xp, dtype))
            wide[name] = arrays.xp.astype(half[name], arrays.xp.float32)
    return half, wide


def _check(arrays, actual, expected, like, dtype):
    """Compare a half-precision result with float32's, to the rounding."""
    if expected is None:
        assert actual is None
        return
    assert array_namespace(actual) is array_namespace(like)
    assert device(actual) == device(like)
    assert actual.dtype == like.dtype
    assert tuple(actual.shape) == tuple(expected.shape)
    expected = arrays.backend.to_numpy(expected)
    np.testing.assert_allclose(_float32(arrays, actual), expected, rtol=EPSILON[dtype] * 1.01, atol=1e-7)


@pytest.mark.parametrize("name", CALLS)
def test_every_op_takes_and_gives_half_precision(arrays, name):
    if name not in ("batch_norm-train", "dropout"):
        not_compiled(arrays)
    call = CALLS[name]
    for dtype in _halves(arrays):
        half, wide = _both(arrays, call, dtype)
        before = {key: _float32(arrays, half[key]) for key in call.shapes}
        y, saved, *statistics = call.run(half)
        expected, wide_saved, *wide_statistics = call.run(wide)
        _check(arrays, y, expected, half[call.first], dtype)
        for pair, wide_pair in zip(statistics, wide_statistics, strict=True):
            for actual, value in zip(pair, wide_pair, strict=True):
                _check(arrays, actual, value, half[call.first], dtype)
        dy = arrays.xp.astype(arrays(np.random.default_rng(1).standard_normal(tuple(y.shape)), "float32"), y.dtype)
        grads = call.backward(saved, dy)
        wide_grads = call.backward(wide_saved, arrays.xp.astype(dy, arrays.xp.float32))
        for actual, value in zip(grads, wide_grads, strict=True):
            _check(arrays, actual, value, half[call.first], dtype)
        for key, values in before.items():
            np.testing.assert_array_equal(_float32(arrays, half[key]), values)


@pytest.mark.parametrize("name", CALLS)
def test_half_beside_float32_is_refused(arrays, name):
    not_compiled(arrays)
    call = CALLS[name]
    for dtype in _halves(arrays):
        half, wide = _both(arrays, call, dtype)
        for key in call.shapes if len(call.shapes) > 1 else ():
            with pytest.raises(TypeError) as caught:
                call.run(half | {key: wide[key]})
            assert dtype in str(caught.value)
            assert "float32" in str(caught.value)
        y, saved, *_ = call.run(half)
        wide_y, wide_saved, *_ = call.run(wide)
        for forward, dy in ((saved, wide_y), (wide_saved, y)):
            with pytest.raises(TypeError) as caught:
                call.backward(forward, dy)
            assert dtype in str(caught.value)
            assert "float32" in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_empty_batches_of_halves(arrays, name):
    not_compiled(arrays)
    call = CALLS[name]
    for dtype in _halves(arrays)[:1]:
        operands = {
            key: arrays(host)
            if key in call.others
            else arrays.xp.astype(arrays(host, "float32"), getattr(arrays.xp, dtype))
            for key, host in call.emptied(call.operands()).items()
        }
        y, saved, *_ = call.run(operands)
        assert y.dtype == operands[call.first].dtype
        for gradient in call.backward(saved, y):
            assert gradient.dtype == y.dtype


def _half(host, dtype=np.float16):
    return np.asarray(host, dtype)


def test_sums_beyond_half_precisions_range_are_formed_in_float32():
    """Float16 ends at 65504: these sums and squares pass it, their results do not."""
    plane = _half(np.full((1, 2, 40, 40), 100))
    assert float(ops.global_avg_pool2d(plane)[0][0, 0]) == 100
    assert float(ops.adaptive_avg_pool2d(plane, 1)[0][0, 0, 0, 0]) == 100
    assert float(ops.avg_pool2d(plane, 40)[0][0, 0, 0, 0]) == 100
    alternating = _half(np.full((1, 1, 1, 2000), 300) * np.where(np.arange(2000) < 1000, 1, -1))
    ones = _half(np.ones((1, 1, 1, 2000)))
    assert float(ops.conv2d(alternating, ones)[0][0, 0, 0, 0]) == 0
    assert float(ops.affine(alternating[0, 0], ones[0, 0].T)[0][0, 0]) == 0
    x = _half(np.arange(-400, 400).reshape(1, 1, 800))
    one, zero = _half([1.0]), _half([0.0])
    expected = (x.astype(float) - x.astype(float).mean()) / x.astype(float).std()
    np.testing.assert_allclose(ops.batch_norm(x, one, zero, zero, one, train=True)[0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ops.group_norm(x, one, zero, groups=1)[0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ops.layer_norm(x, None, None, axes=(2,))[0], expected, rtol=1e-3, atol=1e-3)
    y, t = _half(np.full((1, 1000), 111)), _half(np.zeros((1, 1000)))
    assert float(ops.mean_squared_error(y, t)[0]) == 12320  # 12321 in float16
    logits = _half(np.tile([200.0, -200.0], (1000, 1)))
    assert float(ops.softmax_cross_entropy(logits, np.ones(1000, int))[0]) == 400
    loss, _ = ops.binary_cross_entropy_with_logits(logits, _half(np.tile([0.0, 1.0], (1000, 1))))
    assert float(loss) == 200


def test_small_steps_add_up_as_in_float32():
    """In float16 a running sum of ones stops at 2048."""
    _, saved = ops.affine(_half(np.zeros((5000, 1))), _half([[1.0]]), _half([0.0]))
    dbias = ops.affine_backward(_half(np.ones((5000, 1))), saved)[2]
    assert float(dbias[0]) == 5000
    _, saved = ops.conv1d(_half(np.zeros((5, 1, 1000))), _half([[[1.0]]]), _half([0.0]))
    assert float(ops.conv1d_backward(_half(np.ones((5, 1, 1000))), saved)[2][0]) == 5000
    x = _half(np.ones((1, 1, 5000)))
    _, saved = ops.conv_transpose1d(x, _half([[[1.0]]]), _half([0.0]))
    _, dweight, dbias = ops.conv_transpose1d_backward(x, saved)
    assert float(dweight[0, 0, 0]) == float(dbias[0]) == 5000
    _, saved = ops.group_norm(x, _half([1.0]), _half([0.0]), groups=1)
    assert float(ops.group_norm_backward(x, saved)[2][0]) == 5000


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_the_ends_of_the_range_are_safe(arrays, op):
    not_compiled(arrays)
    for dtype in _halves(arrays):
        x = np.array([6e4, -6e4, 1e3, -1e3, 20.0, -20.0, 6e-5, -6e-5, 6e-8, -6e-8, 0.0], np.float32)
        half = arrays.xp.astype(arrays(x), getattr(arrays.xp, dtype))
        wide = arrays.xp.astype(half, arrays.xp.float32)
        call = Call(op, {"x": x.shape})
        y, dx = call.both({"x": half}, arrays.xp.ones_like(half))
        expected, slope = call.both({"x": wide}, arrays.xp.ones_like(wide))
        assert np.isfinite(_float32(arrays, y)).all()
        _check(arrays, y, expected, half, dtype)
        _check(arrays, dx, slope, half, dtype)


def test_what_else_comes_with_a_call(arrays):
    not_compiled(arrays)
    for dtype in _halves(arrays):
        half = getattr(arrays.xp, dtype)
        x = arrays.xp.astype(arrays(np.arange(16.0).reshape(1, 1, 4, 4), "float32"), half)
        y, saved = ops.max_pool2d(x, 2, xp=arrays.xp)
        np.testing.assert_array_equal(arrays.backend.to_numpy(saved.indices), [[[[5, 7], [13, 15]]]])
        assert ops.max_pool2d_backward(y, saved, xp=arrays.xp).dtype == half
        y, saved = ops.global_max_pool2d(x)
        np.testing.assert_array_equal(arrays.backend.to_numpy(saved.indices), [[15]])
        w = arrays.xp.astype(arrays(np.ones((2, 1, 2, 2)), "float32"), half)
        y, saved = ops.conv2d(x, weight=w)
        dx, dweight, dbias = ops.conv2d_backward(dy=y, saved=saved, need_dx=False)
        assert (dx, dbias) == (None, None)
        assert dweight.dtype == half
        y, saved, statistics = ops.batch_norm(x, None, None, None, None, train=True)
        assert statistics == (None, None)
        assert ops.batch_norm_backward(y, saved)[0].dtype == half
        _, saved = ops.mean_squared_error(x, x)
        assert ops.mean_squared_error_backward(saved).dtype == half
