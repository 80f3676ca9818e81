"""Batch normalisation put together of passes over blocks, against its definition in float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from xpcnn import ops
from xpcnn.kernels import native, numpy_cpu, reference
from xpcnn.ops import channel_norm

EPS = 1e-3
MOST = {None: None, "relu": np.inf, "relu6": 6.0}


@pytest.mark.parametrize("activation", MOST)
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (6, 2), (4, 3, 9), (2, 2, 3, 2, 4)])
def test_it_is_the_definition(arrays, dtype, shape, activation, rng):
    for with_gamma, with_beta in product((True, False), (True, False)):
        x, dy = (4.0 * rng.standard_normal(shape).astype(dtype) + 2.0 for _ in range(2))
        gamma = rng.standard_normal(shape[1]).astype(dtype) if with_gamma else None
        beta = rng.standard_normal(shape[1]).astype(dtype) if with_beta else None
        there = [None if a is None else arrays(a) for a in (gamma, beta)]
        old = arrays(np.full(shape[1], 3.0, dtype))
        y, kept, mean, var = channel_norm.forward(arrays(x), *there, EPS, MOST[activation], old, old, 0.25)
        share = 1 - shape[1] / x.size  # the running variance is the unbiased one
        new = (4 * mean - 9, (4 * var - 9) * share)
        found = (y, *channel_norm.backward(arrays(dy), kept), *new)
        for actual, expected in zip(found, _defined(x, gamma, beta, dy, MOST[activation]), strict=True):
            arrays.check(actual, expected, y, 1e-5 if dtype == "float32" else 1e-12)


def test_many_blocks_give_what_one_gives(arrays, monkeypatch, rng):
    x, dy = rng.standard_normal((2, 23, 4, 5, 3))
    gamma, beta = rng.standard_normal((2, 4))
    for module in (numpy_cpu, reference):
        monkeypatch.setattr(module, "BLOCK_BYTES", 5000)
    y, kept, *_ = channel_norm.forward(arrays(x), arrays(gamma), arrays(beta), EPS, 6.0, None, None, 0.1)
    expected = _defined(x, gamma, beta, dy, 6.0)
    for actual, values in zip((y, *channel_norm.backward(arrays(dy), kept)), expected, strict=False):
        arrays.check(actual, values, y, 1e-12)


def test_a_small_deviation_from_a_large_mean_keeps_its_digits(monkeypatch, rng):
    """The variance comes from deviations; the mean of squares less the squared mean would leave nothing of it."""
    monkeypatch.setattr(native, "library", lambda: None)
    x = (1000.0 + 0.1 * rng.standard_normal((64, 2, 16, 16))).astype(np.float32)
    y = ops.batch_norm(x, None, None, None, None, train=True)[0]
    expected = _defined(x, None, None, x, None, 1e-5)[0]
    assert np.abs(y - expected).max() < 2e-2  # float32 holds 1000 to 6e-5, 6e-4 of the deviation
    assert abs(y.std() - expected.std()) < 1e-3


def _defined(x, gamma, beta, dy, most, eps=EPS):
    """Return y, dx, dgamma, dbeta, mean and var by the formulas as they stand."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    axes = (0, *range(2, x.ndim))
    spread = (1, -1, *(1,) * (x.ndim - 2))
    gamma = np.ones(x.shape[1]) if gamma is None else gamma
    beta = np.zeros(x.shape[1]) if beta is None else beta
    mean, var = x.mean(axes), x.var(axes)
    deviation = np.sqrt(var + eps).reshape(spread)
    normal = (x - mean.reshape(spread)) / deviation
    y = normal * gamma.reshape(spread) + beta.reshape(spread)
    if most is not None:
        dy = dy * ((y > 0) & (y < most))
        y = np.clip(y, 0, most)
    g = dy * gamma.reshape(spread)
    dx = g - g.mean(axes, keepdims=True) - normal * (g * normal).mean(axes, keepdims=True)
    return y, dx / deviation, (dy * normal).sum(axes), dy.sum(axes), mean, var
