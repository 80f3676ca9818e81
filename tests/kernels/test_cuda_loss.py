"""Cross-entropy of softmax on CUDA against the definition in float64, in one launch and in two."""

from __future__ import annotations

import emulator
import numpy as np
import pytest

from xpcnn import ops
from xpcnn.kernels.cuda import loss, runtime


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    emulator.install(monkeypatch)


def defined(logits, labels):
    """Return each row's loss and its gradient."""
    z = logits.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    total = np.exp(z).sum(1, keepdims=True)
    rows = np.arange(len(labels))
    slopes = np.exp(z) / total
    slopes[rows, labels] -= 1
    return np.log(total)[:, 0] - z[rows, labels], slopes


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "int8", "uint16"])
@pytest.mark.parametrize(
    ("rows", "classes", "launches"),
    [(1, 1, 1), (7, 2, 1), (100, 10, 1), (300, 3, 1), (512, 10, 1), (900, 10, 2), (30, 121, 1), (80, 127, 2)],
)
def test_it_is_the_definition(rows, classes, launches, kind, real, rng):
    logits = (10 * rng.standard_normal((rows, classes))).astype(real)
    labels = rng.integers(0, classes, rows).astype(kind)
    losses, slopes = defined(logits, labels)
    tolerance = 1e-6 if real == "float32" else 1e-13
    for reduction, value, share in (
        ("mean", losses.mean(), 1 / rows), ("sum", losses.sum(), 1), ("none", losses, 1)
    ):  # fmt: skip
        emulator.launches.clear()
        found, gradient = loss.cross_entropy(logits, labels, reduction)
        assert len(emulator.launches) == (1 if reduction == "none" else launches)
        assert found.shape == np.shape(value)
        assert found.dtype == logits.dtype == gradient.dtype
        np.testing.assert_allclose(found, value, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, slopes * share, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [5, 3000])
@pytest.mark.parametrize("label", [-1, 10, 200, -(2**40), 2**63 - 1])
def test_a_label_out_of_range_makes_the_loss_nan(label, rows, rng):
    logits, labels = rng.standard_normal((rows, 10)).astype(np.float32), rng.integers(0, 10, rows)
    labels[rows // 2] = label
    for reduction in ("mean", "sum"):
        assert np.isnan(ops.softmax_cross_entropy(logits, labels, reduction=reduction)[0])
    each, saved = ops.softmax_cross_entropy(logits, labels, reduction="none")
    wrong = np.arange(rows) == rows // 2
    np.testing.assert_array_equal(np.isnan(each), wrong)
    np.testing.assert_array_equal(np.isnan(ops.softmax_cross_entropy_backward(saved)).all(1), wrong)


@pytest.mark.parametrize("real", ["float32", "float64"])
def test_extreme_logits(real):
    most = np.finfo(real).max
    logits = np.array([[most, -most, 0], [-most, -most, -most], [0, 1000, -1000]], real)
    each, gradient = loss.cross_entropy(logits, np.array([1, 0, 2]), "none")
    np.testing.assert_allclose(each, np.array([most, np.log(3), 2000], real), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1, -1, 0], [-2 / 3, 1 / 3, 1 / 3], [0, 1, -1]], atol=1e-6)
    assert np.isnan(loss.cross_entropy(np.array([[0, np.nan]], real), np.array([0]), "mean")[0])


@pytest.mark.parametrize("rows", [20, 2000])
def test_it_can_be_recorded(rows, rng):
    logits, labels = rng.standard_normal((rows, 9)), rng.integers(0, 9, rows)
    given, held = np.zeros_like(logits), {}

    def work():
        held.update(found=loss.cross_entropy(given, labels, "mean"))

    with runtime.Recorder() as recorder:
        replay = recorder.record(work, work)
        given[...] = logits
        replay()
    losses, slopes = defined(logits, labels)
    np.testing.assert_allclose(held["found"][0], losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(held["found"][1], slopes / rows, atol=1e-14)
