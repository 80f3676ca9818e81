"""Sums of columns on CUDA, in every way of sharing them out."""

from __future__ import annotations

import emulator
import numpy as np
import pytest

from xpcnn.kernels import cuda
from xpcnn.kernels.cuda import runtime


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    emulator.install(monkeypatch)


@pytest.mark.parametrize("real", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "launches"),
    [
        ((1, 1), 1), ((100, 10), 1), ((100, 50), 1), ((3, 2, 5), 1), ((1025, 33), 2), ((5000, 1), 1), ((70000, 1), 2),
        ((0, 4), 1), ((4, 0), 0), ((17,), 1), ((9, 4099), 1),
    ],
)  # fmt: skip
def test_it_adds_up_the_first_axis(shape, launches, real, rng):
    kind = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if real == "bfloat16" else np.dtype(real)
    x = rng.standard_normal(shape).astype(kind)
    found = cuda.sum_rows(x, np)
    expected = x.astype(np.float64).sum(0, keepdims=True)
    assert found.dtype == kind
    assert found.shape == expected.shape
    tolerance = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 2**-8}[real]
    most = np.abs(x.astype(np.float64)).sum(0, keepdims=True) ** 0.5
    if real == "bfloat16":
        most = np.abs(expected)  # rounding the sum is all that is lost
    assert (np.abs(found.astype(np.float64) - expected) <= tolerance * most).all()
    assert len(emulator.launches) == launches


def test_other_types_and_orders(rng):
    x = rng.integers(0, 9, (6, 5))
    np.testing.assert_array_equal(cuda.sum_rows(x, np), x.sum(0, keepdims=True))
    y = rng.standard_normal((40, 30))
    np.testing.assert_allclose(cuda.sum_rows(y.T, np), y.T.sum(0, keepdims=True), rtol=1e-12)


def test_it_can_be_recorded(rng):
    x, held = rng.standard_normal((3000, 7)), {}
    given = np.zeros_like(x)

    def work():
        held.update(sums=cuda.sum_rows(given, np))

    with runtime.Recorder() as recorder:
        replay = recorder.record(work, work)
        given[...] = x
        replay()
    np.testing.assert_allclose(held["sums"], x.sum(0, keepdims=True), rtol=1e-12, atol=1e-12)
