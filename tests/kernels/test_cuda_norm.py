"""Batch normalisation on CUDA against its definition in float64: both orders of memory, bfloat16, many blocks."""

from __future__ import annotations

import warnings

import emulator
import numpy as np
import pytest

from xpcnn import ops
from xpcnn.kernels.cuda import layout, norm, runtime

MOST = {None: None, "relu": np.inf, "relu6": 6.0}
EPS = 1e-3


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    emulator.install(monkeypatch)


def defined(x, gamma, beta, dy, most, eps=EPS, given=None):
    """Return y, dx, dgamma, dbeta, mean and var by the formulas as they stand."""
    x, dy, gamma, beta = (np.asarray(a, np.float64) for a in (x, dy, gamma, beta))
    axes, spread = (0, *range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
    mean, var = (x.mean(axes), x.var(axes)) if given is None else given
    deviation = np.sqrt(var + eps).reshape(spread)
    normal = (x - mean.reshape(spread)) / deviation
    y = normal * gamma.reshape(spread) + beta.reshape(spread)
    if most is not None:
        dy = dy * ((y > 0) & (y < most))
        y = np.clip(y, 0, most)
    g = dy * gamma.reshape(spread)
    if given is None:
        dx = g - g.mean(axes, keepdims=True) - normal * (g * normal).mean(axes, keepdims=True)
    else:
        dx = g
    return y, dx / deviation, (dy * normal).sum(axes), dy.sum(axes), mean, var


def made(shape, dtype, rng, offset=2.0):
    """Return x, gamma, beta and dy; no value of y lies so near to where a slope begins that rounding decides."""
    x = (3.0 * rng.standard_normal(shape) + offset).astype(dtype)
    gamma, beta = rng.uniform(0.5, 1.5, shape[1]), rng.standard_normal(shape[1])
    dy = rng.standard_normal(shape).astype(dtype)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):  # of no images
        y = defined(x, gamma, beta, dy, None)[0]
    dy[(np.abs(y) < 1e-3) | (np.abs(y - 6) < 1e-3)] = 0
    wide = np.float64 if dtype == "float64" else np.float32
    return x, gamma.astype(wide), beta.astype(wide), dy


