"""Generated kernels against NumPy: the same rules run on arrays, and how often what is launched or compiled."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial

import emulator
import numpy as np
import pytest
from array_api_compat import array_namespace
from array_api_compat import numpy as xp

from xpcnn import kernels, ops
from xpcnn.kernels.cuda import fuse, runtime
from xpcnn.ops import activation, elementwise, smooth

needs_compiler = pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler")
pytestmark = needs_compiler
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 3.0, -3.0, 6.0, 1e30, -1e30, 1e-30, 50.0, -50.0]

ACTIVATIONS = {
    "relu": (ops.relu, ops.relu_backward),
    "relu6": (ops.relu6, ops.relu6_backward),
    "clip": (partial(ops.clip, low=-3.0, high=2.5), ops.clip_backward),
    "clip from above": (partial(ops.clip, high=0.5), ops.clip_backward),
    "hard_sigmoid": (partial(ops.hard_sigmoid, alpha=0.25), ops.hard_sigmoid_backward),
    "leaky_relu": (partial(ops.leaky_relu, negative_slope=0.2), ops.leaky_relu_backward),
    "elu": (partial(ops.elu, alpha=0.7), ops.elu_backward),
    "selu": (ops.selu, ops.selu_backward),
    "hard_swish": (ops.hard_swish, ops.hard_swish_backward),
    "sigmoid": (ops.sigmoid, ops.sigmoid_backward),
    "tanh": (ops.tanh, ops.tanh_backward),
    "silu": (ops.silu, ops.silu_backward),
    "softplus": (partial(ops.softplus, beta=2.0, threshold=5.0), ops.softplus_backward),
    "gelu": (ops.gelu, ops.gelu_backward),
    "gelu by tanh": (partial(ops.gelu, approximate="tanh"), ops.gelu_backward),
}
RULES = {  # of (xp, x): every function that symbols have
    **{
        name: lambda xp, x, name=name: getattr(xp, name)(x)
        for name in ("exp", "expm1", "sin", "cos", "sinh", "cosh", "tanh", "abs", "negative", "square", "sign")
    },
    **{name: lambda xp, x, name=name: getattr(xp, name)(x) for name in ("floor", "ceil", "trunc", "round", "positive")},
    **{
        name: lambda xp, x, name=name: getattr(xp, name)(abs(x) + 0.5)
        for name in ("log", "log1p", "log2", "log10", "sqrt", "reciprocal", "tan")
    },
    **{name: lambda xp, x, name=name: getattr(xp, name)(x) for name in ("isnan", "isinf", "isfinite")},
    **{
        name: lambda xp, x, name=name: getattr(xp, name)(x, 0.5 - x)
        for name in ("maximum", "minimum", "add", "subtract", "multiply", "divide", "less", "less_equal", "greater")
    },
    "comparisons": lambda xp, x: xp.where((x == 3.0) ^ (x != x) | (x >= 0) & ~(x <= 6), x, -1.0),
    "logic": lambda xp, x: xp.logical_not(xp.logical_and(x > 0, xp.logical_or(x < 4, xp.logical_xor(x < 7, x > 9)))),
    "clip": lambda xp, x: xp.clip(x, -1.5, 2) + xp.clip(x, None, 0.1) * xp.clip(x, -0.1, None),
    "from the left": lambda xp, x: 1 - (2.0 / (3 + (0.1 * x) ** 2)) - 0.5 * abs(x) ** 0.5,
    "powers": lambda xp, x: abs(x) ** 1.5 + 1.5 ** xp.clip(x, -9.0, 9.0) + x**3 + x**1,
    "astype": lambda xp, x: xp.astype(x > 0, x.dtype) * x + xp.astype(xp.astype(x, xp.bool), x.dtype) + (x > 1) * x,
    "full": lambda xp, x: xp.full((), 0.3, dtype=x.dtype) + x + xp.ones_like(x) * xp.zeros(x.shape, dtype=x.dtype),
    "constants": lambda xp, x: xp.where(xp.isnan(x), xp.pi, x) * xp.asarray(0.7, dtype=x.dtype),
    "shape": lambda xp, x: x * x.shape[0] + x.ndim * x.size,
    "found by the array": lambda xp, x: array_namespace(x).exp(-(x * x)),
    "unused": lambda xp, x: (xp.exp(x), x + 1.0)[1],
}


@pytest.fixture
def cuda(monkeypatch):
    """Let CUDA's kernels compute on NumPy's arrays, and return the names of those that ran."""
    emulator.install(monkeypatch)
    return emulator.launches


def sample(rng, shape, dtype="float32"):
    """Draw numbers of both signs, some of them special."""
    x = rng.standard_normal(shape) * 4
    x.flat[: len(SPECIAL)] = SPECIAL
    return x.astype(bfloat16() if dtype == "bfloat16" else dtype)


def bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_one_launch_each_way(name, dtype, rng, monkeypatch):
    forward, backward = ACTIVATIONS[name]
    x = np.clip(np.nan_to_num(sample(rng, (3, 5, 7, 11), dtype)), -1e30, 1e30)
    dy = rng.standard_normal(x.shape).astype(dtype)
    wide = x.astype(np.float64), dy.astype(np.float64)
    expected_y, saved = forward(wide[0])
    expected_dx = backward(wide[1], saved)
    emulator.install(monkeypatch)
    y, saved = forward(x)
    assert emulator.launches == ["fused"]
    dx = backward(dy, saved)
    assert emulator.launches == ["fused"] * 2
    for found, expected in ((y, expected_y), (dx, expected_dx)):
        assert found.dtype == dtype
        scale = np.maximum(1.0, np.abs(expected))
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=3 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (smooth.logistic, ()), (smooth._gelu, (0.0,)), (smooth._gelu_slope, (1.0,)), (smooth._softplus, (1.0, 20.0)),
        (activation._elu, (1.0, 1.0)), (activation._hard_swish_slope, ()),
    ],
)  # fmt: skip
def test_bfloat16_is_computed_in_float(rule, options, rng, cuda):
    x = sample(rng, (40, 13), "bfloat16")[4:]
    y, _ = elementwise.apply(rule, x, xp, *options)
    assert cuda == ["fused"]
    assert y.dtype == x.dtype
    expected = rule(x.astype(np.float32), xp, *options)
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2**-8, atol=4e-6)  # half a step of eight bits


def test_bfloat16_beside_float32_gives_float32(rng, cuda):
    a, b = sample(rng, (9, 9), "bfloat16"), sample(rng, (9, 9))
    total, own = fuse.elementwise(lambda xp, a, b: (a + b, a * 2.0), [a, b], xp)
    assert cuda == ["fused"]
    assert (total.dtype, own.dtype) == (b.dtype, a.dtype)
    np.testing.assert_array_equal(total, a.astype(np.float32) + b)


def test_functions_are_numpys(dtype, rng, cuda):
    x = sample(rng, (57, 5), dtype)

    def all_of_them(xp, x):
        return tuple(rule(xp, x) for rule in RULES.values())

    results = fuse.elementwise(all_of_them, [x], xp)
    assert cuda == ["fused"]
    with np.errstate(all="ignore"):
        expected = all_of_them(xp, x)
    for name, found, wanted in zip(RULES, results, expected, strict=True):
        assert found.dtype == wanted.dtype, name
        finite = np.abs(x) < 1e3 if name in ("sin", "cos", "tan") else np.ones(x.shape, bool)
        limit = 0.0 if wanted.dtype == np.bool_ else TOLERANCE[dtype]
        found, wanted = found[finite].astype(np.float64), wanted[finite].astype(np.float64)
        np.testing.assert_allclose(found, wanted, rtol=limit, atol=limit, err_msg=name)


def test_python_numbers_are_rounded_to_the_arrays_dtype_first(rng, cuda):
    x = sample(rng, (1000,))[13:]

    def rule(xp, x):
        return ((x + 0.1) * 0.3 - 0.7, x > 0.1)

    for found, expected in zip(
        fuse.elementwise(
            rule,
            [
                x,
            ][:1],
            xp,
        ),
        rule(xp, x),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_another_number_is_the_same_kernel(rng, cuda):
    x = rng.standard_normal(50).astype(np.float32)
    ops.leaky_relu(x, 0.21)
    before = emulator.library.cache_info().misses
    for slope in (0.5, 0.0, 1.5, 3.0):
        y, _ = ops.leaky_relu(x, slope)
        np.testing.assert_allclose(y, np.where(x > 0, x, np.float32(slope) * x), rtol=1e-6)
    assert emulator.library.cache_info().misses == before
    assert len(cuda) == 5


def test_what_is_shared_is_computed_once():
    tape = fuse.Tape([np.dtype("float32")], [False], None)
    (x,) = tape.arrays
    program, _ = fuse.compiled(tape, [tape.functions.exp(x) * 2.0, tape.functions.exp(x) + 1.0])
    assert "\n".join(program.each).count("exp") == 1


CAPTURED = np.ones(4, np.float32)


@pytest.mark.parametrize(
    "rule",
    [
        lambda xp, x: (x if x[0] > 0 else -x,),
        lambda xp, x: (-x if xp.max(x) > 1e9 else x + 1,),
        lambda xp, x: (xp.sum(x) + x,),
        lambda xp, x: (x + CAPTURED,),
        lambda xp, x: (CAPTURED * x,),
        lambda xp, x: (np.float64(0.5) * x,),
        lambda xp, x: (x * np.float32(0.5),),
        lambda xp, x: (xp.astype(x, xp.float64),),
        lambda xp, x: (x // 2.0,),
        lambda xp, x: (xp.where(x > 0, 1.0, 2.0),),
        lambda xp, x: (xp.zeros((), dtype=x.dtype),),
        lambda xp, x: (np.exp(x),),
        lambda xp, x: (x[::-1],),
        lambda xp, x: (xp.full((2,), 1.0, dtype=xp.float32),),
        lambda xp, x: (x * float(x[0]),),
    ],
)
def test_a_rule_that_cannot_be_traced_runs_on_the_arrays(rule, cuda):
    x = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    (found,), (expected,) = fuse.elementwise(rule, [x], xp), rule(xp, x)
    assert not cuda
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_an_error_of_the_rules_own_comes_through(cuda):
    with pytest.raises(ZeroDivisionError):
        fuse.elementwise(lambda xp, x: (x / (1 // 0),), [np.ones(3)], xp)


def test_arrays_that_no_kernel_takes_run_as_they_are(cuda):
    for a, b in [
        (np.ones(3, np.int64), np.ones(3)),
        (np.ones(3, np.float32), np.ones(3)),
    ]:
        found = fuse.add(a, b, xp)
        np.testing.assert_array_equal(found, a + b)
        assert found.dtype == (a + b).dtype
    assert fuse.elementwise(lambda xp, a: (~a,), [np.array([True, False])], xp)[0].tolist() == [False, True]
    assert not cuda


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(
    ("a", "b"), [((2, 1), (3,)), ((2, 3, 5), (2, 3, 1)), ((4, 1, 5), (4, 3, 1)), ((), (2, 3)), ((0, 2), (1, 2))]
)
def test_sums_and_products_of_stretched_arrays_are_one_kernel(a, b, kind, rng, cuda):
    x, y = (rng.standard_normal(shape).astype(kind) for shape in (a, b))
    for made, expected in ((fuse.add(x, y, xp), x + y), (fuse.multiply(x, y, xp), x * y)):
        np.testing.assert_array_equal(made, expected)
        assert made.dtype == expected.dtype
    assert cuda == ["fused", "fused"] * bool(expected.size)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7, 1023, 4099, 300_001])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
def test_every_length_and_offset(size, kind, rng, cuda):
    whole = rng.standard_normal(size + 3).astype(bfloat16() if kind == "bfloat16" else kind)
    for offset in (0, 1, 3):
        x = whole[offset : offset + size]
        y, positive = fuse.elementwise(lambda xp, x: (-x, x > 0), [x], xp)
        np.testing.assert_array_equal(y.astype(np.float64), -x.astype(np.float64))
        np.testing.assert_array_equal(positive, x.astype(np.float64) > 0)
    assert len(cuda) == (3 if size else 0)


def test_scalars_beside_arrays_and_alone(rng, cuda):
    x, s, flag = sample(rng, (6, 7)), np.array(0.3, np.float32), np.array(True)

    def rule(xp, s, x, flag):
        return xp.where(flag, x * (s + 1.0), 0.0), x < s

    for found, expected in zip(fuse.elementwise(rule, [s, x, flag], xp), rule(xp, s, x, flag), strict=True):
        np.testing.assert_array_equal(found, expected)
    (alone,) = fuse.elementwise(lambda xp, s: (xp.exp(s),), [s], xp)
    assert alone.shape == ()
    np.testing.assert_allclose(alone, np.exp(s), rtol=1e-6)
    assert cuda == ["fused"] * 2


def test_memory_in_one_order_is_read_in_it(rng, cuda):
    x = sample(rng, (2, 5, 6, 3)).transpose(0, 3, 1, 2)  # channels last
    other = sample(rng, x.shape)
    for arrays in ([x, x * 2], [x, other], [other.transpose(1, 0, 2, 3).transpose(1, 0, 2, 3), x]):
        y, mask = fuse.elementwise(lambda xp, a, b: (a + b, a > b), arrays, xp)
        np.testing.assert_array_equal(y, arrays[0] + arrays[1])
        np.testing.assert_array_equal(mask, arrays[0] > arrays[1])
        assert y.strides == arrays[0].strides
        assert mask.strides == tuple(step // 4 for step in y.strides)
    gaps = sample(rng, (8, 10))[:, ::2]
    np.testing.assert_array_equal(fuse.add(gaps, gaps, xp), gaps + gaps)
    assert cuda == ["fused"] * 4


def test_the_steps_of_the_seam_are_one_launch_each(rng, cuda):
    k = kernels.of(xp)
    x, mask = sample(rng, (4, 5, 6)), rng.random((4, 5, 6)) < 0.5
    y, active = k.relu(x, xp)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(active, x > 0)
    np.testing.assert_array_equal(k.keep(x, mask, xp), np.where(mask, x, 0))
    np.testing.assert_array_equal(k.keep(x, mask, xp, 1.25), np.where(mask, x * np.float32(1.25), 0))
    np.testing.assert_array_equal(k.add(x, y, xp), x + y)
    assert cuda == ["fused"] * 4
    np.testing.assert_array_equal(k.keep(x, mask[:, :1, :1], xp), np.where(mask[:, :1, :1], x, 0))


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 3), 1), ((3, 70), 0), ((2, 3, 5, 7), 1), ((4, 1, 8), -1), ((0, 3), 1)]
)
def test_a_bias_is_added_in_place(shape, axis, kind, rng, cuda):
    y = sample(rng, (120,), kind)[13:13].reshape(0, 3) if 0 in shape else rng.standard_normal(shape)
    y = y.astype(bfloat16() if kind == "bfloat16" else kind)
    for bias_dtype in {y.dtype, np.dtype(np.float32) if kind == "bfloat16" else y.dtype}:
        bias, given = rng.standard_normal(shape[axis]).astype(bias_dtype), y.copy()
        found = kernels.of(xp).add_bias(given, bias, axis, xp)
        assert found is given
        along = [1] * len(shape)
        along[axis] = -1
        wide = np.float64 if kind == "float64" else np.float32
        expected = y.astype(wide) + bias.astype(wide).reshape(along)
        np.testing.assert_array_equal(found.astype(wide), expected.astype(y.dtype).astype(wide))
    assert set(cuda) == ({"add_bias"} if y.size else set())


def test_a_bias_is_added_in_any_order_of_memory(rng, cuda):
    bias = rng.standard_normal(3)
    last = rng.standard_normal((2, 5, 6, 3)).transpose(0, 3, 1, 2)
    gaps = rng.standard_normal((2, 3, 5, 12))[..., ::2]
    for y in (last, gaps, rng.standard_normal((2, 3, 5, 6))[0:1, :, 1:, :]):
        expected = y + bias[:, None, None]
        found = kernels.of(xp).add_bias(y, bias, 1, xp)
        np.testing.assert_array_equal(found, expected)
    assert cuda == ["add_bias"]


def test_what_is_launched_can_be_recorded(rng, cuda):
    x, y, bias = sample(rng, (4, 6)), sample(rng, (4, 6)), rng.standard_normal(6).astype(np.float32)
    results = []

    def work():
        total = fuse.add(x, y, xp)
        results.append(kernels.of(xp).add_bias(ops.silu(total)[0], bias, 1, xp))

    replay = emulator.Recorder().record(work, lambda: None)
    assert not cuda
    x[...] = y[...] = 1.0
    replay()
    np.testing.assert_allclose(results[0], 2 / (1 + np.exp(-2.0)) + np.broadcast_to(bias, (4, 6)), rtol=1e-6)


def test_nvcc_compiles_what_is_generated(rng, cuda, tmp_path, monkeypatch):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    sources, launch = {}, runtime.launch

    def noting(source, name, *arguments, **options):
        sources[source] = name
        launch(source, name, *arguments, **options)

    monkeypatch.setattr(runtime, "launch", noting)
    x = rng.standard_normal((3, 9)).astype(np.float32)
    elementwise.apply(smooth._gelu_slope, x, xp, 0.0)
    fuse.relu(x.astype(np.float64), xp)
    fuse.keep(x.astype(bfloat16()), x > 0, xp, 0.3)
    fuse.elementwise(
        lambda xp, x, s: (*(rule(xp, x) for rule in RULES.values()), x * s), [x, np.array(0.3, np.float32)], xp
    )
    assert len(sources) == 4
    for number, source in enumerate(sources):
        (tmp_path / f"{number}.cu").write_text(source, encoding="utf-8")
    options = ["-arch=sm_90", "-std=c++17", "-cubin", "-Werror=all-warnings"]
    for number in range(len(sources)):
        done = subprocess.run([nvcc, *options, f"{number}.cu"], cwd=tmp_path, capture_output=True, text=True)
        assert not done.returncode, done.stderr
