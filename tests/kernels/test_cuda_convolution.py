"""CUDA's convolutions in what the ops' tests do not reach: bfloat16, several blocks, recording, odd sizes."""

from __future__ import annotations

from itertools import product
from math import prod

import emulator
import numpy as np
import oracles
import pytest

from xpcnn import kernels
from xpcnn.kernels.cuda import convolution, pooled, runtime, windows
from xpcnn.kernels.window import Window
from xpcnn.ops.conv_pool import pays
from xpcnn.ops.half import is_half
from xpcnn.ops.window import conv_window

CASES = {  # images, filters, groups, and options
    "1d": ((3, 4, 17), (5, 4, 3), 1, {"padding": 1, "stride": 2}),
    "2d": ((2, 3, 12, 11), (4, 3, 3, 2), 1, {"padding": ((1, 0), (2, 1)), "dilation": (2, 1)}),
    "few-pixels": ((5, 3, 6, 6), (4, 3, 3, 3), 1, {"stride": 2, "dilation": 2, "padding": 2}),
    "3d": ((2, 2, 5, 6, 7), (3, 2, 2, 3, 2), 1, {"stride": (1, 2, 1), "padding": 1}),
    "pointwise": ((3, 6, 9, 8), (5, 6, 1, 1), 1, {}),
    "pointwise-strided": ((3, 6, 9, 8), (5, 6, 1, 1), 1, {"stride": 3}),
    "grouped": ((2, 6, 7, 8), (4, 3, 3, 3), 2, {"padding": 1, "stride": 2}),
    "depthwise": ((3, 4, 9, 7), (8, 1, 3, 2), 4, {"dilation": 2, "padding": (2, 0)}),
    "depthwise-3d": ((2, 3, 4, 5, 6), (3, 1, 2, 2, 3), 3, {"padding": 1}),
}

POOLED = {  # images, filters, options, pooling window
    "five": ((4, 1, 14, 15), (6, 1, 5, 5), {}, (2, 2)),
    "two-tiles": ((2, 5, 12, 11), (7, 5, 7, 7), {"padding": 2}, (2, 2)),
    "large": ((2, 1, 20, 19), (3, 1, 16, 13), {"padding": 1}, (1, 2)),
    "strided": ((2, 3, 13, 14), (4, 3, 2, 3), {"stride": 2, "padding": ((1, 0), (2, 2))}, (3, 2)),
    "skipping": ((1, 7, 9, 9), (2, 7, 1, 2), {"stride": 3}, (1, 1)),
    "many-places": ((2, 2, 11, 14), (3, 2, 3, 2), {}, (4, 4)),
}


def window(x, w, options):
    return conv_window(x[2:], w[2:], **options)


def gradients(dy, x, w, win, groups):
    """Return (dx, dweight, dbias) from the definition, one kernel element at a time."""
    ends = [max(n, e - b) for n, e, b in zip(win.size, win.extent, win.before, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *((b, e - n) for b, e, n in zip(win.before, ends, win.size, strict=True))])
    dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
    each, own = x.shape[1] // groups, w.shape[0] // groups
    for tap, piece in zip(win.offsets, win.slices, strict=True):
        for g in range(groups):
            c, f = slice(g * each, (g + 1) * each), slice(g * own, (g + 1) * own)
            seen = padded[(slice(None), c, *piece)]
            flat = (a.reshape(*a.shape[:2], prod(win.out)) for a in (dy[:, f], seen))
            dw[(f, slice(None), *tap)] = np.einsum("nfo,nco->fc", *flat)
            dpadded[(slice(None), c, *piece)] += np.einsum("nf...,fc->nc...", dy[:, f], w[(f, slice(None), *tap)])
    inside = tuple(slice(b, b + n) for b, n in zip(win.before, win.size, strict=True))
    return dpadded[(..., *inside)], dw, dy.sum(axis=(0, *range(2, dy.ndim)))


def convolved(x, w, b, win, groups):
    """Return y from the definition; the padding after the image is what the windows need."""
    after = [e - n - p for e, n, p in zip(win.extent, win.size, win.before, strict=True)]
    cut = tuple(slice(0, n + min(a, 0)) for n, a in zip(win.size, after, strict=True))
    pairs = [(p, max(a, 0)) for p, a in zip(win.before, after, strict=True)]
    return oracles.conv(x[(..., *cut)], w, b, win.stride, pairs, win.dilation, groups)


