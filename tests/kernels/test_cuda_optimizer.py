"""All parameters' updates in one launch: against NumPy's updates one by one, in place, and by a table on the device."""

from __future__ import annotations

import shutil
import subprocess

import emulator
import numpy as np
import pytest

from xpcnn import optim
from xpcnn.kernels.cuda import optimizer as engine
from xpcnn.kernels.cuda.trace import UntraceableError

pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler")
MAKERS = {
    "sgd": lambda: optim.sgd(lambda step: 0.1 / (step + 1)),
    "momentum": lambda: optim.sgd(lambda step: 0.1 / (step + 1), 0.9),
    "nesterov": lambda: optim.sgd(0.1, 0.9, nesterov=True),
    "adagrad": lambda: optim.adagrad(0.1),
    "adam": lambda: optim.adam(lambda step: 0.01 / (step + 1)),
    "rmsprop": lambda: optim.rmsprop(lambda step: 0.01 / (step + 1), momentum=0.9),
    "sgd decayed": lambda: optim.sgd(0.1, weight_decay=0.3),
    "momentum decayed": lambda: optim.sgd(0.1, 0.9, weight_decay=0.3),
    "nesterov decayed": lambda: optim.sgd(0.1, 0.9, nesterov=True, weight_decay=0.3),
    "rmsprop decayed": lambda: optim.rmsprop(0.01, weight_decay=0.3),
    "adamw": lambda: optim.adamw(lambda step: 0.01 / (step + 1), weight_decay=0.3),
}
SHAPES = {"w": (33, 7, 3), "b": (33,), "one": (), "none": (0, 4), "long": (5000,), "exact": (2, 1024), "last": (1,)}


@pytest.fixture
def cuda(monkeypatch):
    """Let CUDA's kernels compute on NumPy's arrays, and return the names of those that ran."""
    emulator.install(monkeypatch)
    return emulator.launches


def draw(rng, dtype="float32", shapes=SHAPES):
    return {path: np.asarray(rng.standard_normal(shape), dtype) for path, shape in shapes.items()}


def listed(params, state):
    """Return what the engine takes: a list of parameters and one list for each moment."""
    return [list(params.values()), [list(arrays.values()) for arrays in state.values()]]


def equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", MAKERS)
def test_updates_are_numpys(name, dtype, rng, monkeypatch):
    optimizer = MAKERS[name]()
    params, grads = draw(rng, dtype), [draw(rng, dtype) for _ in range(3)]
    expected, ours = [(params, optimizer.init(params))] * 2
    for step, grad in enumerate(grads):
        expected = optimizer.update(grad, expected[1], expected[0], step)
    emulator.install(monkeypatch)
    for step, grad in enumerate(grads):
        ours = optimizer.update(grad, ours[1], ours[0], step)
    assert emulator.launches == ["update"] * 3 * len(optimizer.groups(params))
    limit = 3e-6 if dtype == "float32" else 1e-14
    assert list(ours[0]) == list(params)
    assert list(ours[1]) == list(expected[1])
    for found, wanted in zip([ours[0], *ours[1].values()], [expected[0], *expected[1].values()], strict=True):
        for path in params:
            assert found[path].dtype == dtype
            np.testing.assert_allclose(found[path], wanted[path], rtol=limit, atol=limit)


@pytest.mark.parametrize("name", MAKERS)
def test_in_place_and_by_a_table_the_bits_are_the_same(name, rng, cuda):
    optimizer = MAKERS[name]()
    params, grads = draw(rng), draw(rng)
    state = {
        moment: {path: np.asarray(abs(array)) for path, array in draw(rng).items()} for moment in optimizer.init(params)
    }
    table = np.array([optimizer.numbers(step) for step in range(5)])
    counter = np.zeros(1, np.int64)
    own_params = {path: p.copy() for path, p in params.items()}
    own_state = {moment: {path: m.copy() for path, m in arrays.items()} for moment, arrays in state.items()}
    values, moments = listed(own_params, own_state)

    def work():
        for rule, paths in optimizer.groups(own_params):
            where = [own_params[path] for path in paths], [[m[path] for path in paths] for m in own_state.values()]
            slopes = [grads[path] for path in paths]
            engine.update_all(rule, table, where[0], slopes, where[1], step=counter, into=where)

    replay = emulator.Recorder().record(work, lambda: None)
    equal(values, list(params.values()))
    for step in (0, 1, 2):
        counter[0] = step
        replay()
        params, state = optimizer.update(grads, state, params, step)
        expected_values, expected_moments = listed(params, state)
        equal(values, expected_values)
        for found, expected in zip(moments, expected_moments, strict=True):
            equal(found, expected)


