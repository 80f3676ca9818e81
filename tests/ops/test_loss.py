"""Softmax cross-entropy against a loop in extended precision, numerical gradients and PyTorch."""

from __future__ import annotations

from itertools import product

import numpy as np
import oracles
import pytest

from xpcnn import XpcnnError, ops

WEIGHTS = np.array([0.5, 2.0, 1.0, 0.0, 1.5])
OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "weighted": {"class_weights": WEIGHTS},
    "smoothed-weighted": {"label_smoothing": 0.3, "class_weights": WEIGHTS},
    "ignoring": {"ignore_index": 2},
    "ignoring-outside": {"ignore_index": -100},
    "all": {"label_smoothing": 0.1, "class_weights": WEIGHTS, "ignore_index": 1},
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_labels(arrays, dtype, name, reduction, rng):
    logits, labels = rng.standard_normal((6, 5)) * 3, np.array([0, 1, 2, 4, 1, 2])
    if name == "ignoring-outside":
        labels[3] = -100
    _compare(arrays, dtype, logits, labels, OPTIONS[name], reduction, rng)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["plain", "smoothed", "smoothed-weighted"])
def test_probabilities(arrays, dtype, name, reduction, rng):
    targets = rng.random((4, 5))
    targets /= targets.sum(axis=1, keepdims=True)
    _compare(arrays, dtype, rng.standard_normal((4, 5)), targets, OPTIONS[name], reduction, rng)


def _compare(arrays, dtype, logits, targets, options, reduction, rng):
    """Compare loss and gradient with the loop's."""
    weights, smoothing = options.get("class_weights"), options.get("label_smoothing", 0.0)

    def expected(logits):
        losses, shares = oracles.cross_entropy(logits, targets, smoothing, weights, options.get("ignore_index"))
        return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / shares.sum()}[reduction]

    there = dict(options, **({} if weights is None else {"class_weights": arrays(weights, dtype)}))
    given = arrays(logits, dtype)
    given_targets = arrays(targets, dtype) if targets.ndim == 2 else arrays(targets)
    loss, saved = ops.softmax_cross_entropy(given, given_targets, reduction=reduction, **there)
    arrays.check(loss, expected(logits), given)
    dy = rng.standard_normal(loss.shape)
    numeric = oracles.numerical_gradient(lambda a: float((expected(a) * dy).sum()), logits)
    found = ops.softmax_cross_entropy_backward(saved, arrays(dy, dtype))
    arrays.check(found, numeric, given, 1e-4 if dtype == "float32" else 1e-8)
    ones = ops.softmax_cross_entropy_backward(saved)
    numeric = oracles.numerical_gradient(lambda a: float(np.sum(expected(a))), logits)
    arrays.check(ones, numeric, given, 1e-4 if dtype == "float32" else 1e-8)


def test_extreme_logits_are_safe(arrays, dtype):
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [3e4, 3e4, -3e4]])
    loss, saved = ops.softmax_cross_entropy(arrays(logits, dtype), arrays(np.array([1, 0, 0])), reduction="none")
    np.testing.assert_allclose(arrays.backend.to_numpy(loss), [2e4, np.log(3), np.log(2)], rtol=1e-5)
    gradient = arrays.backend.to_numpy(ops.softmax_cross_entropy_backward(saved))
    np.testing.assert_allclose(gradient, [[1, -1, 0], [-2 / 3, 1 / 3, 1 / 3], [-0.5, 0.5, 0]], atol=1e-6)


@pytest.mark.parametrize("integer", ["uint8", "int16", "int32", "int64"])
def test_any_integer_type_labels(arrays, integer):
    logits = np.log(np.array([[0.2, 0.8], [0.5, 0.5]]))
    loss, _ = ops.softmax_cross_entropy(arrays(logits), arrays(np.array([1, 0]), integer), reduction="none")
    arrays.check(loss, -np.log([0.8, 0.5]), loss)


def test_pytorch_agrees(rng):
    torch = pytest.importorskip("torch")
    for shape, smoothing, weighted, ignore, reduction, soft in product(
        ((7, 5), (3, 5, 4), (2, 5, 3, 2)), (0.0, 0.2), (False, True), (None, 1), ("mean", "sum", "none"), (False, True)
    ):
        if soft and ignore is not None:
            continue
        logits = rng.standard_normal(shape)
        targets = rng.random(shape) if soft else rng.integers(0, 5, (shape[0], *shape[2:]))
        leaf = torch.tensor(logits, requires_grad=True)
        expected = torch.nn.functional.cross_entropy(
            leaf, torch.tensor(targets), weight=torch.tensor(WEIGHTS) if weighted else None,
            ignore_index=-100 if ignore is None else ignore, reduction=reduction, label_smoothing=smoothing,
        )  # fmt: skip
        loss, saved = ops.softmax_cross_entropy(
            logits, targets, label_smoothing=smoothing, class_weights=WEIGHTS if weighted else None,
            ignore_index=ignore, reduction=reduction,
        )  # fmt: skip
        np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        dy = rng.standard_normal(loss.shape)
        expected.backward(torch.tensor(dy))
        found = ops.softmax_cross_entropy_backward(saved, np.asarray(dy))
        np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3000, 1), (3000, 10), (5, 121), (64, 1000)])
