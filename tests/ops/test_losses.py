"""Binary cross-entropy and squared errors against their definitions, numerical gradients and PyTorch."""

from __future__ import annotations

from itertools import product

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import XpcnnError, ops

REDUCTIONS = ("mean", "sum", "none")


def _binary(x, t, weight=None, pos_weight=None):
    """Return each element's binary cross-entropy, in extended precision."""
    x = np.asarray(x, np.longdouble)
    log_p, log_q = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    losses = -((1 if pos_weight is None else pos_weight) * t * log_p + (1 - t) * log_q)
    return losses if weight is None else losses * weight


def _reduced(losses, reduction):
    return {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](losses).astype(float)


def _dy(loss, rng):
    return np.array(rng.standard_normal(tuple(loss.shape)))


WEIGHTS = {
    "plain": (None, None),
    "weight": ((3, 4), None),
    "weight-per-column": ((4,), None),
    "weight-per-row": ((3, 1), None),
    "pos-weight": (None, (4,)),
    "pos-weight-everywhere": (None, (3, 4)),
    "one-of-each": ((1,), ()),
    "both": ((1, 4), (3, 1)),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_binary_cross_entropy(arrays, dtype, name, reduction, rng):
    not_compiled(arrays)
    x, t = (rng.standard_normal((3, 4)) * 3).astype(dtype), rng.random((3, 4)).astype(dtype)
    t[0] = [0, 1, 0, 1]
    options = {
        key: np.array(rng.random(shape) * 3, dtype)
        for key, shape in zip(("weight", "pos_weight"), WEIGHTS[name], strict=True)
        if shape is not None
    }
    given = arrays(x)
    there = {key: arrays(value) for key, value in options.items()}
    loss, saved = ops.binary_cross_entropy_with_logits(given, arrays(t), reduction=reduction, **there)
    arrays.check(loss, _reduced(_binary(x, t, **options), reduction), given)
    for dy in (None, _dy(loss, rng)):
        (expected,) = oracles.numerical_gradients(
            lambda a: _reduced(_binary(a, t, **options), reduction), [x], 1.0 if dy is None else dy
        )
        given_dy = () if dy is None else (arrays(dy, dtype),)
        found = ops.binary_cross_entropy_with_logits_backward(saved, *given_dy)
        arrays.check(found, expected, given, 1e-4 if dtype == "float32" else 1e-8)
    for array, host in ((given, x), *((there[key], options[key]) for key in options)):
        np.testing.assert_array_equal(arrays.backend.to_numpy(array), host)


def test_pytorch_agrees_on_binary_cross_entropy(rng):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.binary_cross_entropy_with_logits
    for shape, weighted, positive, reduction, dtype, hard in product(
        [(6,), (5, 4), (2, 3, 4), (2, 3, 2, 4)],
        (None, "all", "last", "first"),
        (None, "all", "last", "one"),
        REDUCTIONS,
        ("float32", "float64"),
        (False, True),
    ):
        shapes = {"all": shape, "last": shape[-1:], "first": (shape[0], *(1,) * (len(shape) - 1)), "one": (1,)}
        x = (rng.standard_normal(shape) * 4).astype(dtype)
        t = (rng.integers(0, 2, shape) if hard else rng.random(shape)).astype(dtype)
        options = {
            "weight": None if weighted is None else (rng.random(shapes[weighted]) * 2).astype(dtype),
            "pos_weight": None if positive is None else (rng.random(shapes[positive]) * 4).astype(dtype),
        }
        tensors = {key: None if value is None else torch.tensor(value) for key, value in options.items()}
        loss, saved = ops.binary_cross_entropy_with_logits(x, t, reduction=reduction, **options)
        dy = _dy(loss, rng).astype(dtype)

        def run(a, t=t, tensors=tensors, reduction=reduction):
            return theirs(a, torch.tensor(t), reduction=reduction, **tensors)

        expected, (gradient,) = oracles.torch_gradients(run, [x], dy)
        limit = 1e-10 if dtype == "float64" else 1e-5
        oracles.assert_close(np.asarray(loss), expected, limit)
        oracles.assert_close(ops.binary_cross_entropy_with_logits_backward(saved, dy), gradient, limit)


def test_extreme_logits_are_safe(arrays, dtype):
    if dtype == "float64":
        not_compiled(arrays)
    x = np.array([1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 100.0, -100.0, 1e-40, -1e-40, 0.0], dtype)
    for target in (0.0, 1.0, 0.5):
        t = np.full_like(x, target)
        loss, saved = ops.binary_cross_entropy_with_logits(arrays(x), arrays(t), reduction="none")
        wide = x.astype(np.float64)
        expected = np.maximum(wide, 0) - wide * target + np.log1p(np.exp(-np.abs(wide)))
        found = arrays.backend.to_numpy(loss)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-37)
        gradient = arrays.backend.to_numpy(ops.binary_cross_entropy_with_logits_backward(saved))
        np.testing.assert_allclose(gradient, 0.5 * (1 + np.tanh(wide / 2)) - target, rtol=1e-5, atol=1e-7)
    loss, saved = ops.binary_cross_entropy_with_logits(arrays(x[:4]), arrays(np.ones(4), dtype))
    assert np.isfinite(arrays.backend.to_numpy(loss))


