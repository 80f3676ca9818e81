"""`verify` tries every option of every op, and notices what is wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from xpcnn import ops
from xpcnn.backend import resolve_backend
from xpcnn.cli.verify import CASES
from xpcnn.verify import OPS, certificate, measure
from xpcnn.verify.check import Check
from xpcnn.verify.definitions import DEFINITIONS
from xpcnn.verify.expected import expect
from xpcnn.verify.report import nth_case

CPU = resolve_backend("cpu")


def test_every_op_is_there():
    pairs = {name for name in ops.__all__ if f"{name}_backward" in ops.__all__}
    assert set(OPS) == pairs == set(DEFINITIONS)


def option_kinds(case):
    """Yield what a case tries, coarsely."""
    for name, value in {**case.options, **case.backward}.items():
        kind = type(value).__name__
        if isinstance(value, tuple):
            kind += f" of {type(value[0]).__name__}"
        yield name, value if isinstance(value, (bool, str)) or value is None else kind
    for name, array in case.arrays.items():
        yield name, None if array is None else "array"
        if array is not None:
            yield "examples", min(array.shape[0], 4) if array.ndim else "0-d"
    yield "strided", case.strided


def seen(op, cases=CASES):
    return {kind for number in range(cases) for kind in option_kinds(nth_case(op, number, seed=0))}


@pytest.mark.parametrize("op", ["conv1d", "conv2d", "conv3d"])
def test_the_options_of_a_convolution(op):
    wanted = {("stride", "int"), ("dilation", "int"), ("groups", "int"), ("bias", None), ("bias", "array")}
    wanted |= {("padding", kind) for kind in ("same", "valid", "int", "tuple of int", "tuple of tuple")}
    wanted |= {("mode", "convolution"), ("mode", "cross-correlation"), ("center", "tuple of int"), ("need_dx", False)}
    wanted |= {("examples", 0), ("examples", 1), ("examples", 4), ("strided", True), ("strided", False)}
    if op != "conv1d":
        wanted |= {("stride", "tuple of int"), ("dilation", "tuple of int")}
    assert wanted <= seen(op)


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d", "conv_transpose2d"])
def test_the_options_of_windows(op):
    wanted = {("padding", kind) for kind in ("same", "valid", "int", "tuple of int", "tuple of tuple")}
    if op == "conv_transpose2d":
        wanted |= {("output_padding", "tuple of int"), ("groups", "int"), ("stride", "tuple of int")}
    else:
        wanted |= {("ceil_mode", True), ("ceil_mode", False), ("center", "tuple of int"), ("mode", "convolution")}
    if op == "avg_pool2d":
        wanted |= {("count_include_pad", True), ("count_include_pad", False)}
    assert wanted <= seen(op)


def test_the_options_of_a_cross_entropy():
    wanted = {("reduction", kind) for kind in ("mean", "sum", "none")} | {("targets", "array"), ("targets", "ndarray")}
    wanted |= {("class_weights", None), ("class_weights", "array"), ("ignore_index", "int"), ("dy", None)}
    assert wanted <= seen("softmax_cross_entropy")


def test_the_ways_of_a_batch_norm():
    wanted = {("train", True), ("train", False), ("gamma", None), ("beta", None), ("running_mean", None)}
    assert wanted <= seen("batch_norm")


def test_cases_depend_on_the_seed_and_their_number_only():
    one, same, other = (nth_case("conv2d", 3, seed) for seed in (0, 0, 1))
    assert str(one) == str(same)
    np.testing.assert_array_equal(one.arrays["x"], same.arrays["x"])
    assert one.seed != other.seed


def test_values_are_those_of_float32_too():
    for op in OPS:
        for array in nth_case(op, 0, seed=5).arrays.values():
            if array is not None:
                np.testing.assert_array_equal(array, array.astype(np.float32))


def test_the_derivative_is_the_definitions_own():
    """Known by hand: the derivative of the squared error is 2·(y - t)."""
    case = nth_case("mean_squared_error", 0, seed=0)
    y, t = case.arrays["y"], case.arrays["t"]
    expected = expect(case)
    slope = 2 * (y - t) * expected.directions["y"]
    if case.options.get("reduction", "mean") == "none":
        by_hand = (slope * expected.dy).sum()
    else:
        by_hand = slope.sum() * expected.dy / (y.size if case.options.get("reduction", "mean") == "mean" else 1)
    assert math.isclose(expected.slopes["y"], float(by_hand), rel_tol=1e-12)


real = {name: getattr(ops, name) for name in ops.__all__}


def scaled(name, factor, which=0):
    """Return a function with one of its results a little off."""

    def wrong(*args, **options):
        found = real[name](*args, **options)
        if not isinstance(found, tuple):
            return found * factor
        return tuple(r * factor if n == which and r is not None else r for n, r in enumerate(found))

    return wrong


def in_float32_only(name, factor):
    def wrong(x, *args, **options):
        y, saved = real[name](x, *args, **options)
        return (y * x.dtype.type(factor) if x.dtype == np.float32 else y), saved

    return wrong


def last_of_ties(x):
    """Take the last of equal maxima: the first of the image turned round."""
    _, turned = real["global_max_pool2d"](x[:, :, ::-1, ::-1])
    y, saved = real["global_max_pool2d"](x)
    return y, saved._replace(indices=x.shape[2] * x.shape[3] - 1 - turned.indices)


def writes_to_x(x, **options):
    x *= 1
    return real["relu"](x, **options)


class Restless:
    calls = 0

    def __call__(self, *args, **options):
        self.calls += 1
        y, saved = real["silu"](*args, **options)
        return y * y.dtype.type(1 + self.calls * 4e-16 if y.dtype == np.float64 else 1), saved


def widened(x, **options):
    y, saved = real["sigmoid"](x, **options)
    return y.astype(np.float64), saved


def keeps_axes(x):
    y, saved = real["global_avg_pool2d"](x)
    return y[..., None, None], saved


def biased_variance(x, gamma, beta, running_mean, running_var, **options):
    y, saved, (mean, var) = real["batch_norm"](x, gamma, beta, running_mean, running_var, **options)
    return y, saved, (mean, None if var is None else var * 0.99)


def always_dx(dy, saved, *, need_dx=True):
    return real["affine_backward"](dy, saved)


def broken(*args, **options):
    raise RuntimeError("no kernel image is available")


WRONG = {
    "value": ("conv2d", scaled("conv2d", 1.001), "y is off by"),
    "float32 only": ("tanh", in_float32_only("tanh", 1.001), "y is off by"),
    "gradient": ("conv2d_backward", scaled("conv2d_backward", 1.001, which=2), "the gradient of bias is off by"),
    "sign": ("softmax_cross_entropy_backward", scaled("softmax_cross_entropy_backward", -1), "gradient of logits"),
    "kink": ("relu_backward", lambda dy, saved: dy * (saved.active | (np.abs(dy) > 1)), "the gradient of x is off by"),
    "ties": ("global_max_pool2d", last_of_ties, "result 1 is off by inf; the gradient of x is off by"),
    "nan": ("gelu", in_float32_only("gelu", math.nan), "y is off by inf"),
    "shape": ("global_avg_pool2d", keeps_axes, "y has the shape"),
    "dtype": ("sigmoid", widened, "y has the dtype float64, not float32"),
    "statistics": ("batch_norm", biased_variance, "result 2 is off by"),
    "input": ("relu", writes_to_x, "read-only"),
    "bits": ("silu", Restless(), "the same call made other bits"),
    "unwanted": ("affine_backward", always_dx, "the gradient of x is there, but should be None"),
    "error": ("dropout", broken, "RuntimeError: no kernel image is available"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_noticed(what, monkeypatch):
    name, wrong, says = WRONG[what]
    monkeypatch.setattr(ops, name, wrong)
    op = name.removesuffix("_backward")
    rows = measure(CPU, op, 100, seed=0)
    assert any(row.failed for row in rows)
    assert any(says in row.first for row in rows), [row.first for row in rows]
    result = certificate(CPU, rows, 0, 1.0)
    assert not result["ok"]
    json.dumps(result, allow_nan=False)


def test_a_changed_array_is_noticed(monkeypatch):
    """NumPy's arrays are protected while they are checked; elsewhere a change shows afterwards."""
    pytest.importorskip("torch")

    def doubles_x(x):
        result = real["relu"](x)
        x *= 2
        return result

    monkeypatch.setattr(ops, "relu", doubles_x)
    case = nth_case("relu", 0, seed=0)
    assert "x was changed" in Check(case, expect(case), resolve_backend("torch"), "float32").faults
