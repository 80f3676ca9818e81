"""Clipping by the common norm, against PyTorch's and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import optim

SHAPES = {"a/weight": (7, 5), "a/bias": (5,), "b/weight": (3, 2, 2, 2), "one": ()}
OWN = optim.Optimizer("own", lambda params: {}, lambda grads, state, params, step: (grads, state))  # what it was given


def drawn(rng, scale=1.0, dtype="float64"):
    return {path: np.asarray(scale * rng.standard_normal(shape), dtype) for path, shape in SHAPES.items()}


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e6])
def test_pytorch_agrees(arrays, rng, scale):
    torch = pytest.importorskip("torch")
    host = drawn(rng, scale)
    leaves = [torch.zeros(g.shape, dtype=torch.float64) for g in host.values()]
    for leaf, g in zip(leaves, host.values(), strict=True):
        leaf.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_norm_(leaves, 1.5)
    grads = {path: arrays(g) for path, g in host.items()}
    found, _ = optim.clip_by_norm(OWN, 1.5).update(grads, {}, grads, 0)
    for leaf, (path, g) in zip(leaves, found.items(), strict=True):
        arrays.check(g, leaf.grad.numpy(), grads[path], 1e-6)  # theirs adds 1e-6 to the norm
        np.testing.assert_array_equal(arrays.backend.to_numpy(grads[path]), host[path])


def test_what_is_small_stays_to_the_last_bit(arrays, rng, dtype):
    host = drawn(rng, 0.01, dtype)
    grads = {path: arrays(g) for path, g in host.items()}
    found, _ = optim.clip_by_norm(OWN, 1.0).update(grads, {}, grads, 0)
    for path, g in found.items():
        arrays.check(g, host[path], grads[path], 0.0)
    nothing = {"p": arrays(np.zeros(3))}
    found, _ = optim.clip_by_norm(OWN, 1.0).update(nothing, {}, nothing, 0)
    arrays.check(found["p"], np.zeros(3), nothing["p"], 0.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_shows_where_it_is(arrays, wrong):
    grads = {"a": arrays(np.full(3, 40.0)), "b": arrays(np.array([1.0, wrong]))}
    found, _ = optim.clip_by_norm(OWN, 1.0).update(grads, {}, grads, 0)
    np.testing.assert_array_equal(arrays.backend.to_numpy(found["a"]), 40.0)
    np.testing.assert_array_equal(arrays.backend.to_numpy(found["b"]), [1.0, wrong])


def test_a_three_four_five_triangle_and_many_numbers():
    params = {"a": np.zeros(1, np.float32), "b": np.zeros((1, 1), np.float32)}
    grads = {"a": np.full(1, 30.0, np.float32), "b": np.full((1, 1), -40.0, np.float32)}
    optimizer = optim.clip_by_norm(optim.sgd(1.0), 5)
    assert optimizer.name == "sgd, clipped at 5"
    new, _ = optimizer.update(grads, optimizer.init(params), params, 0)
    np.testing.assert_allclose(new["a"], -3.0, rtol=1e-6)
    np.testing.assert_allclose(new["b"], 4.0, rtol=1e-6)
    assert new["a"].dtype == np.float32
    many = {"p": np.full(1_000_000, 0.1, np.float32)}  # a running sum in float32 would be off by percents
    found, _ = optim.clip_by_norm(OWN, 1.0).update(many, {}, many, 0)
    np.testing.assert_allclose(found["p"], 1_000_000**-0.5, rtol=1e-5)


def test_two_dtypes_each_stay(arrays):
    grads = {"a": arrays(np.full(4, 3.0)), "b": arrays(np.full(4, 4.0), "float32")}
    found, _ = optim.clip_by_norm(OWN, 1.0).update(grads, {}, grads, 0)
    arrays.check(found["a"], np.full(4, 0.3), grads["a"], 1e-6)
    arrays.check(found["b"], np.full(4, 0.4), grads["b"], 1e-6)


def test_clipping_is_what_comes_first_and_may_be_nested():
    inner = optim.clip_by_norm(optim.sgd(1.0, 0.9, weight_decay=0.5), 3.0)
    outer = optim.clip_by_norm(inner, 6.0)
    assert outer.name == "sgd, clipped at 3, clipped at 6"
    assert outer.numbers is inner.numbers
    assert outer.groups({"weight": np.ones((1, 1))}) == [(inner.rule, ["weight"])]
    params, grads = {"weight": np.full((1, 1), 2.0)}, {"weight": np.full((1, 1), 12.0)}
    np.testing.assert_allclose(outer.prepare(grads)["weight"], 3.0)
    new, _ = outer.update(grads, outer.init(params), params, 0)
    np.testing.assert_allclose(new["weight"], 2.0 - (3.0 + 0.5 * 2.0))
    assert optim.clip_by_norm(OWN, 1.0).update({}, {}, {}, 0) == ({}, {})


def test_muon_can_be_clipped_too(rng):
    params, grads = drawn(rng), drawn(rng)
    clipped, plain = optim.clip_by_norm(optim.muon(0.1), 1e6), optim.muon(0.1)
    new, _ = clipped.update(grads, clipped.init(params), params, 0)
    expected, _ = plain.update(grads, plain.init(params), params, 0)
    for path, p in expected.items():
        np.testing.assert_array_equal(new[path], p)
