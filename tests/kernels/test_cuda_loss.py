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


def defined_for(logits, targets, smoothing):
    """Return the same for probabilities, smoothed: weighted sums of what every label would give."""
    rows, classes = logits.shape
    share = (1 - smoothing) * targets.astype(np.float64) + smoothing / classes
    losses, slopes = np.zeros(rows), np.zeros((rows, classes))
    for k in range(classes):
        loss, slope = defined(logits, np.full(rows, k))
        losses += share[:, k] * loss
        slopes += share[:, k : k + 1] * slope
    return losses, slopes


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


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["labels, smoothed", "probabilities", "probabilities, smoothed"])
@pytest.mark.parametrize(
    ("rows", "classes", "launches"), [(1, 1, 1), (7, 2, 1), (100, 10, 1), (900, 10, 2), (9, 1000, 2)]
)
def test_targets_of_several_classes(rows, classes, launches, kind, real, rng):
    logits = (10 * rng.standard_normal((rows, classes))).astype(real)
    targets = (rng.random((rows, classes)) * (rng.random((rows, classes)) < 0.7)).astype(real)  # of any sum
    smoothing = 0.15 if "smoothed" in kind else 0.0
    if "labels" in kind:
        given = rng.integers(0, classes, rows)
        targets = np.eye(classes)[given]
    else:
        given = np.asfortranarray(targets)
    losses, slopes = defined_for(logits, targets, smoothing)
    tolerance = 2e-6 if real == "float32" else 1e-12
    for reduction, value, share in (
        ("mean", losses.mean(), 1 / rows), ("sum", losses.sum(), 1), ("none", losses, 1)
    ):  # fmt: skip
        emulator.launches.clear()
        found, saved = ops.softmax_cross_entropy(logits, given, label_smoothing=smoothing, reduction=reduction)
        assert len(emulator.launches) == (1 if reduction == "none" else launches)
        assert found.shape == np.shape(value)
        np.testing.assert_allclose(found, value, rtol=tolerance, atol=tolerance)
        gradient = ops.softmax_cross_entropy_backward(saved)
        np.testing.assert_allclose(gradient, slopes * share, rtol=tolerance, atol=tolerance)
        assert found.dtype == logits.dtype == gradient.dtype


@pytest.mark.parametrize("rows", [5, 3000])
@pytest.mark.parametrize(
    ("label", "smoothing"), [(-1, 0.0), (10, 0.0), (200, 0.0), (-(2**40), 0.0), (2**63 - 1, 0.0), (10, 0.1)]
)
def test_a_label_out_of_range_makes_the_loss_nan(label, rows, smoothing, rng):
    logits, labels = rng.standard_normal((rows, 10)).astype(np.float32), rng.integers(0, 10, rows)
    labels[rows // 2] = label
    options = {"label_smoothing": smoothing}
    for reduction in ("mean", "sum"):
        assert np.isnan(ops.softmax_cross_entropy(logits, labels, reduction=reduction, **options)[0])
    each, saved = ops.softmax_cross_entropy(logits, labels, reduction="none", **options)
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
    each, gradient = loss.cross_entropy(logits, np.array([[0, 0.25, 0], [1, 0, 0], [0, 0.5, 0.5]], real), "none")
    np.testing.assert_allclose(each[1:], [np.log(3), 1000], rtol=1e-6)
    assert np.isfinite(each[0])
    np.testing.assert_allclose(gradient, [[0.25, -0.25, 0], [-2 / 3, 1 / 3, 1 / 3], [0, 0.5, -0.5]], atol=1e-6)
    for targets in (np.array([0]), np.array([[1, 0]], real)):
        assert np.isnan(loss.cross_entropy(np.array([[0, np.nan]], real), targets, "mean")[0])


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("rows", [20, 2000])
def test_it_can_be_recorded(rows, kind, rng):
    logits, labels = rng.standard_normal((rows, 9)), rng.integers(0, 9, rows)
    targets = labels if kind == "labels" else np.eye(9)[labels]
    given, held = np.zeros_like(logits), {}

    def work():
        held.update(found=loss.cross_entropy(given, targets, "mean"))

    with runtime.Recorder() as recorder:
        replay = recorder.record(work, work)
        given[...] = logits
        replay()
    losses, slopes = defined(logits, labels)
    np.testing.assert_allclose(held["found"][0], losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(held["found"][1], slopes / rows, atol=1e-14)
