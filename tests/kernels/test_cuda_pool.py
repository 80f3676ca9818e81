"""Pooling on CUDA against the agnostic steps, which are tested elsewhere, and in bfloat16 and with channels last."""

from __future__ import annotations

import emulator
import numpy as np
import pytest

from xpcnn import kernels, ops
from xpcnn.kernels import numpy_cpu
from xpcnn.kernels.cuda import layout, pool, runtime

WINDOWS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": (3, 1), "dilation": (2, 1), "padding": ((1, 2), (0, 1))},
    {"kernel_size": 3, "stride": 1, "dilation": 3, "padding": "same"},
    {"kernel_size": 3, "stride": 2, "center": (1, 2), "mode": "convolution"},
    {"kernel_size": (1, 3), "stride": 2, "mode": "convolution", "padding": 0},
]


@pytest.fixture
def both(monkeypatch):
    """Return a function that gives an op's results by the agnostic steps and by CUDA's kernels."""
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")

    def run(work, *arrays):
        monkeypatch.setattr(kernels, "of", lambda xp: numpy_cpu)
        expected = work(*arrays)
        emulator.install(monkeypatch)
        return expected, work(*arrays)

    return run


def in_order(array, last):
    """Return the same values with the channels last in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if last else array


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("options", WINDOWS)
def test_maxima_and_their_places_to_the_bit(both, options, last, rng):
    x = rng.integers(-2, 3, (3, 5, 9, 10)).astype(np.float32)  # full of ties
    x[0, 0], x[1, 1, 2:5, 3], x[1, 2, ::3, ::2], x[2, 1] = -np.inf, np.nan, -0.0, -np.inf
    x[2, 1, 4, 4] = np.nan

    def work(x):
        y, saved = ops.max_pool2d(x, **options)
        dy = np.asarray(np.random.default_rng(1).standard_normal(y.shape), np.float32)
        return y, saved.offset, saved.indices, ops.max_pool2d_backward(in_order(dy, last), saved)

    expected, found = both(work, in_order(x, last))
    for actual, value in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual, value)
        assert actual.dtype == value.dtype
    assert emulator.launches == ["max_pool", "max_pool_backward"]
    assert layout.is_channels_last(found[0]) == last == layout.is_channels_last(found[3])


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("options", WINDOWS)
def test_means(both, options, counted, last, rng):
    def work(x):
        y, saved = ops.avg_pool2d(x, **options, count_include_pad=counted)
        dy = np.random.default_rng(1).standard_normal(y.shape)
        return y, ops.avg_pool2d_backward(in_order(dy, last), saved)

    expected, found = both(work, in_order(rng.standard_normal((3, 5, 9, 10)), last))
    for actual, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-12, atol=1e-14)
    assert emulator.launches == ["avg_pool", "avg_pool_backward"]
    assert layout.is_channels_last(found[0]) == last


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (5, 7, 4, 4), (300, 2, 3, 5), (2, 2, 40, 41)])
def test_means_of_images(both, shape, last, rng):
    def work(x):
        y, saved = ops.global_avg_pool2d(x)
        return y, ops.global_avg_pool2d_backward(y, saved)

    expected, found = both(work, in_order(rng.standard_normal(shape), last))
    for actual, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-12, atol=1e-14)
    assert emulator.launches == ["global_mean", "global_mean_backward"]


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
def test_bfloat16(last, monkeypatch, rng):
    half = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    emulator.install(monkeypatch)
    x = rng.standard_normal((2, 3, 6, 6)).astype(half)
    windows = x.reshape(2, 3, 3, 2, 3, 2).swapaxes(3, 4).reshape(2, 3, 3, 3, 4).astype(np.float64)
    win = ops.pool.pool_window((6, 6), 2)
    y, places = pool.max_forward(in_order(x, last), win, False)
    np.testing.assert_array_equal(y.astype(float), windows.max(-1))
    np.testing.assert_array_equal(places, windows.argmax(-1))
    assert y.dtype == half
    dx = pool.max_backward(y, places, win)
    assert float(dx.astype(float).sum()) == pytest.approx(float(windows.max(-1).sum()), rel=1e-6)
    mean = pool.avg_forward(in_order(x, last), win, [(0, 0), (0, 0)])
    np.testing.assert_allclose(mean.astype(float), windows.mean(-1), atol=2**-8)
    whole = pool.mean_forward(in_order(x, last))
    np.testing.assert_allclose(whole.astype(float), x.astype(float).mean((2, 3)), atol=2**-9)


def test_pooling_can_be_recorded(monkeypatch, rng):
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    emulator.install(monkeypatch)
    x, held = rng.standard_normal((2, 3, 6, 6)), {}
    given = np.zeros_like(x)

    def work():
        y, saved = ops.max_pool2d(given, 3, stride=2, padding=1)
        a, of_a = ops.avg_pool2d(given, 3, stride=2, padding=1)
        g, of_g = ops.global_avg_pool2d(y)
        dx = ops.max_pool2d_backward(ops.global_avg_pool2d_backward(g, of_g), saved)
        held["found"] = y, a, g, dx, ops.avg_pool2d_backward(a, of_a)

    with runtime.Recorder() as recorder:
        replay = recorder.record(work, work)
        given[...] = x
        replay()
    replayed = [array.copy() for array in held["found"]]
    work()
    for actual, expected in zip(replayed, held["found"], strict=True):
        assert np.isfinite(actual).all()
        np.testing.assert_array_equal(actual, expected)