def test_certainty_that_is_right_costs_next_to_nothing(arrays, dtype):
    """The loss keeps its digits where 1 + exp(-x) would round to 1."""
    not_compiled(arrays)
    x = np.array([20.0, 40.0, -40.0, 80.0], dtype)
    loss, _ = ops.binary_cross_entropy_with_logits(arrays(x), arrays(np.array([1, 1, 0, 1]), dtype), reduction="none")
    expected = np.log1p(np.exp(-np.abs(x.astype(np.float64))))
    np.testing.assert_allclose(arrays.backend.to_numpy(loss), expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mean_squared_error(arrays, dtype, reduction, rng):
    not_compiled(arrays)
    y, t = (rng.standard_normal((3, 4, 2)).astype(dtype) for _ in range(2))
    given = arrays(y)
    loss, saved = ops.mean_squared_error(given, arrays(t), reduction=reduction)

    def expected(a):
        return _reduced((a.astype(np.longdouble) - t) ** 2, reduction)

    arrays.check(loss, expected(y), given)
    for dy in (None, _dy(loss, rng)):
        (gradient,) = oracles.numerical_gradients(expected, [y], 1.0 if dy is None else dy)
        found = ops.mean_squared_error_backward(saved, *(() if dy is None else (arrays(dy, dtype),)))
        arrays.check(found, gradient, given, 1e-4 if dtype == "float32" else 1e-8)


def test_the_mean_is_the_default(rng):
    y, t = rng.standard_normal((2, 3)), rng.random((2, 3))
    for op in (ops.mean_squared_error, ops.binary_cross_entropy_with_logits):
        assert float(op(y, t)[0]) == float(op(y, t, reduction="mean")[0])


def test_half_squared_error(arrays, dtype, rng):
    not_compiled(arrays)
    for shape in ((4,), (3, 5), (2, 3, 2)):
        y, t = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        given = arrays(y)
        loss, saved = ops.half_squared_error(given, arrays(t))
        wide = t.astype(np.float64) - y
        arrays.check(loss, 0.5 * (wide**2).sum() / shape[0], given)
        arrays.check(ops.half_squared_error_backward(saved), -wide / shape[0], given)
        dy = np.array(-2.5)
        arrays.check(ops.half_squared_error_backward(saved, arrays(dy, dtype)), 2.5 * wide / shape[0], given)


def test_half_squared_error_worked_by_hand():
    """Targets ±1 as in the original text: ½(0.5² + 2²) and ½(0 + 1²), averaged over the two examples."""
    y, t = np.array([[0.5, 1.0], [1.0, 0.0]]), np.array([[1.0, -1.0], [1.0, 1.0]])
    loss, saved = ops.half_squared_error(y, t)
    assert float(loss) == (2.125 + 0.5) / 2
    np.testing.assert_array_equal(ops.half_squared_error_backward(saved), [[-0.25, 1.0], [0.0, -0.5]])


def test_pytorch_agrees_on_squared_errors(rng):
    torch = pytest.importorskip("torch")
    for shape, reduction, dtype in product(
        [(6,), (5, 4), (2, 3, 4), (1, 1), (300, 401), ()], REDUCTIONS, ("float32", "float64")
    ):
        y, t = (np.array(rng.standard_normal(shape), dtype) for _ in range(2))
        loss, saved = ops.mean_squared_error(y, t, reduction=reduction)
        dy = _dy(loss, rng).astype(dtype)

        def run(a, t=t, reduction=reduction):
            return torch.nn.functional.mse_loss(a, torch.tensor(t), reduction=reduction)

        expected, (gradient,) = oracles.torch_gradients(run, [y], dy)
        limit = 1e-10 if dtype == "float64" else 1e-5
        oracles.assert_close(np.asarray(loss), expected, limit)
        oracles.assert_close(np.asarray(ops.mean_squared_error_backward(saved, dy)), gradient, limit)


def test_extreme_differences_are_finite(arrays, dtype):
    not_compiled(arrays)
    for size in (1e4, 1e15, 1e-40):
        y, t = np.array([[size, -size]]), np.array([[-size, 1.0]])
        for op, scale in ((ops.mean_squared_error, 0.5), (ops.half_squared_error, 0.5)):
            loss, saved = op(arrays(y, dtype), arrays(t, dtype))
            wide = y.astype(dtype).astype(float) - t
            arrays.check(loss, scale * (wide**2).sum(), loss, 1e-6)
            backward = getattr(ops, f"{op.__name__}_backward")
            factor = 1.0  # 2 · (y - t) / 2 elements, and (y - t) / 1 example
            arrays.check(backward(saved), factor * wide, loss, 1e-6)


LOSSES = ("binary_cross_entropy_with_logits", "mean_squared_error", "half_squared_error")


@pytest.mark.parametrize("op", LOSSES)
def test_a_loss_of_nothing_is_no_number_without_a_warning(arrays, dtype, op):
    not_compiled(arrays)
    y, t = arrays(np.ones((0, 3)), dtype), arrays(np.ones((0, 3)), dtype)
    loss, saved = getattr(ops, op)(y, t)
    arrays.check(loss, np.array(np.nan), y)
    arrays.check(getattr(ops, f"{op}_backward")(saved), np.ones((0, 3)), y)
    if op == "half_squared_error":
        return
    for reduction, expected in (("sum", np.array(0.0)), ("none", np.ones((0, 3)))):
        loss, saved = getattr(ops, op)(y, t, reduction=reduction)
        arrays.check(loss, expected, y)
        arrays.check(getattr(ops, f"{op}_backward")(saved, loss), np.ones((0, 3)), y)


def test_cross_entropy_of_nothing_is_no_number_without_a_warning(arrays, dtype):
    not_compiled(arrays)
    logits = arrays(np.ones((0, 3)), dtype)
    for targets in (arrays(np.ones(0, np.int64)), arrays(np.ones((0, 3)), dtype)):
        loss, saved = ops.softmax_cross_entropy(logits, targets)
        arrays.check(loss, np.array(np.nan), logits)
        arrays.check(ops.softmax_cross_entropy_backward(saved), np.ones((0, 3)), logits)
        loss, saved = ops.softmax_cross_entropy(logits, targets, reduction="sum")
        arrays.check(loss, np.array(0.0), logits)
        loss, saved = ops.softmax_cross_entropy(logits, targets, reduction="none")
        arrays.check(loss, np.ones(0), logits)
        arrays.check(ops.softmax_cross_entropy_backward(saved, loss), np.ones((0, 3)), logits)


def test_cross_entropy_when_all_are_ignored_is_no_number_without_a_warning(arrays):
    """As PyTorch: 0 / 0 for the mean; for the sum and each example, 0."""
    not_compiled(arrays)
    logits, labels = arrays(np.arange(6.0).reshape(2, 3)), arrays(np.array([1, 1]))
    loss, saved = ops.softmax_cross_entropy(logits, labels, ignore_index=1)
    arrays.check(loss, np.array(np.nan), logits)
    assert tuple(ops.softmax_cross_entropy_backward(saved).shape) == (2, 3)
    for reduction, expected in (("sum", np.array(0.0)), ("none", np.zeros(2))):
        loss, saved = ops.softmax_cross_entropy(logits, labels, ignore_index=1, reduction=reduction)
        arrays.check(loss, expected, logits, 0.0)
        arrays.check(ops.softmax_cross_entropy_backward(saved), np.zeros((2, 3)), logits, 0.0)


def test_cross_entropy_of_extreme_logits(arrays, dtype):
    not_compiled(arrays)
    logits = np.array([[1e30, -1e30, 0.0], [1e38, 1e38, 1e38], [1e-40, -1e-40, 0.0], [-1e30, -1e30, -1e30]], dtype)
    labels = np.array([1, 0, 2, 2])
    loss, saved = ops.softmax_cross_entropy(arrays(logits), arrays(labels), reduction="none")
    np.testing.assert_allclose(arrays.backend.to_numpy(loss), [2e30, np.log(3), np.log(3), np.log(3)], rtol=1e-5)
    gradient = arrays.backend.to_numpy(ops.softmax_cross_entropy_backward(saved))
    third = np.full(3, 1 / 3)
    expected = [[1, -1, 0], third - [1, 0, 0], third - [0, 0, 1], third - [0, 0, 1]]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_losss_own_multiple_may_be_its_gradient(arrays):
    """What arithmetic makes of a loss (on NumPy a scalar) is taken as dy."""
    not_compiled(arrays)
    y, t = arrays(np.array([[1.0, 3.0]])), arrays(np.array([[0.0, 1.0]]))
    for op in LOSSES:
        loss, saved = getattr(ops, op)(y, t)
        backward = getattr(ops, f"{op}_backward")
        ones = arrays.backend.to_numpy(backward(saved))
        arrays.check(backward(saved, loss * 0.0 + 2.0), 2 * ones, y, 1e-14)


@pytest.mark.parametrize("smoothing", [-0.1, float("nan"), "a", None])
def test_a_smoothing_that_is_no_share_is_named(smoothing):
    with pytest.raises(XpcnnError, match="label_smoothing"):
        ops.softmax_cross_entropy(np.ones((2, 3)), np.array([0, 1]), label_smoothing=smoothing)


def test_cross_entropy_of_weights_that_are_all_zero_is_no_number_without_a_warning(arrays):
    not_compiled(arrays)
    logits, labels = arrays(np.arange(6.0).reshape(2, 3)), arrays(np.array([0, 1]))
    loss, saved = ops.softmax_cross_entropy(logits, labels, class_weights=arrays(np.zeros(3)))
    arrays.check(loss, np.array(np.nan), logits)
    assert tuple(ops.softmax_cross_entropy_backward(saved).shape) == (2, 3)


@pytest.mark.parametrize("op", LOSSES)
def test_what_does_not_fit_is_named(arrays, op):
    run, backward = getattr(ops, op), getattr(ops, f"{op}_backward")
    for given, target in (((3, 4), (3, 1)), ((3, 4), (4,)), ((3, 1), (3, 4)), ((3,), (3, 1)), ((2, 3, 4), (2, 4, 3))):
        with pytest.raises(XpcnnError) as caught:
            run(arrays(np.ones(given)), arrays(np.ones(target)))
        assert str(given) in str(caught.value)
        assert str(target) in str(caught.value)
    with pytest.raises(TypeError, match="float32"):
        run(arrays(np.ones((3, 4))), arrays(np.ones((3, 4)), "float32"))
    with pytest.raises(TypeError, match="int64"):
        run(arrays(np.ones((3, 4))), arrays(np.ones((3, 4)), "int64"))
    with pytest.raises(TypeError, match="list"):
        run(arrays(np.ones((1, 2))), [[1.0, 0.0]])
    _, saved = run(arrays(np.ones((3, 4))), arrays(np.ones((3, 4))))
    with pytest.raises(XpcnnError, match=r"dy must have shape \(\).*\(3, 4\)"):
        backward(saved, arrays(np.ones((3, 4))))


@pytest.mark.parametrize("op", LOSSES[:2])
def test_an_unknown_reduction_is_named(op):
    for reduction in ("average", None, 1):
        with pytest.raises(XpcnnError, match=r"mean, sum, none"):
            getattr(ops, op)(np.ones((2, 3)), np.ones((2, 3)), reduction=reduction)
    _, saved = getattr(ops, op)(np.ones((2, 3)), np.ones((2, 3)), reduction="none")
    with pytest.raises(XpcnnError, match=r"dy must have shape \(2, 3\)"):
        getattr(ops, f"{op}_backward")(saved, np.array(1.0))


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 3, 4), (1, 3, 4), (2,)])
def test_weights_broadcast_to_the_logits_and_never_the_other_way(arrays, name, shape):
    with pytest.raises(XpcnnError) as caught:
        ops.binary_cross_entropy_with_logits(
            arrays(np.ones((3, 4))), arrays(np.ones((3, 4))), **{name: arrays(np.ones(shape))}
        )
    assert name in str(caught.value)
    assert str(shape) in str(caught.value)
    assert "(3, 4)" in str(caught.value)