def sample(rng, case, dtype):
    """Return x, w, b and dy of a dtype, the window, and the number of groups."""
    x, w, groups, options = CASES[case]
    win = window(x, w, options)
    shapes = x, w, w[:1], (x[0], w[0], *win.out)
    return *(rng.standard_normal(shape).astype(dtype) for shape in shapes), win, groups


def on_device(graphs, *hosts):
    """Return NumPy arrays' copies; no backend takes bfloat16 ones from there."""
    cast = kernels.of(graphs.xp).cast
    return [cast([graphs(a.astype(np.float32))], a.dtype, graphs.xp)[0] if is_half(a) else graphs(a) for a in hosts]


def on_host(graphs, arrays):
    """Return NumPy arrays with the values of the device's."""
    cast, kinds = kernels.of(graphs.xp).cast, [None if a is None else a.dtype for a in arrays]
    arrays = [cast([a], np.dtype(np.float32), graphs.xp)[0] if is_half(a) else a for a in arrays]
    pairs = zip(arrays, kinds, strict=True)
    return [None if a is None else graphs.backend.to_numpy(a).astype(kind) for a, kind in pairs]


def run(graphs, x, w, b, dy, win, groups, need_dx=True):
    """Return y and the gradients as NumPy arrays."""
    x, w, b, dy = on_device(graphs, x, w, b, dy)
    results = convolution.forward(x, w, b, win, groups), *convolution.backward(dy, x, w, win, groups, need_dx)
    return on_host(graphs, results)