def in_order(array, last):
    """Return the same values with the channels last in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if last else array


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)


def near(found, expected, tolerance, name):
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()), err_msg=name)


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("real", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        ((5, 3, 4, 6), None),
        ((3, 8, 16, 12), "relu"),
        ((2, 24, 7, 7), "relu6"),
        ((70, 2, 9), "relu"),
        ((33, 6), "relu6"),
        ((2, 1, 40, 40), None),
        ((1, 136, 3, 5), "relu"),
        ((6, 64, 32, 16), "relu"),
    ],
)
def test_it_is_the_definition(shape, activation, real, last, rng):
    kind = dtype_of(real)
    x, gamma, beta, dy = made(shape, kind, rng)
    x, dy = in_order(x, last), in_order(dy, last)
    zeros = np.zeros(shape[1], gamma.dtype)
    y, saved, mean, var = norm.forward(x, gamma, beta, EPS, MOST[activation], zeros, zeros, 1.0)
    dx, dgamma, dbeta = norm.backward(dy, saved)
    expected = defined(x, gamma, beta, dy, MOST[activation])
    count = x.size / shape[1]
    fine = 1e-12 if real == "float64" else 4e-6
    rough = 2**-8 if real == "bfloat16" else fine
    found = y, dx, dgamma, dbeta, mean, var * ((count - 1) / count)
    names = "y", "dx", "dgamma", "dbeta", "mean", "var"
    for name, actual, value in zip(names, found, expected, strict=True):
        near(actual, value, rough if name in ("y", "dx") else fine * 10, name)
        assert actual.dtype == (kind if name in ("y", "dx") else gamma.dtype)
    assert layout.is_channels_last(y) == layout.is_channels_last(x) == layout.is_channels_last(dx)


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
def test_a_small_deviation_from_a_large_mean_keeps_its_digits(last, rng):
    x = in_order((1e4 + rng.standard_normal((64, 4, 32, 32))).astype(np.float32), last)
    zeros = np.zeros(4, np.float32)
    y, _, mean, var = norm.forward(x, None, None, 0.0, None, zeros, zeros, 1.0)
    wide = np.asarray(x, np.float64)
    count = x.size / 4
    np.testing.assert_allclose(var, wide.var((0, 2, 3)) * count / (count - 1), rtol=3e-7)
    np.testing.assert_allclose(mean, wide.mean((0, 2, 3)), rtol=1e-7)
    expected = defined(x, np.ones(4), np.zeros(4), x, None, 0.0)[0]
    assert np.abs(y - expected).max() < 2e-6  # though a float32 mean alone would miss by 5e-4


def test_outliers_where_threads_begin_do_not_spoil_the_variance(rng):
    x = rng.standard_normal((64, 2, 16, 16)).astype(np.float32)
    x[0] += 1e4
    zeros = np.zeros(2, np.float32)
    _, _, _, var = norm.forward(x, None, None, EPS, None, zeros, zeros, 1.0)
    count = x.size / 2
    np.testing.assert_allclose(var, x.astype(np.float64).var((0, 2, 3)) * count / (count - 1), rtol=1e-6)


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
def test_a_channel_is_split_among_blocks(monkeypatch, last, rng):
    monkeypatch.setattr(norm, "ENOUGH_VALUES", 64)
    monkeypatch.setattr(norm, "MOST_PARTS", 64)
    norm._split.cache_clear()
    x, gamma, beta, dy = made((9, 12, 10, 10), "float32", rng)
    x, dy = in_order(x, last), in_order(dy, last)
    zeros = np.zeros(12, np.float32)
    try:
        y, saved, mean, _ = norm.forward(x, gamma, beta, EPS, 6.0, zeros, zeros, 1.0)
        assert norm._split(x.shape, 4, last).splits > 10
        found = (y, *norm.backward(dy, saved), mean)
    finally:
        norm._split.cache_clear()
    assert ("norm_merge_moments" in emulator.launches) == last
    for actual, expected in zip(found, defined(x, gamma, beta, dy, 6.0), strict=False):
        near(actual, expected, 4e-5, "with many blocks")


def test_few_launches(rng):
    x, gamma, beta, dy = made((8, 16, 16, 16), "float32", rng)
    old = np.ones(16, np.float32)
    _, saved, *_ = norm.forward(x, gamma, beta, EPS, np.inf, old, old, 0.1)
    norm.backward(dy, saved)
    assert emulator.launches == ["norm_moments", "norm_apply", "norm_slopes", "norm_dx"]
    emulator.launches.clear()
    norm.fixed(x, gamma, beta, old, old, EPS, np.inf)
    assert emulator.launches == ["norm_apply"]


@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (0, 3, 4, 6), (4, 8)])
def test_given_statistics(shape, last, rng):
    x, gamma, beta, dy = made(shape, "float32", rng)
    given = rng.standard_normal(shape[1]).astype(np.float32), rng.uniform(1, 2, shape[1]).astype(np.float32)
    x, dy = in_order(x, last), in_order(dy, last)
    y, saved, statistics = ops.batch_norm(x, gamma, beta, *given, train=False, eps=EPS)
    assert statistics[0] is given[0]
    assert statistics[1] is given[1]
    found = (y, *ops.batch_norm_backward(dy, saved))
    expected = defined(x, gamma, beta, dy, None, given=given)
    for actual, value in zip(found, expected, strict=False):
        np.testing.assert_allclose(actual, value, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("activation", MOST)
def test_what_is_no_number_spreads_over_its_channel_alone(activation, number, rng):
    x, gamma, beta, _ = made((4, 3, 6, 6), "float32", rng)
    x[2, 1, 3, 3] = number
    y, *_ = norm.forward(x, gamma, beta, EPS, MOST[activation], None, None, 0.1)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()


def test_replays_of_recorded_work_follow_their_input(rng):
    x, gamma, beta, dy = made((4, 6, 8, 8), "float32", rng)
    old = np.zeros(6, np.float32)
    held = {}

    def work():
        y, saved, mean, _ = norm.forward(held["x"], gamma, beta, EPS, 6.0, old, old, 1.0)
        held["found"] = (y, *norm.backward(dy, saved), mean)

    with runtime.Recorder() as recorder:
        held["x"] = np.zeros_like(x)
        replay = recorder.record(work, work)
        assert np.isnan(held["found"][0]).all(), "recorded work ran"
        held["x"][...] = x
        replay()
    for actual, expected in zip(held["found"], defined(x, gamma, beta, dy, 6.0), strict=False):
        near(actual, expected, 4e-5, "replayed")