def test_pytorch_agrees_in_every_size_of_batch(dtype, shape, rng):
    torch = pytest.importorskip("torch")
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    soft = (rng.random(shape) * (rng.random(shape) < 0.6)).astype(dtype)  # some are 0, and few rows add up to 1
    labels = rng.integers(0, shape[1], shape[0])
    rough = 1e-6 if dtype == "float32" else 1e-13
    for targets, smoothing, reduction in product((labels, soft), (0.0, 0.1, 1.0), ("mean", "sum", "none")):
        leaf = torch.tensor(logits.astype(float), requires_grad=True)
        given = torch.tensor(targets if targets is labels else targets.astype(float))
        options = {"reduction": reduction, "label_smoothing": smoothing}
        expected = torch.nn.functional.cross_entropy(leaf, given, **options)
        expected.sum().backward()
        loss, saved = ops.softmax_cross_entropy(logits, targets, **options)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=rough, atol=rough)
        found, slopes = ops.softmax_cross_entropy_backward(saved), leaf.grad.numpy()
        np.testing.assert_allclose(found, slopes, rtol=0, atol=rough * max(1.0, np.abs(slopes).max()))


@pytest.mark.parametrize("large", [1e4, 1e30])
def test_probabilities_of_extreme_logits(arrays, dtype, large):
    logits = np.array([[large, -large, 0.0], [-np.inf, 1.0, 1.0], [large, large, -np.inf]])
    targets = np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75], [0.5, 0.5, 0.0]])
    loss, saved = ops.softmax_cross_entropy(arrays(logits, dtype), arrays(targets, dtype), reduction="none")
    np.testing.assert_allclose(arrays.backend.to_numpy(loss), [large, np.log(2), np.log(2)], rtol=1e-6)
    gradient = arrays.backend.to_numpy(ops.softmax_cross_entropy_backward(saved))
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0], [0, 0.25, -0.25], [0, 0, 0]], atol=1e-6)
    loss, saved = ops.softmax_cross_entropy(arrays(logits[1:], dtype), arrays(targets[1:], dtype), label_smoothing=0.3)
    assert np.isinf(arrays.backend.to_numpy(loss))  # a share of a class that cannot be


def test_labels_out_of_range_never_pass_unseen(arrays):
    for labels, smoothing in product(([0, 3], [0, -1]), (0.0, 0.1)):
        logits, targets = arrays(np.zeros((2, 3)), "float32"), arrays(np.array(labels))
        if "numpy" in arrays.id and arrays.id != "numpy-as-cuda":
            with pytest.raises(XpcnnError, match=f"from 0 to 2 .* got {labels[1]}"):
                ops.softmax_cross_entropy(logits, targets, label_smoothing=smoothing)
        else:
            loss, _ = ops.softmax_cross_entropy(logits, targets, label_smoothing=smoothing)
            assert np.isnan(arrays.backend.to_numpy(loss))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"logits": np.zeros(3)}, "(N, K, ...)"),
        ({"targets": np.zeros(3, int)}, "targets must have shape (2,)"),
        ({"targets": np.zeros((2, 4))}, "(2, 3)"),
        ({"targets": np.zeros((2, 3), np.float32)}, "targets is float32"),
        ({"targets": np.zeros(2, bool)}, "targets has dtype bool"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"class_weights": np.ones(2)}, "class_weights"),
        ({"reduction": "median"}, "'median'"),
        ({"targets": np.zeros((2, 3)), "ignore_index": 1}, "ignore_index"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(arrays, change, says):
    call = {"logits": np.zeros((2, 3)), "targets": np.zeros(2, int)} | change
    call = {key: arrays(value) if isinstance(value, np.ndarray) else value for key, value in call.items()}
    with pytest.raises(XpcnnError) as caught:
        ops.softmax_cross_entropy(call.pop("logits"), call.pop("targets"), **call)
    assert says in str(caught.value)


def test_a_probability_of_zero_costs_nothing_where_it_is_not_asked_for(arrays):
    logits = np.array([[3e38, -3e38, 0.0], [1.0, -np.inf, 1.0]], np.float32)
    with np.errstate(over="ignore"):
        loss, saved = ops.softmax_cross_entropy(arrays(logits), arrays(np.array([0, 2])), reduction="none")
    arrays.check(loss, [0.0, np.log(2.0)], loss, 1e-6)
    gradient = arrays.backend.to_numpy(ops.softmax_cross_entropy_backward(saved))
    np.testing.assert_allclose(gradient, [[0, 0, 0], [0.5, 0, -0.5]], atol=1e-6)


def test_labels_too_large_for_32_bits_are_out_of_range():
    for label in (2**32, 2**62):
        with pytest.raises(XpcnnError, match=str(label)):
            ops.softmax_cross_entropy(np.zeros((1, 3)), np.array([label]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_where_no_label_counts_the_mean_is_no_number_and_the_gradient_0(arrays, smoothing):
    logits = arrays(np.array([[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]]))
    labels = arrays(np.array([0, 0]))
    loss, saved = ops.softmax_cross_entropy(logits, labels, ignore_index=0, label_smoothing=smoothing)
    assert np.isnan(arrays.backend.to_numpy(loss))
    arrays.check(ops.softmax_cross_entropy_backward(saved), np.zeros((2, 3)), logits, 0.0)


@pytest.mark.parametrize("index", ["a", 1.5, True])
def test_an_index_to_ignore_is_a_whole_number(index):
    with pytest.raises(XpcnnError, match="ignore_index"):
        ops.softmax_cross_entropy(np.ones((1, 2)), np.array([0]), ignore_index=index)