@pytest.mark.parametrize("counted_in", ["int", "count"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_definition(graphs, monkeypatch, case, counted_in, rng):
    monkeypatch.setattr(runtime, "index", lambda *arrays: counted_in)
    x, w, b, dy, win, groups = sample(rng, case, np.float64)
    expected = convolved(x, w, b, win, groups), *gradients(dy, x, w, win, groups)
    for found, value in zip(run(graphs, x, w, b, dy, win, groups), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_rounded_where_it_is_stored_alone(graphs, monkeypatch, case, blocks, rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, w, b, dy, win, groups = sample(rng, case, bfloat16)
    in_blocks(monkeypatch, x, win, -(-x.shape[0] // blocks))
    exact = [a.astype(np.float64) for a in (x, w, b, dy)]
    sizes = [np.abs(a) for a in exact]
    expected, bounds = ((convolved(*a[:3], win, groups), *gradients(a[3], *a[:2], win, groups)) for a in (exact, sizes))
    for found, value, bound in zip(run(graphs, x, w, b, dy, win, groups), expected, bounds, strict=True):
        assert found.dtype == bfloat16
        assert (np.abs(found.astype(np.float64) - value) <= 1.01 * 2**-7 * bound).all()  # terms and sums are rounded


def in_blocks(monkeypatch, x, win, images):
    """Let a block have so many images."""
    monkeypatch.setattr(convolution, "BLOCK_BYTES", images * x.shape[1] * win.taps * prod(win.out) * x.dtype.itemsize)


@pytest.mark.parametrize("case", ["1d", "2d", "few-pixels", "pointwise"])
def test_blocks_of_images_add_up(graphs, monkeypatch, case, dtype, rng):
    x, w, b, dy, win, groups = sample(rng, case, dtype)
    whole = run(graphs, x, w, b, dy, win, groups)
    in_blocks(monkeypatch, x, win, 1)
    emulator.launches.clear()
    cut = run(graphs, x, w, b, dy, win, groups)
    if graphs.id == "numpy-as-cuda":
        assert emulator.launches.count("by_filter") == x.shape[0]
    for found, value in zip(cut, whole, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-4 if dtype == "float32" else 1e-12)


def test_images_that_are_their_columns_are_not_copied(graphs, rng):
    if graphs.id != "numpy-as-cuda":
        pytest.skip("launches are counted by the emulator")
    x, w, b, _, win, _ = sample(rng, "pointwise", np.float32)
    emulator.launches.clear()
    convolution.forward(x, w, b, win, 1)
    assert emulator.launches == ["finish"]
    convolution.forward(x, w, None, win, 1)
    assert emulator.launches == ["finish"]


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_recorded_work_gives_the_same_bits(graphs, monkeypatch, case, blocks, rng):
    x, w, b, dy, win, groups = sample(rng, case, np.float32)
    in_blocks(monkeypatch, x, win, -(-x.shape[0] // blocks))

    def work(x, w, b, dy):
        return convolution.forward(x, w, b, win, groups), *convolution.backward(dy, x, w, win, groups, True)

    check_recorded(graphs, work, [x, w, b, dy], rng)


def check_recorded(graphs, work, hosts, rng):
    """Record work on some inputs, replay it on others, and compare with running it on those."""
    given, made = [graphs(a.copy()) for a in hosts], []
    with runtime.Recorder() as recorder:
        replay = recorder.record(lambda: made.extend(work(*given)), lambda: work(*given))
        for _ in range(2):
            others = [rng.standard_normal(a.shape).astype(a.dtype) for a in hosts]
            for array, other in zip(given, others, strict=True):
                array[...] = graphs(other)
            replay()
            found = [graphs.backend.to_numpy(a).copy() for a in made]
            for a, b in zip(found, work(*map(graphs, others)), strict=True):
                np.testing.assert_array_equal(a, graphs.backend.to_numpy(b))


@pytest.mark.parametrize("case", CASES)
def test_no_images(graphs, case, rng):
    x, w, b, dy, win, groups = sample(rng, case, np.float64)
    y, dx, dw, db = run(graphs, x[:0], w, b, dy[:0], win, groups)
    assert y.shape == dy[:0].shape
    assert dx.shape == x[:0].shape
    assert dw.shape == w.shape
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize("groups", [1, 2])
def test_no_windows(graphs, groups):
    win = Window((4, 3), (3, 3), (1, 1), (1, 1), (0, 0), (2, 0))
    x, w, dy = np.ones((2, 4, 4, 3)), np.ones((2, 4 // groups, 3, 3)), np.ones((2, 2, 2, 0))
    y, *grads = run(graphs, x, w, np.ones(2), dy, win, groups)
    assert y.shape == dy.shape
    for found, like in zip(grads, (x, w, np.ones(2)), strict=True):
        np.testing.assert_array_equal(found, np.zeros_like(like))


def test_without_dx_and_without_bias(graphs, rng):
    for case in ("2d", "depthwise"):
        x, w, b, dy, win, groups = sample(rng, case, np.float64)
        assert run(graphs, x, w, b, dy, win, groups, need_dx=False)[1] is None
        y = convolution.forward(graphs(x), graphs(w), None, win, groups)
        expected = convolved(x, w, None, win, groups)
        np.testing.assert_allclose(graphs.backend.to_numpy(y), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["1d", "2d", "few-pixels", "3d"])
def test_columns_by_image_are_the_same_columns(graphs, case, rng):
    x, w, options = (CASES[case][i] for i in (0, 1, 3))
    win = window(x, w, options)
    flat, by_image = (
        graphs.backend.to_numpy(windows.im2col(graphs(images), win, by_image=kind))
        for images in [rng.standard_normal(x)]
        for kind in (False, True)
    )
    split = flat.reshape(flat.shape[0], x[0], -1)
    np.testing.assert_array_equal(by_image, np.moveaxis(split, 1, 0))
    found = []
    for cols, kind in ((flat, False), (by_image, True)):
        dx = runtime.empty(x, np.dtype(np.float64))
        windows.col2im(graphs(cols), dx, win, by_image=kind)
        found.append(graphs.backend.to_numpy(dx))
    np.testing.assert_array_equal(*found)


def pooled_sample(rng, case, dtype):
    x, w, options, pool = POOLED[case]
    win = window(x, w, options)
    pooling = conv_window(win.out, pool, stride=pool)
    kernel = tuple(k + (p - 1) * s for k, p, s in zip(win.kernel, pool, win.stride, strict=True))
    stride = tuple(p * s for p, s in zip(pool, win.stride, strict=True))
    patch = Window(win.size, kernel, stride, win.dilation, win.before, pooling.out)
    shapes = x, w, w[:1], (x[0], w[0], *pooling.out)
    return *(rng.standard_normal(shape).astype(dtype) for shape in shapes), win, patch, pool


def pooled_definition(x, w, b, dy, win, pool):
    """Return y, active, place and the gradients by the three steps."""
    z = convolved(x, w, None, win, 1)
    y, place = np.zeros(dy.shape), np.zeros(dy.shape, np.uint8)
    dz = np.zeros_like(z)
    for at in product(*map(range, dy.shape)):
        *which, p, q = at
        corner = p * pool[0], q * pool[1]
        values = z[(*which, slice(corner[0], corner[0] + pool[0]), slice(corner[1], corner[1] + pool[1]))]
        place[at] = values.argmax()
        y[at] = max(values.max() + b[at[1]], 0)
        u, v = divmod(int(place[at]), pool[1])
        dz[(*which, corner[0] + u, corner[1] + v)] = dy[at] * (y[at] > 0)
    return y, y > 0, place, *gradients(dz, x, w, win, 1)


def run_pooled(graphs, x, w, b, dy, win, patch, pool):
    x, w, b, dy = on_device(graphs, x, w, b, dy)
    y, active, place = pooled.forward(x, w, b, win, patch, pool)
    return on_host(graphs, [y, active, place, *pooled.backward(dy, active, place, x, w, win, pool, True)])


@pytest.mark.parametrize("enough", [1, 1 << 40])
@pytest.mark.parametrize("case", POOLED)
def test_pooled_is_the_definition(graphs, monkeypatch, case, enough, rng):
    monkeypatch.setattr(pooled, "ENOUGH_THREADS", enough)  # how many filters a thread has depends on it
    x, w, b, dy, win, patch, pool = pooled_sample(rng, case, np.float64)
    assert pooled.fits(w, pool)
    expected = pooled_definition(x, w, b, dy, win, pool)
    for found, value in zip(run_pooled(graphs, x, w, b, dy, win, patch, pool), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["five", "strided"])
def test_pooled_bfloat16_is_rounded_where_it_is_stored_alone(graphs, case, rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, w, b, dy, win, patch, pool = pooled_sample(rng, case, bfloat16)
    expected = pooled_definition(*(a.astype(np.float64) for a in (x, w, b, dy)), win, pool)
    results = run_pooled(graphs, x, w, b, dy, win, patch, pool)
    np.testing.assert_array_equal(results[2], expected[2])
    for found, value in zip(results, expected, strict=True):
        assert found.dtype == (bfloat16 if value.dtype == np.float64 else value.dtype)
        limit = 2**-8 * np.abs(value.astype(np.float64)) + 1e-5  # one rounding; sums are of float32
        assert (np.abs(found.astype(np.float64) - value.astype(np.float64)) <= limit).all()


def test_pooled_work_is_recorded(graphs, rng):
    x, w, b, dy, win, patch, pool = pooled_sample(rng, "five", np.float32)

    def work(x, w, b, dy):
        y, active, place = pooled.forward(x, w, b, win, patch, pool)
        return y, active, place, *pooled.backward(dy, active, place, x, w, win, pool, True)

    check_recorded(graphs, work, [x, w, b, dy], rng)


def test_pooled_nan_and_infinity_go_where_they_should(graphs, rng):
    x, w, b, dy, win, patch, pool = pooled_sample(rng, "five", np.float32)
    x[1, 0, 5, 5] = np.nan
    y, active, *_ = run_pooled(graphs, x, w, b, dy, win, patch, pool)
    seen = np.zeros(dy.shape[2:], bool)
    for p, q in product(*map(range, seen.shape)):
        seen[p, q] = 2 * p <= 5 < 2 * p + 6 and 2 * q <= 5 < 2 * q + 6
    assert (np.isnan(y[1]) == seen).all()
    assert not np.isnan(y[[0, 2, 3]]).any()
    assert not active[np.isnan(y)].any()
    x[1, 0, 5, 5] = np.inf
    y, active, _, dx, *_ = run_pooled(graphs, x, np.abs(w), b, dy, win, patch, pool)
    assert np.isposinf(y[1][:, seen]).all()
    assert active[1][:, seen].all()
    assert np.isfinite(dx).all()


def test_pooled_no_images(graphs, rng):
    x, w, b, dy, win, patch, pool = pooled_sample(rng, "five", np.float32)
    y, active, place, dx, dw, db = run_pooled(graphs, x[:0], w, b, dy[:0], win, patch, pool)
    assert y.shape == active.shape == place.shape == dy[:0].shape
    assert dx.shape == x[:0].shape
    assert not dw.any()
    assert not db.any()


def test_pooled_is_for_small_filters(graphs):
    def answer(channels, kernel, pool):
        return pays(graphs(np.zeros((1, channels, 20, 20))), graphs(np.zeros((4, channels, *kernel))), pool)

    assert kernels.of(graphs.xp).engine("pooled", graphs(np.zeros(1))) is pooled
    assert answer(1, (5, 5), 2)
    assert answer(10, (5, 5), (2, 2))
    assert not answer(11, (5, 5), 2)
    assert not answer(1, (17, 1), 2)
    assert not answer(1, (3, 3), 5)