def test_many_parameters_take_few_launches_and_one_kernel_per_count(rng, cuda):
    optimizer = optim.adam(0.1)
    shapes = {str(i): (int(n),) for i, n in enumerate(rng.integers(0, 3000, 130))}
    params, grads = draw(rng, shapes=shapes), draw(rng, shapes=shapes)
    new, _ = optimizer.update(grads, optimizer.init(params), params, 0)
    assert cuda == ["update"] * 3
    for path, p in params.items():  # Adam's first step is lr·sign(g), but for ε
        np.testing.assert_allclose(new[path], p - 0.1 * grads[path] / (abs(grads[path]) + 1e-8), rtol=1e-5, atol=1e-6)
    before = emulator.library.cache_info().misses
    optimizer.update(grads, optimizer.init(params), params, 7)
    optim.adam(0.3, beta1=0.5).update(grads, optimizer.init(params), params, 1)
    assert emulator.library.cache_info().misses == before


def test_two_dtypes_are_two_launches(rng, cuda):
    params = {**draw(rng, "float32", {"a": (9,), "b": (5, 5)}), **draw(rng, "float64", {"c": (9,)})}
    new, state = optim.sgd(0.5, 0.9).update(params, {"velocity": params}, params, 0)
    assert cuda == ["update"] * 2
    for path, p in params.items():
        assert new[path].dtype == p.dtype
        np.testing.assert_allclose(state["velocity"][path], 1.9 * p, rtol=1e-6)
        np.testing.assert_allclose(new[path], p - 0.95 * p, rtol=1e-5)


def test_half_precision_gradients_of_float32_parameters(rng, cuda):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    p, g = draw(rng, shapes={"w": (700,)}), draw(rng, bfloat16, {"w": (700,)})
    new, _ = optim.sgd(0.25).update(g, {}, p, 0)
    assert cuda == ["update"]
    np.testing.assert_array_equal(new["w"], p["w"] - 0.25 * g["w"].astype(np.float32))


def test_a_users_rule_and_memory_in_another_order(rng, cuda):
    p = rng.standard_normal((4, 5, 6, 3)).transpose(0, 3, 1, 2)  # channels last
    g = rng.standard_normal(p.shape)
    (new,), moments = engine.update_all(lambda n, p, g: (p * 0.5 - n[0] * g * n[1],), (0.25, 2.0), [p], [g], [])
    np.testing.assert_allclose(new, 0.5 * p - 0.5 * g, rtol=1e-14)
    assert new.strides == p.strides
    assert moments == []
    engine.update_all(lambda n, p, g: (p - n[0] * g,), (1.0,), [new], [g], [], into=([new], []))
    np.testing.assert_allclose(new, 0.5 * p - 1.5 * g, rtol=1e-14)


@pytest.mark.parametrize(
    "rule",
    [
        lambda n, p, g: (p - n[0] * g.sum(),),
        lambda n, p, g: (p - g if n[0] > 0 else p,),
        lambda n, p, g: (p - g / p.shape[0],),
        lambda n, p, g: (p > g,),
    ],
)
def test_what_no_kernel_can_be_made_of_is_refused_before_anything_runs(rule, cuda):
    p = np.ones(3)
    with pytest.raises(UntraceableError):
        engine.update_all(rule, (0.5,), [p], [p], [])
    assert engine.update(rule, (0.5,), [p], [p], []) is None
    assert not cuda


