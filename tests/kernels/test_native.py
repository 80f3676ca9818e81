"""The kernels in C against the agnostic path in float64, how they are compiled, and that nothing depends on chance."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import ops
from xpcnn.kernels import native
from xpcnn.kernels.native import build, elementwise

COMPILER = shutil.which(os.environ.get("CC", "cc").split()[0])
UNWANTED = os.environ.get("XPCNN_KERNELS") == "numpy"
needs_compiler = pytest.mark.skipif(COMPILER is None or UNWANTED, reason="no C compiler, or XPCNN_KERNELS=numpy")
TOLERANCE = 2e-6  # of the largest value, times the root of the number of terms


@pytest.fixture
def threads():
    yield xc.set_num_threads
    xc.set_num_threads(None)


def close(found, expected, terms):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale * max(1.0, terms) ** 0.5)


def draw_convolution(rng):
    """Options of a convolution that exists, small enough for columns in float64."""
    while True:
        axes = int(rng.choice([1, 2, 2, 2]))
        groups = int(rng.choice([1, 1, 1, 2, 3, 17]))
        kernel, stride, dilation, padding = (
            tuple(int(v) for v in rng.integers(low, high, axes)) for low, high in ((1, 6), (1, 4), (1, 3), (0, 4))
        )
        size = tuple(int(v) for v in rng.integers(1, 40, axes))
        if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
            continue
        each, own = (1, 1) if groups == 17 else (int(v) for v in rng.integers(1, 20, 2))
        options = {"stride": stride, "dilation": dilation, "groups": groups}
        x = rng.standard_normal((int(rng.integers(1, 8)), groups * each, *size))
        weight = rng.standard_normal((groups * own, each, *kernel))
        return axes, x, weight, options | {"padding": padding}


@needs_compiler
def test_the_library_is_there():
    assert native.library() is not None  # else nothing below tests it


@needs_compiler
@pytest.mark.parametrize("count", [1, 2, 3])
def test_convolutions_match_the_agnostic_path_in_float64(rng, threads, count):
    threads(count)
    for _ in range(80):
        axes, x, weight, options = draw_convolution(rng)
        conv, backward = getattr(ops, f"conv{axes}d"), getattr(ops, f"conv{axes}d_backward")
        bias = rng.standard_normal(weight.shape[0])
        expected, kept = conv(x, weight, bias, **options)
        y, saved = conv(*(a.astype(np.float32) for a in (x, weight, bias)), **options)
        close(y, expected, weight[0].size)
        dy = rng.standard_normal(y.shape)
        for found, wanted in zip(backward(dy.astype(np.float32), saved), backward(dy, kept), strict=True):
            close(found, wanted, max(dy.size / dy.shape[1], weight.size))


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "options"),
    [
        ((2, 64, 70, 90), 20, 3, {"padding": 1}),  # bands of rows
        ((2, 64, 71, 90), 20, 3, {"padding": 1, "stride": 2}),
        ((3, 40, 9, 9), 35, 5, {"padding": 2}),  # more kernel elements than a panel has rows
        ((5, 48, 12, 16), 70, 1, {}),  # as it is in memory
        ((1, 3, 1, 1), 5, 1, {}),
        ((4, 6, 3, 50), 7, (1, 7), {"padding": ((0, 1), (6, 0))}),
        ((40, 33, 4, 4), 33, 3, {"padding": 1, "groups": 33}),  # depthwise, channels no multiple of the lanes
        ((2, 20, 30, 17), 20, 5, {"padding": 2, "groups": 20, "stride": 2}),
        ((2, 5, 20, 20), 10, 3, {"groups": 5}),  # two filters a channel
    ],
)
def test_shapes_that_take_another_way(rng, shape, filters, kernel, options):
    x = rng.standard_normal(shape)
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = rng.standard_normal((filters, shape[1] // options.get("groups", 1), *kernel))
    y, saved = ops.conv2d(x.astype(np.float32), weight.astype(np.float32), **options)
    expected, kept = ops.conv2d(x, weight, **options)
    close(y, expected, weight[0].size)
    dy = rng.standard_normal(y.shape)
    found, wanted = ops.conv2d_backward(dy.astype(np.float32), saved), ops.conv2d_backward(dy, kept)
    for a, b in zip(found[:2], wanted[:2], strict=True):
        close(a, b, dy.size / filters)


@needs_compiler
def test_pooled_convolutions_match_the_agnostic_path(rng):
    for _ in range(60):
        kernel, stride, pool, padding = (
            tuple(int(v) for v in rng.integers(a, b, 2)) for a, b in ((1, 6), (1, 3), (1, 4), (0, 3))
        )
        n, c, f, h, w = (int(v) for v in rng.integers([1, 1, 1, 9, 9], [6, 6, 40, 40, 40]))
        if any(
            (m + 2 * p - k) // s + 1 < q for m, p, k, s, q in zip((h, w), padding, kernel, stride, pool, strict=True)
        ):
            continue
        x, weight, bias = (
            rng.standard_normal((n, c, h, w)),
            rng.standard_normal((f, c, *kernel)),
            rng.standard_normal(f),
        )
        options = {"stride": stride, "padding": padding, "pool_size": pool}
        expected, kept = ops.conv2d_relu_max_pool2d(x, weight, bias, **options)
        y, saved = ops.conv2d_relu_max_pool2d(*(a.astype(np.float32) for a in (x, weight, bias)), **options)
        close(y, expected, weight[0].size)
        same = (saved.place == kept.place) & (saved.active == kept.active)
        assert same.mean() > 0.999  # near ties may fall the other way
        dy = rng.standard_normal(y.shape) * same
        found = ops.conv2d_relu_max_pool2d_backward(dy.astype(np.float32), saved)
        for a, b in zip(found, ops.conv2d_relu_max_pool2d_backward(dy, kept), strict=True):
            close(a, b, max(dy.size / f, weight.size))


@needs_compiler
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("shape", [(5, 3, 17), (4, 20, 8, 8), (300, 7), (64, 3, 1, 1), (2, 1, 40, 41)])
def test_batch_norm_matches_the_agnostic_path(rng, activation, shape):
    x = rng.standard_normal(shape) * 3 + 1000 * rng.standard_normal((1, shape[1], *(1,) * (len(shape) - 2)))
    x32 = x.astype(np.float32)
    x = x32.astype(np.float64)
    gamma, beta, mean, var = rng.standard_normal((4, shape[1]))
    arrays = gamma * 2, beta, mean, var**2
    expected, kept, statistics = ops.batch_norm(x, *arrays, train=True, activation=activation)
    y, saved, found = ops.batch_norm(x32, *(a.astype(np.float32) for a in arrays), train=True, activation=activation)
    assert type(saved).__name__ == "WholeSaved"
    np.testing.assert_allclose(y, expected, atol=3e-3)  # of values near 1000, each good to 6e-5
    np.testing.assert_allclose(found, statistics, rtol=1e-5, atol=1e-3)
    flat = np.abs(expected) < 5e-3 if activation else np.zeros(shape, bool)
    flat |= (np.abs(expected - 6) < 5e-3) if activation == "relu6" else False
    dy = rng.standard_normal(shape) * ~flat  # where rounding may decide between slopes
    for a, b in zip(
        ops.batch_norm_backward(dy.astype(np.float32), saved), ops.batch_norm_backward(dy, kept), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-3 * max(1.0, np.abs(b).max()))


@needs_compiler
def test_products_of_matrices(rng):
    from xpcnn.kernels.native import product

    for _ in range(100):
        m, k, n = (int(v) for v in rng.integers(1, [120, 700, 120]))
        a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
        a32, b32 = a.astype(np.float32), b.astype(np.float32)
        for left in (a32, np.asfortranarray(a32), np.repeat(a32, 2, axis=1)[:, ::2]):
            for right in (b32, np.asfortranarray(b32)):
                close(product.matmul(left, right), a32.astype(float) @ b32, k)


@needs_compiler
@pytest.mark.parametrize("size", [1, 7, 20_000, 300_001])
def test_clips_and_hard_swish_match_numpy(rng, size):
    """Of all lengths, at and beyond the bounds; NaN and infinities go where they should."""
    x = np.append(rng.standard_normal(size) * 4, [np.nan, np.inf, -np.inf, -3.0, 3.0, 0.0, 6.0]).astype(np.float32)
    wide = x.astype(float)
    for low, high, factor, shift in ((0, 6, 1, 0), (0, 1, 1 / 6, 0.5), (-np.inf, 2, 1, 0), (-1, np.inf, -0.5, 0.25)):
        found = elementwise.clip(x, low, high, factor, shift)
        np.testing.assert_allclose(found, np.clip(factor * wide + shift, low, high), rtol=1e-6, atol=1e-6)
    with np.errstate(invalid="ignore"):
        expected = wide * np.clip(wide + 3, 0, 6) / 6  # -inf times 0 is NaN, as it is there
    np.testing.assert_allclose(elementwise.hard_swish(x), expected, rtol=1e-6, atol=1e-6)


@needs_compiler
def test_read_only_strided_and_empty_inputs(rng):
    x = rng.standard_normal((4, 6, 20, 20)).astype(np.float32)
    weight = rng.standard_normal((5, 3, 3, 3)).astype(np.float32)
    wide = x[:, ::2, ::-1, 1::2]
    wide.flags.writeable = False
    y, saved = ops.conv2d(wide, weight)
    plain, kept = ops.conv2d(np.ascontiguousarray(wide), weight)
    np.testing.assert_array_equal(y, plain)
    dy = np.broadcast_to(np.float32(1), y.shape)
    for a, b in zip(ops.conv2d_backward(dy, saved), ops.conv2d_backward(np.ones_like(y), kept), strict=True):
        np.testing.assert_array_equal(a, b)
    y, saved = ops.conv2d(x[:0, :3], weight)
    assert y.shape == (0, 5, 18, 18)
    dx, dweight, _ = ops.conv2d_backward(y, saved)
    assert dx.shape == (0, 3, 20, 20)
    assert not dweight.any()


@needs_compiler
def test_nan_and_infinity_go_where_they_should(rng):
    x = rng.standard_normal((2, 1, 12, 12)).astype(np.float32)
    x[1, 0, 5, 5] = np.nan
    weight = np.ones((1, 1, 3, 3), np.float32)
    y, _ = ops.conv2d_relu_max_pool2d(x, weight)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).sum() == 4  # of 25: the pooled windows whose patches hold the pixel
    z, _ = ops.relu(np.full((20_000,), np.nan, np.float32))
    assert np.isnan(z).all()


@needs_compiler
def test_the_same_threads_give_the_same_bits_and_so_do_two_callers_at_once(rng, threads):
    threads(3)
    x = rng.standard_normal((40, 8, 24, 24)).astype(np.float32)
    weight = rng.standard_normal((20, 8, 3, 3)).astype(np.float32)

    def run():
        y, saved = ops.conv2d(x, weight, padding=1)
        return [y, *ops.conv2d_backward(y, saved)[:2]]

    first, found = run(), []
    callers = [threading.Thread(target=lambda: found.extend(run() for _ in range(5))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 20
    for arrays in found:
        for a, b in zip(arrays, first, strict=True):
            np.testing.assert_array_equal(a, b)


PROGRAM = """
import os, numpy as np
from xpcnn import ops
x = np.ones((50, 8, 30, 30), np.float32); w = np.ones((16, 8, 3, 3), np.float32)
y, _ = ops.conv2d(x, w)
child = os.fork()
z, _ = ops.conv2d(x, w)
assert (y == z).all() and (y == 72).all()
if child == 0: os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("well")
"""


def run(program, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_computes(tmp_path):
    done = run(PROGRAM, XPCNN_NUM_THREADS="2")
    assert done.stdout == "well\n", done.stderr


WHICH = "from xpcnn.kernels import native; print('native' if native.library() else 'numpy')"


@pytest.mark.parametrize("choice", ["numpy", "auto", ""])
def test_without_a_compiler_numpy_does_the_work(tmp_path, choice):
    done = run(WHICH, XPCNN_KERNELS=choice, CC="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout == "numpy\n", done.stderr
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_no_compiler(tmp_path):
    done = run(WHICH, CC=shutil.which("false"), XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout == "numpy\n", done.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"XPCNN_KERNELS": "native", "CC": "no-such-compiler"}, "no C compiler was found"),
        ({"XPCNN_KERNELS": "native", "CC": shutil.which("false") or "false"}, "cannot be had"),
        ({"XPCNN_KERNELS": "fast"}, "XPCNN_KERNELS must be one of auto, native, numpy, not 'fast'"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(tmp_path, environment, said):
    done = run(WHICH, XDG_CACHE_HOME=str(tmp_path), **environment)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


@needs_compiler
def test_it_is_compiled_once_also_by_many_at_once(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WHICH],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0] for process in started] == ["native\n"] * 3
    made = list((tmp_path / "xpcnn").iterdir())
    assert len(made) == 1
    before = made[0].stat()
    assert run(WHICH, XDG_CACHE_HOME=str(tmp_path)).stdout == "native\n"
    assert made[0].stat().st_mtime_ns == before.st_mtime_ns


@needs_compiler
def test_a_damaged_library_is_made_anew_or_left_alone(tmp_path):
    run(WHICH, XDG_CACHE_HOME=str(tmp_path))
    (path,) = (tmp_path / "xpcnn").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    assert run(WHICH, XDG_CACHE_HOME=str(tmp_path)).stdout == "native\n"
    (path,) = (tmp_path / "xpcnn").iterdir()
    path.unlink()
    path.mkdir()  # a folder in its place
    assert run(WHICH, XDG_CACHE_HOME=str(tmp_path)).stdout == "native\n"
    (path,) = (tmp_path / "xpcnn").iterdir()
    path.unlink()
    garbage = b"garbage under its own right digest"
    path.with_name(f"{path.stem[: -len(build._digest(b''))]}{build._digest(garbage)}.so").write_bytes(garbage)
    assert run(WHICH, XDG_CACHE_HOME=str(tmp_path)).stdout == "native\n"


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "xpcnn").write_text("a file where the folder should be")
    done = run(WHICH, XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout == "numpy\n", done.stderr


def test_the_sources_belong_to_the_package():
    assert {path.suffix for path in build.SOURCES.iterdir()} >= {".c", ".h", ".py"}


@needs_compiler
def test_cross_entropy_for_labels_matches_the_agnostic_path(rng):
    logits = rng.standard_normal((50, 7)) * 30
    logits[0] = 3e38, -3e38, 0, 0, 0, 0, 0
    logits = logits.astype(np.float32)
    labels = rng.integers(0, 7, 50)
    labels[0] = 1
    for reduction in ("mean", "sum", "none"):
        loss, saved = ops.softmax_cross_entropy(logits[1:], labels[1:], reduction=reduction)
        expected, kept = ops.softmax_cross_entropy(logits[1:].astype(float), labels[1:], reduction=reduction)
        assert type(saved).__name__ == "SlopesSaved"
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        dy = rng.standard_normal(np.shape(expected))
        found = ops.softmax_cross_entropy_backward(saved, np.asarray(dy, np.float32))
        np.testing.assert_allclose(found, ops.softmax_cross_entropy_backward(kept, np.asarray(dy)), atol=1e-6)
    loss, _ = ops.softmax_cross_entropy(logits, labels)
    assert np.isfinite(loss)
    with pytest.raises(xc.XpcnnError, match="labels from 0 to 6"):
        ops.softmax_cross_entropy(logits, labels + 7)


@needs_compiler
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (50, 7), (3, 1000)])
def test_cross_entropy_for_probabilities_matches_the_agnostic_path(rng, rows, classes, smoothing):
    logits = (30 * rng.standard_normal((rows, classes))).astype(np.float32)
    soft = (rng.random((classes, rows)) * (rng.random((classes, rows)) < 0.5)).astype(np.float32).T  # not in C order
    labels = rng.integers(0, classes, rows).astype(np.uint16)
    for targets, reduction in ((t, r) for t in (soft, labels) for r in ("mean", "sum", "none")):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        wide = targets.astype(float) if targets is soft else targets
        expected, kept = ops.softmax_cross_entropy(logits.astype(float), wide, **options)
        loss, saved = ops.softmax_cross_entropy(logits, targets, **options)
        assert (type(saved).__name__, type(kept).__name__) == ("SlopesSaved", "CrossEntropySaved")
        assert loss.dtype == saved.slopes.dtype == np.float32
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        slopes, size = ops.softmax_cross_entropy_backward(kept), 1 + float(soft.sum(axis=1).max())
        np.testing.assert_allclose(ops.softmax_cross_entropy_backward(saved), slopes, atol=1e-7 * size)


@needs_compiler
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adagrad", "adam"])
def test_updates_match_the_agnostic_rules(rng, name):
    make = {
        "sgd": lambda: xc.optim.sgd(0.1),
        "momentum": lambda: xc.optim.sgd(0.1, 0.9),
        "nesterov": lambda: xc.optim.sgd(0.1, 0.9, nesterov=True),
        "adagrad": lambda: xc.optim.adagrad(0.1),
        "adam": lambda: xc.optim.adam(0.1),
    }[name]()
    p, (g1, g2) = rng.standard_normal(5000), rng.standard_normal((2, 5000))
    wide, narrow = {"p": p}, {"p": p.astype(np.float32)}
    states = make.init(wide), make.init(narrow)
    for step, g in enumerate((g1, g2)):
        wide, state = make.update({"p": g}, states[0], wide, step)
        narrow, state32 = make.update({"p": g.astype(np.float32)}, states[1], narrow, step)
        states = state, state32
    assert narrow["p"].dtype == np.float32
    np.testing.assert_allclose(narrow["p"], wide["p"], atol=2e-6)
    for moment, values in state.items():
        np.testing.assert_allclose(state32[moment]["p"], values["p"], atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("pool", [16, 17, 40])
def test_more_places_than_a_byte_counts(rng, pool):
    x, weight, bias = rng.standard_normal((2, 1, 42, 42)), rng.standard_normal((3, 1, 3, 3)), rng.standard_normal(3)
    y, saved = ops.conv2d_relu_max_pool2d(*(a.astype(np.float32) for a in (x, weight, bias)), pool_size=pool)
    expected, kept = ops.conv2d_relu_max_pool2d(x, weight, bias, pool_size=pool)
    close(y, expected, 9)
    found = ops.conv2d_relu_max_pool2d_backward(np.ones_like(y), saved)
    for a, b in zip(found, ops.conv2d_relu_max_pool2d_backward(np.ones_like(expected), kept), strict=True):
        close(a, b, 2000)


@needs_compiler
@pytest.mark.parametrize("beta2", [0.999, 0.99999, 1 - 1e-8])
def test_adam_is_as_exact_as_the_agnostic_rule(rng, beta2):
    optimizer, p = xc.optim.adam(0.01, beta2=beta2), rng.standard_normal(1000)
    wide, narrow = {"p": p}, {"p": p.astype(np.float32)}
    states = [optimizer.init(wide), optimizer.init(narrow)]
    for step in range(20):
        g = rng.standard_normal(1000)
        wide, states[0] = optimizer.update({"p": g}, states[0], wide, step)
        narrow, states[1] = optimizer.update({"p": g.astype(np.float32)}, states[1], narrow, step)
    np.testing.assert_allclose(narrow["p"], wide["p"], atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("shape", [(8, 2, 112, 112), (2, 2, 300, 500), (700, 2, 5, 5)])
def test_batch_norm_adds_up_as_exactly_as_pytorch(rng, shape):
    x = (rng.integers(90, 111, shape) / 255).astype(np.float32)
    y, _, _ = ops.batch_norm(x, None, None, None, None, train=True)
    expected, _, _ = ops.batch_norm(x.astype(float), None, None, None, None, train=True)
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()


@needs_compiler
def test_no_channels_and_planes_too_large_for_depthwise(rng):
    x, weight, bias = np.zeros((2, 0, 5, 5), np.float32), np.ones((3, 0, 3, 3), np.float32), np.float32([1, 2, 3])
    y, saved = ops.conv2d(x, weight, bias)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], (2, 3, 3, 3)))
    np.testing.assert_array_equal(ops.conv2d_backward(np.ones_like(y), saved)[2], [18, 18, 18])
    x, weight = rng.standard_normal((1, 2, 513, 515)), rng.standard_normal((2, 1, 3, 3))
    y, _ = ops.conv2d(x.astype(np.float32), weight.astype(np.float32), groups=2)
    close(y, ops.conv2d(x, weight, groups=2)[0], 9)


@needs_compiler
def test_what_was_saved_is_checked_and_can_be_kept(rng):
    x, weight = rng.standard_normal((2, 4, 30, 30)).astype(np.float32), np.ones((4, 4, 3, 3), np.float32)
    y, saved = ops.conv2d(x, weight)
    with pytest.raises(xc.XpcnnError, match=r"saved\.x"):
        ops.conv2d_backward(y, saved._replace(x=x[..., :2]))
    y, saved = ops.conv2d_relu_max_pool2d(x, weight)
    with pytest.raises(xc.XpcnnError, match=r"saved\.place"):
        ops.conv2d_relu_max_pool2d_backward(y, saved._replace(place=saved.place[..., :1]))
    y, saved, _ = ops.batch_norm(x, None, None, None, None, train=True)
    again = pickle.loads(pickle.dumps(saved))
    np.testing.assert_array_equal(ops.batch_norm_backward(y, again)[0], ops.batch_norm_backward(y, saved)[0])
