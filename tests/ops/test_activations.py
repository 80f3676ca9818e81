"""Activations against their definitions, numerical gradients and PyTorch; at kinks, and far out."""

from __future__ import annotations

from itertools import product
from math import erf

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import XpcnnError, ops

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # G. Klambauer et al., 2017

_erf = np.vectorize(erf, otypes=[float])


def _sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def _elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _softplus(x, beta=1.0, threshold=20.0):
    smooth = (np.maximum(beta * x, 0) + np.log1p(np.exp(-np.abs(beta * x)))) / beta
    return np.where(beta * x > threshold, x, smooth)


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


# op, options, definition on extended precision
CASES = {
    "relu": ("relu", {}, lambda x: np.where(x > 0, x, 0)),
    "relu6": ("relu6", {}, lambda x: np.clip(x, 0, 6)),
    "clip": ("clip", {"low": -1.5, "high": 2.25}, lambda x: np.clip(x, -1.5, 2.25)),
    "clip-low": ("clip", {"low": 0.5}, lambda x: np.maximum(x, 0.5)),
    "clip-high": ("clip", {"high": -0.5}, lambda x: np.minimum(x, -0.5)),
    "hard_sigmoid": ("hard_sigmoid", {}, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    "hard_sigmoid-down": ("hard_sigmoid", {"alpha": -0.25, "beta": 0.75}, lambda x: np.clip(0.75 - x / 4, 0, 1)),
    "leaky_relu": ("leaky_relu", {}, lambda x: np.where(x > 0, x, 0.01 * x)),
    "leaky_relu-0.3": ("leaky_relu", {"negative_slope": 0.3}, lambda x: np.where(x > 0, x, 0.3 * x)),
    "elu": ("elu", {}, _elu),
    "elu-2.5": ("elu", {"alpha": 2.5}, lambda x: _elu(x, 2.5)),
    "selu": ("selu", {}, lambda x: SELU_SCALE * _elu(x, SELU_ALPHA)),
    "gelu": ("gelu", {}, lambda x: x * 0.5 * (1 + _erf(x.astype(float) / np.sqrt(2)))),
    "gelu-tanh": ("gelu", {"approximate": "tanh"}, _gelu_tanh),
    "silu": ("silu", {}, lambda x: x * _sigmoid(x)),
    "softplus": ("softplus", {}, _softplus),
    "softplus-2-1.5": ("softplus", {"beta": 2.0, "threshold": 1.5}, lambda x: _softplus(x, 2.0, 1.5)),
    "hard_swish": ("hard_swish", {}, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "sigmoid": ("sigmoid", {}, _sigmoid),
    "tanh": ("tanh", {}, np.tanh),
}
OPS = sorted({op for op, _, _ in CASES.values()})
NEEDED = {"clip": {"low": -2.0, "high": 2.0}}  # options without a default


def _run(op, x, options):
    """Return y and a function from dy to dx."""
    y, saved = getattr(ops, op)(x, **options)
    return y, lambda dy: getattr(ops, f"{op}_backward")(dy, saved)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_definitions(arrays, dtype, name, rng):
    not_compiled(arrays)
    op, options, definition = CASES[name]
    x = (rng.standard_normal((3, 4, 5)) * 3).astype(dtype)
    given = arrays(x)
    y, backward = _run(op, given, options)
    arrays.check(y, definition(x.astype(np.longdouble)).astype(float), given, 2e-6 if dtype == "float32" else 1e-12)
    dy = rng.standard_normal(x.shape).astype(dtype)
    wide = x.astype(np.float64)
    slope = (definition(np.longdouble(wide) + 1e-6) - definition(np.longdouble(wide) - 1e-6)) / 2e-6
    arrays.check(backward(arrays(dy)), (dy * slope).astype(float), given, 1e-5 if dtype == "float32" else 1e-8)
    np.testing.assert_array_equal(arrays.backend.to_numpy(given), x)


# op, options, values at which the two sides of a kink meet, y there, the gradient there
KINKS = {
    "relu": ("relu", {}, [0.0, -0.0], [0, 0], [0, 0]),
    "relu6": ("relu6", {}, [0.0, -0.0, 6.0], [0, 0, 6], [0, 0, 0]),
    "clip": ("clip", {"low": -1.5, "high": 2.0}, [-1.5, 2.0, 1.0], [-1.5, 2, 1], [0, 0, 1]),
    "clip-low": ("clip", {"low": 0.0}, [0.0, -0.0, 1.0], [0, 0, 1], [0, 0, 1]),
    "clip-one": ("clip", {"low": 2.0, "high": 2.0}, [1.0, 2.0, 3.0], [2, 2, 2], [0, 0, 0]),
    "hard_sigmoid": ("hard_sigmoid", {}, [-3.0, 0.0, 3.0], [0, 0.5, 1], [0, 1 / 6, 0]),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.25}, [0.0, -0.0], [0, 0], [0.25, 0.25]),
    "elu": ("elu", {"alpha": 2.5}, [0.0, -0.0], [0, 0], [2.5, 2.5]),
    "selu": ("selu", {}, [0.0, -0.0], [0, 0], [SELU_SCALE * SELU_ALPHA] * 2),
    "hard_swish": ("hard_swish", {}, [-3.0, 0.0, 3.0], [0, 0, 3], [0, 0.5, 1]),
    "softplus": (
        "softplus", {"beta": 2.0, "threshold": 5.0}, [2.5, np.nextafter(np.float32(2.5), np.float32(3))],
        [np.log1p(np.exp(5)) / 2, 2.5], [1 / (1 + np.exp(-5)), 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINKS)
def test_the_gradient_at_a_kink_is_pytorchs(arrays, dtype, name):
    """The expectations are those of PyTorch 2.13, which the next test holds them to."""
    not_compiled(arrays)
    op, options, x, expected, gradient = KINKS[name]
    y, backward = _run(op, arrays(np.array(x), dtype), options)
    arrays.check(y, np.array(expected, float), y, 1e-6)
    arrays.check(backward(arrays(np.ones(len(x)), dtype)), np.array(gradient, float), y, 1e-6)


def _torch(op, options):
    functional = pytest.importorskip("torch").nn.functional
    if op == "clip":  # hardtanh's gradient at a bound is ours, clamp's is not
        return lambda x: functional.hardtanh(x, options.get("low", -np.inf), options.get("high", np.inf))
    if op == "hard_sigmoid":  # hardsigmoid's gradient is 1/6 rounded to float32 even in float64
        return lambda x: functional.hardtanh(options.get("alpha", 1 / 6) * x + options.get("beta", 0.5), 0.0, 1.0)
    theirs = {"hard_swish": "hardswish"}.get(op, op)
    return lambda x: getattr(functional, theirs)(x, **options)


@pytest.mark.parametrize("name", KINKS)
def test_pytorch_has_these_gradients_at_the_kinks(name):
    op, options, x, expected, gradient = KINKS[name]
    y, (dx,) = oracles.torch_gradients(_torch(op, options), [np.array(x)])
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(dx, gradient, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_pytorch_agrees_densely(name, dtype):
    """Every 1/64 (all kinks among them) from -40 to 40, and a finer grid near 0."""
    x = np.concatenate([np.arange(-2560, 2561) / 64, np.geomspace(1e-12, 1, 200), -np.geomspace(1e-12, 1, 200)])
    x = x.astype(dtype)
    op, options, _ = CASES[name]
    dy = np.linspace(-2, 2, x.size).astype(dtype)
    expected, (gradient,) = oracles.torch_gradients(_torch(op, options), [x.astype(np.float64)], dy.astype(np.float64))
    y, backward = _run(op, x, options)
    limit = 2e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(y, expected, rtol=limit, atol=limit)
    np.testing.assert_allclose(backward(dy), gradient, rtol=limit, atol=limit)


@pytest.mark.parametrize("name", CASES)
def test_a_large_array_is_many_small_ones(name, rng):
    """NumPy's version cuts large arrays into pieces."""
    op, options, _ = CASES[name]
    x = (rng.standard_normal((37, 50, 61)) * 4).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    expected, (gradient,) = oracles.torch_gradients(_torch(op, options), [x], dy)
    y, backward = _run(op, x, options)
    oracles.assert_close(y, expected, 1e-6)
    oracles.assert_close(backward(dy), gradient, 2e-6)


PARAMETERS = [
    *(("leaky_relu", {"negative_slope": slope}) for slope in (0.0, 0.01, 1.0, 1.5, -0.3)),
    *(("elu", {"alpha": alpha}) for alpha in (0.0, 0.5, 1.0, 3.0, -1.0)),
    *(("softplus", {"beta": beta, "threshold": t}) for beta, t in product((0.5, 1.0, 3.0), (20.0, 4.0, 0.0, 100.0))),
    *(("gelu", {"approximate": approximate}) for approximate in ("none", "tanh")),
]


@pytest.mark.parametrize(("op", "options"), PARAMETERS, ids=str)
def test_pytorch_agrees_over_the_parameters(op, options, dtype, rng):
    torch = pytest.importorskip("torch")
    x = np.concatenate([rng.standard_normal(200) * 5, np.arange(-8, 9), [-0.0, 1e4, -1e4]]).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    theirs = getattr(torch.nn.functional, op)
    expected, (gradient,) = oracles.torch_gradients(
        lambda a: theirs(a, **options), [x.astype(np.float64)], dy.astype(np.float64)
    )
    y, backward = _run(op, x, options)
    limit = 2e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(y, expected, rtol=limit, atol=limit)
    np.testing.assert_allclose(backward(dy), gradient, rtol=limit, atol=limit)


# what each is far out: y and its slope at a large x, and at a large -x
FAR = {
    "relu": (("x", 1), (0, 0)),
    "relu6": ((6, 0), (0, 0)),
    "clip": ((2.25, 0), (-1.5, 0)),
    "clip-low": (("x", 1), (0.5, 0)),
    "clip-high": ((-0.5, 0), ("x", 1)),
    "hard_sigmoid": ((1, 0), (0, 0)),
    "hard_sigmoid-down": ((0, 0), (1, 0)),
    "leaky_relu": (("x", 1), ("0.01x", 0.01)),
    "leaky_relu-0.3": (("x", 1), ("0.3x", 0.3)),
    "elu": (("x", 1), (-1, 0)),
    "elu-2.5": (("x", 1), (-2.5, 0)),
    "selu": ((f"{SELU_SCALE}x", SELU_SCALE), (-SELU_SCALE * SELU_ALPHA, 0)),
    "gelu": (("x", 1), (0, 0)),
    "gelu-tanh": (("x", 1), (0, 0)),
    "silu": (("x", 1), (0, 0)),
    "softplus": (("x", 1), (0, 0)),
    "softplus-2-1.5": (("x", 1), (0, 0)),
    "hard_swish": (("x", 1), (0, 0)),
    "sigmoid": ((1, 0), (0, 0)),
    "tanh": ((1, 0), (-1, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_far_out_all_is_finite_and_right(arrays, dtype, name):
    """A warning of an overflow is an error here, as everywhere in these tests."""
    if name not in ("gelu", "softplus-2-1.5") or dtype == "float64":
        not_compiled(arrays)
    op, options, _ = CASES[name]
    sizes = [1e3, 1e4, 1e8, 1e15, 1e19, 1e20, 1e30, 2e38] + ([1e100, 1e155, 1e300, 1e307] if dtype == "float64" else [])
    x = np.array([sign * size for size in sizes for sign in (1.0, -1.0)], dtype)
    y, backward = _run(op, arrays(x), options)
    y, dx = arrays.backend.to_numpy(y), arrays.backend.to_numpy(backward(arrays(np.ones(x.size), dtype)))
    for value, found, slope in zip(x, y, dx, strict=True):
        limit, expected_slope = FAR[name][int(value < 0)]
        if isinstance(limit, str):
            limit = float(limit.rstrip("x") or 1) * float(value)
        assert found == pytest.approx(limit, rel=1e-6, abs=1e-30), value
        assert slope == pytest.approx(expected_slope, rel=1e-6, abs=1e-30), value


@pytest.mark.parametrize("name", CASES)
def test_at_the_largest_number_nothing_warns(dtype, name):
    op, options, _ = CASES[name]
    most = np.finfo(dtype).max / 1.1  # selu multiplies by 1.05
    x = np.array([most, -most], dtype)
    y, backward = _run(op, x, options)
    dx = backward(np.ones(2, dtype))
    assert not np.isnan(y).any()
    assert not np.isnan(dx).any()
    for found, (_, slope) in zip(dx, FAR[name], strict=True):
        assert found == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_between_near_and_far_pytorch_agrees(name, dtype):
    """Where exponentials leave the dtype's range: about ±88, ±104 for float32, ±709, ±745 for float64."""
    x = np.concatenate([np.arange(-800, 801, 0.5), np.array([-88.7, 88.7, -103.9, 103.9, -709.7, 709.7])]).astype(dtype)
    op, options, _ = CASES[name]
    expected, (gradient,) = oracles.torch_gradients(_torch(op, options), [x.astype(np.float64)])
    y, backward = _run(op, x, options)
    limit = 2e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(y, expected, rtol=limit, atol=limit)
    np.testing.assert_allclose(backward(np.ones_like(x)), gradient, rtol=limit, atol=limit)


@pytest.mark.parametrize("name", CASES)
def test_near_0_nothing_is_lost_or_warned_of(arrays, dtype, name):
    """Small and denormal numbers: to within the smallest normal number, since some devices flush what is below."""
    not_compiled(arrays)
    op, options, definition = CASES[name]
    smallest = np.finfo(dtype).tiny
    x = np.array([1e-3, 1e-6, 1e-12, 1e-30, smallest, smallest / 8, np.finfo(dtype).smallest_subnormal, 0.0])
    x = np.concatenate([x, -x]).astype(dtype)
    y, backward = _run(op, arrays(x), options)
    expected = definition(x.astype(np.longdouble)).astype(float)
    found, dx = arrays.backend.to_numpy(y), arrays.backend.to_numpy(backward(arrays(np.ones(x.size), dtype)))
    np.testing.assert_allclose(found, expected, rtol=5e-6 if dtype == "float32" else 1e-10, atol=2 * smallest)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("op", OPS)
def test_not_a_number_is_passed_on_and_scalars_stay_scalars(arrays, op):
    not_compiled(arrays)
    y, backward = _run(op, arrays(np.array([1.0, np.nan, -1.0])), NEEDED.get(op, {}))
    found = arrays.backend.to_numpy(y)
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    assert np.isfinite(arrays.backend.to_numpy(backward(arrays(np.ones(3))))[::2]).all()
    y, backward = _run(op, arrays(np.array(0.5)), NEEDED.get(op, {}))
    assert tuple(y.shape) == ()
    assert tuple(backward(arrays(np.array(1.0))).shape) == ()


def test_relu_at_infinities(arrays, dtype):
    x = np.array([[-np.inf, -2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, np.inf]], dtype)
    given = arrays(x)
    y, saved = ops.relu(given)
    np.testing.assert_array_equal(arrays.backend.to_numpy(y), np.array([[0, 0, 0, 0, 0, 1e-30, 3.0, np.inf]], dtype))
    dx = ops.relu_backward(arrays(np.arange(1.0, 9.0).reshape(1, 8), dtype), saved)
    arrays.check(dx, [[0, 0, 0, 0, 0, 6, 7, 8]], given, 0.0)


def test_relu_stops_infinite_gradients_and_passes_nan_on(arrays):
    y, saved = ops.relu(arrays(np.array([-1.0, 1.0, np.nan])))
    assert np.isnan(arrays.backend.to_numpy(y)[2])
    dx = arrays.backend.to_numpy(ops.relu_backward(arrays(np.array([np.inf, np.inf, 1.0])), saved))
    np.testing.assert_array_equal(dx[:2], [0.0, np.inf])


def test_relu_of_a_large_array(arrays, rng):
    not_compiled(arrays)
    x = rng.standard_normal((40, 50, 60)).astype(np.float32)
    y, saved = ops.relu(arrays(x))
    arrays.check(y, np.where(x > 0, x, 0), y, 0.0)
    arrays.check(ops.relu_backward(arrays(x), saved), np.where(x > 0, x, 0), y, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_writing_to_y_does_not_change_backward(arrays, name, rng):
    not_compiled(arrays)
    op, options, _ = CASES[name]
    x, dy = rng.standard_normal((2, 3)), arrays(rng.standard_normal((2, 3)))
    y, backward = _run(op, arrays(x), options)
    before = backward(dy)
    y -= 5.0
    arrays.check(backward(dy), arrays.backend.to_numpy(before), dy, 0.0)


@pytest.mark.parametrize(
    ("op", "options", "says"),
    [
        ("gelu", {"approximate": "fast"}, ["'fast'", "none", "tanh"]),
        ("gelu", {"approximate": None}, ["None", "none", "tanh"]),
        ("softplus", {"beta": 0.0}, ["beta"]),
        ("clip", {}, ["needs a bound", "low", "high"]),
        ("clip", {"low": "0"}, ["low", "'0'"]),
        ("clip", {"high": float("inf")}, ["high", "inf"]),
        ("clip", {"low": 1.0, "high": 0.5}, ["low=1 ", "high=0.5"]),
        ("hard_sigmoid", {"alpha": None}, ["alpha", "None"]),
        ("hard_sigmoid", {"beta": float("nan")}, ["beta", "nan"]),
        ("leaky_relu", {"negative_slope": "steep"}, ["negative_slope", "'steep'"]),
        ("elu", {"alpha": None}, ["alpha", "None"]),
        ("elu", {"alpha": float("nan")}, ["alpha", "nan"]),
    ],
)
def test_an_option_out_of_range_is_named(op, options, says):
    with pytest.raises(XpcnnError) as caught:
        getattr(ops, op)(np.ones(3), **options)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_of_the_wrong_shape_is_named(op):
    _, backward = _run(op, np.ones((2, 3)), NEEDED.get(op, {}))
    with pytest.raises(XpcnnError, match=r"dy must have shape \(2, 3\).*\(3, 2\)"):
        backward(np.ones((3, 2)))