def test_results_that_would_not_lie_as_the_parameters_are_refused(cuda):
    p = np.ones((4, 6))
    for into in (np.ones((4, 12))[:, ::2], np.ones((6, 4)).T, np.ones((4, 6), np.float32), np.ones((6, 4))):
        with pytest.raises(UntraceableError):
            engine.update_all(lambda n, p, g: (p - g,), (), [p], [p], [], into=([into], []))
    assert not cuda


def test_an_update_that_cannot_be_traced_runs_on_the_arrays(cuda):
    params, grads = {"p": np.ones(4, np.float32)}, {"p": np.full(4, 2.0)}  # a float64 gradient
    new, _ = optim.sgd(0.5).update(grads, {}, params, 0)
    assert not cuda
    np.testing.assert_array_equal(new["p"], 0.0)
    assert new["p"].dtype == np.float64
    assert optim.sgd(0.5).update({}, {}, {}, 0) == ({}, {})


def test_gradients_are_clipped_by_the_norm_of_all_of_them(rng, cuda, dtype, monkeypatch):
    monkeypatch.setattr(engine, "MOST_SQUARED", 4)
    grads = draw(rng, dtype)
    grads["channels last"] = draw(rng, dtype, {"x": (4, 5, 6, 3)})["x"].transpose(0, 3, 1, 2)
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values()))
    found = engine.clipped(list(grads.values()), 0.25 * norm)
    assert cuda[:3] == ["squares", "squares", "factor"]
    for a, g in zip(found, grads.values(), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, 0.25 * g, rtol=1e-6 if dtype == "float32" else 1e-12)
    equal(engine.clipped(list(grads.values()), 1.01 * norm), list(grads.values()))
    equal(engine.clipped([np.zeros((3, 0))], 1.0), [np.zeros((3, 0))])


def test_clipping_in_doubles_neither_overflows_nor_hides_what_is_no_number(cuda):
    grads = [np.full(2000, 3e30, np.float32), np.full((1,), -4e30, np.float32)]
    large = engine.clipped(grads, 1.0)
    assert np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in large)) == pytest.approx(1.0, rel=1e-6)
    for wrong in (np.nan, np.inf):
        given = [np.ones(3000), np.array([2.0, wrong])]
        equal(engine.clipped(given, 1.0), given)


def test_clipping_takes_mixed_dtypes_and_refuses_integers(rng, cuda):
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    found = engine.clipped([np.full(4, 3.0), np.full(4, 4.0, np.float32), np.zeros(2, bfloat16)], 1.0)
    for a, value, kind in zip(found, (0.3, 0.4, 0.0), ("float64", "float32", bfloat16), strict=True):
        assert a.dtype == kind
        np.testing.assert_allclose(a.astype(np.float64), value, rtol=1e-6)
    assert engine.clipped([np.ones(3, np.int64)], 1.0) is None


def test_a_clipped_step_can_be_recorded(rng, cuda):
    optimizer = optim.clip_by_norm(optim.sgd(0.5, weight_decay=0.1), 2.0)
    params = draw(rng)
    given, held = draw(rng), {}

    def work():
        held.update(optimizer.prepare(given))

    replay = emulator.Recorder().record(work, lambda: None)
    for g in given.values():
        g[...] *= 3.0
    replay()
    new, _ = optimizer.update(given, {}, params, 0)
    for path, p in params.items():
        p_decay = 0.1 * p if optim.decays(path, p) else 0.0
        np.testing.assert_allclose(new[path], p - 0.5 * (held[path] + p_decay), rtol=1e-5, atol=1e-6)
    norm = np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in held.values()))
    assert norm == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("which", ["update", "squares"])
def test_nvcc_compiles_the_largest(which, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    program, _ = engine._program(optim.adam(0.1).rule, 7, (np.dtype("float32"),) * 7)
    most = engine._most_tensors(program)
    assert 50 <= most <= 64
    text = engine._kernel(program, most) if which == "update" else engine._squares("float", engine.MOST_SQUARED)
    (tmp_path / "update.cu").write_text(text, encoding="utf-8")
    command = [nvcc, "-arch=sm_90", "-std=c++17", "-cubin", "-Werror=all-warnings", "-Xptxas", "-v", "update.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert "0 bytes stack frame, 0 bytes spill stores" in done.stderr  # the addresses are not copied to each thread
