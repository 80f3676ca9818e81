"""Muon against its definition by singular values, and PyTorch's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpcnn import kernels, optim
from xpcnn.kernels import policy
from xpcnn.optim.muon import orthogonalised


def by_singular_values(g, steps=5):
    """Return the published iteration's result: a polynomial of each singular value, applied again and again."""
    matrix = np.asarray(g, np.float64).reshape(g.shape[0], -1)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / max(np.sqrt((s**2).sum()), 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s @ v).reshape(g.shape)


@pytest.mark.parametrize("shape", [(5, 5), (3, 40), (40, 3), (6, 2, 3, 3), (30, 1, 2, 2), (1, 7), (1, 1), (9, 1)])
def test_singular_values_go_through_the_polynomial(arrays, shape, rng, dtype):
    g = rng.standard_normal(shape)
    device = arrays(g, dtype)
    found = orthogonalised(device)
    arrays.check(found, by_singular_values(g), device, 2e-5 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("shape", [(30, 200), (40, 40), (90, 12)])
def test_few_directions_and_any_number_of_steps(shape, steps, rng):
    g = np.float32(rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1])) * 1e-3)
    for given in (g, g + np.float32(1e-7 * rng.standard_normal(shape))):
        np.testing.assert_allclose(orthogonalised(given, steps), by_singular_values(given, steps), atol=0.01)


def test_directions_become_of_about_one_size(rng):
    g = rng.standard_normal((40, 90)) * np.logspace(0, -1, 40)[:, None]
    sizes = np.linalg.svd(orthogonalised(g), compute_uv=False)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.25


def test_products_are_not_rounded(rng, monkeypatch):
    seen = []
    own = kernels.of(np).matmul
    monkeypatch.setattr(
        kernels.of(np), "matmul", lambda a, b, xp: seen.append(policy.current().products) or own(a, b, xp)
    )
    with policy.use(products="tf32"):
        orthogonalised(rng.standard_normal((4, 6)))
        assert policy.current().products == "tf32"
    assert set(seen) == {"float32"}


def test_nothing_becomes_nothing():
    for g in (np.zeros((4, 6), np.float32), np.zeros((4, 6)), np.full((3, 2), 1e-30, np.float32)):
        found = orthogonalised(g)
        assert np.abs(found).max() < 1e-6
        assert found.dtype == g.dtype


SHAPES = {"conv/weight": (6, 2, 3, 3), "conv/bias": (6,), "affine/weight": (12, 40), "affine/bias": (40,)}


@pytest.mark.parametrize("nesterov", [True, False])
def test_updates_follow_the_definition(arrays, rng, nesterov):
    params = {path: rng.standard_normal(shape) for path, shape in SHAPES.items()}
    ours = {path: arrays(p) for path, p in params.items()}
    first, start = dict(ours), {path: p.copy() for path, p in params.items()}
    optimizer = optim.muon(lambda step: 0.1 / (step + 1), 0.9, nesterov=nesterov, weight_decay=0.2)
    others = optim.adamw(lambda step: 0.1 / (step + 1) / 20)
    state = optimizer.init(ours)
    rest = {path: params[path] for path in ("conv/bias", "affine/bias")}
    moments, velocity = others.init(rest), dict.fromkeys(params, 0.0)
    for step in range(3):
        grads = {path: rng.standard_normal(p.shape) for path, p in params.items()}
        ours, state = optimizer.update({path: arrays(g) for path, g in grads.items()}, state, ours, step)
        rest, moments = others.update({path: grads[path] for path in rest}, moments, rest, step)
        lr = 0.1 / (step + 1)
        for path, scale in (("conv/weight", 1.0), ("affine/weight", math.sqrt(40 / 12))):
            velocity[path] = 0.9 * velocity[path] + grads[path]
            towards = grads[path] + 0.9 * velocity[path] if nesterov else velocity[path]
            params[path] = params[path] * (1 - lr * 0.2) - lr * scale * by_singular_values(towards)
        params |= rest
    assert list(ours) == list(params)
    for path, p in params.items():
        arrays.check(ours[path], p, first[path], 1e-10)
        np.testing.assert_array_equal(arrays.backend.to_numpy(first[path]), start[path])


def test_pytorch_agrees(rng):
    torch = pytest.importorskip("torch")
    shapes = {"tall/weight": (8, 50), "wide/weight": (50, 8), "square/weight": (20, 20)}
    params = {path: rng.standard_normal(shape) for path, shape in shapes.items()}
    leaves = [torch.tensor(np.ascontiguousarray(p.T), requires_grad=True) for p in params.values()]  # (out, in)
    theirs = torch.optim.Muon(leaves, lr=0.05, momentum=0.9, weight_decay=0.1)
    ours = optim.muon(0.05, 0.9, weight_decay=0.1)
    state, start = ours.init(params), params
    for step in range(10):
        grads = {path: rng.standard_normal(p.shape) for path, p in params.items()}
        for leaf, g in zip(leaves, grads.values(), strict=True):
            leaf.grad = torch.tensor(np.ascontiguousarray(g.T))
        theirs.step()
        params, state = ours.update(grads, state, params, step)
    for leaf, (path, p) in zip(leaves, params.items(), strict=True):
        moved = np.linalg.norm(p - start[path])
        assert np.linalg.norm(p - leaf.detach().numpy().T) < 0.02 * moved  # theirs computes in bfloat16


def test_others_may_be_updated_by_any_optimizer(rng):
    params = {path: rng.standard_normal(shape) for path, shape in SHAPES.items()}
    grads = {path: rng.standard_normal(shape) for path, shape in SHAPES.items()}
    optimizer = optim.muon(0.1, others=optim.sgd(0.5, 0.9))
    state = optimizer.init(params)
    assert {name: list(arrays) for name, arrays in state.items()} == {
        "orthogonalised": ["conv/weight", "affine/weight"], "velocity": ["conv/bias", "affine/bias"],
    }  # fmt: skip
    for step in range(2):
        params, state = optimizer.update(grads, state, params, step)
    assert list(state) == ["orthogonalised", "velocity"]
    np.testing.assert_allclose(state["velocity"]["conv/bias"], 1.9 * grads["conv/bias"])
    np.testing.assert_allclose(state["orthogonalised"]["conv/weight"], 1.95 * grads["conv/weight"])


def test_the_dtype_stays():
    params = {path: np.ones(shape, np.float32) for path, shape in SHAPES.items()}
    optimizer = optim.muon(lambda step: np.float64(0.1), np.float64(0.9), weight_decay=np.float64(0.1))
    new, state = optimizer.update(params, optimizer.init(params), params, 0)
    assert all(p.dtype == np.float32 for arrays in (new, *state.values()) for p in arrays.values())


def test_products_take_the_backends_kernel(rng, monkeypatch):
    calls = []
    own = kernels.of(np).matmul
    monkeypatch.setattr(kernels.of(np), "matmul", lambda a, b, xp: calls.append(a.shape) or own(a, b, xp))
    orthogonalised(rng.standard_normal((8, 900)))
    assert calls.count((8, 900)) == 1
    assert len(calls) == 1 + 5 * 2 + 4 * 2 + 1
