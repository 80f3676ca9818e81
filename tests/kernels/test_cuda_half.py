"""bfloat16 on the CUDA kernels: they read and write it themselves and round once, at the end."""

from __future__ import annotations

import emulator
import numpy as np
import pytest
from calls import CALLS

from xpcnn import kernels, ops
from xpcnn.kernels import cuda
from xpcnn.kernels.cuda import half, runtime
from xpcnn.ops.half import HalfSaved

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(not emulator.compiler(), reason="there is no C++ compiler")

BF16 = np.dtype(ml_dtypes.bfloat16)
EPSILON = 2.0**-8  # half the distance from 1 to the next number
WIDE = ("gamma", "beta", "running_mean", "running_var")
NATIVE = (*half.STEPS, *half.ENGINES)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    emulator.install(monkeypatch)


def operands(call, mixed):
    """Return a call's operands in bfloat16 (a normalisation's parameters in float32) and the same in float32."""
    narrow, wide = {}, {}
    for name, host in call.operands().items():
        if name in call.others:
            narrow[name] = wide[name] = host
        else:
            keep = mixed and name in WIDE
            narrow[name] = host.astype(np.float32) if keep else host.astype(np.float32).astype(BF16)
            wide[name] = narrow[name].astype(np.float32)
    return narrow, wide


def check(actual, expected, dtype, slack=0.0):
    if expected is None:
        assert actual is None
        return
    assert actual.dtype == dtype
    limit = EPSILON * 1.01 if dtype == BF16 else 1e-5
    np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=limit, atol=1e-6 + slack)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mixed", [True, False], ids=["beside float32", "alone"])
def test_every_op_rounds_once(name, mixed):
    call = CALLS[name]
    if mixed and not set(WIDE) & set(call.shapes):
        pytest.skip("it has no parameters of a normalisation")
    narrow, wide = operands(call, mixed)
    slack = 2.0**-7 * 4 if call.op == "affine" else 0.0  # the product is rounded before the bias is added: |y - b| < 8
    y, saved, *statistics = call.run(narrow)
    expected, wide_saved, *wide_statistics = call.run(wide)
    check(y, expected, BF16, slack)
    beside = np.dtype(np.float32) if mixed else BF16
    for pair, wide_pair in zip(statistics, wide_statistics, strict=True):
        for actual, value in zip(pair, wide_pair, strict=True):
            check(actual, value, beside)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32).astype(BF16)
    grads, wide_grads = call.backward(saved, dy), call.backward(wide_saved, dy.astype(np.float32))
    for number, (actual, value) in enumerate(zip(grads, wide_grads, strict=True)):
        check(actual, value, BF16 if number == 0 else beside)


@pytest.mark.parametrize("name", [name for name in CALLS if CALLS[name].op in NATIVE])
def test_nothing_is_widened_where_kernels_take_it(name):
    call = CALLS[name]
    narrow, _ = operands(call, mixed=True)
    emulator.launches.clear()
    y, saved, *_ = call.run(narrow)
    call.backward(saved, y)
    assert not isinstance(saved, HalfSaved)
    assert "cast" not in emulator.launches
    assert emulator.launches


def test_ops_without_kernels_are_widened_by_one():
    x = np.ones((2, 3, 4, 4), BF16)
    y, saved = ops.adaptive_avg_pool2d(x, 2)
    assert type(saved) is HalfSaved
    assert emulator.launches == ["cast", "cast"]
    assert y.dtype == BF16


@pytest.mark.parametrize("count", [0, 1, 8, 9, 20])
@pytest.mark.parametrize(
    "kinds", [(np.float32, BF16), (BF16, np.float32), (np.float64, BF16), (np.float32, np.float64)]
)
def test_casts_round_as_numpys_do_and_go_eight_to_a_launch(count, kinds):
    rng = np.random.default_rng(count)
    made = [rng.standard_normal((n % 7 + 1, 3)).astype(kinds[0]) * 10.0 ** (n - 5) for n in range(count)]
    made = [a.astype(kinds[0]) for a in made]
    emulator.launches.clear()
    found = cuda.cast(made, np.dtype(kinds[1]), np)
    for a, b in zip(found, made, strict=True):
        expected = b.astype(np.float32).astype(kinds[1]) if kinds[1] == BF16 else b.astype(kinds[1])
        assert a.dtype == kinds[1]
        np.testing.assert_array_equal(a.astype(np.float64), expected.astype(np.float64))
    assert len(emulator.launches) == -(-count // 8)


def test_arrays_of_several_dtypes_and_orders_are_cast_together():
    given = [
        np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        np.ones(3, BF16),
        np.full(2, 0.1, np.float16),
        np.asarray(np.nan, np.float32),
        np.asarray([np.inf, 3.4e38], np.float32),
    ]
    found = cuda.cast(given, BF16, np)
    assert found[1] is given[1]
    for a, b in zip(found, given, strict=True):
        assert a.dtype == BF16
        np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32).astype(BF16).astype(np.float32))


def test_a_cast_can_be_recorded():
    x = np.zeros(5, np.float32)
    recorder = runtime.Recorder()
    made = []
    with recorder:
        replay = recorder.record(lambda: made.extend(cuda.cast([x], BF16, np)), lambda: None)
        x[:] = 7
        replay()
    (y,) = made
    np.testing.assert_array_equal(y.astype(np.float32), np.full(5, 7))


def test_a_gpus_capability_is_what_cupy_says():
    class Device:
        compute_capability = "90"

    assert half.capability(Device()) == 90
    assert half.capability("cpu") is None
    assert kernels.of(np) is cuda
