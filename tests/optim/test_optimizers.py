"""Optimizers against their formulas, written out as loops over single numbers, and PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpcnn import XpcnnError, optim
from xpcnn.random import Key


def by_hand(name, p, grads, lr):
    """Follow one number through its updates."""
    v = h = m = 0.0
    for step, g in enumerate(grads):
        if name == "sgd":
            p -= lr * g
        elif name == "momentum":
            v = 0.9 * v + g
            p -= lr * v
        elif name == "nesterov":
            v = 0.9 * v + g
            p -= lr * (g + 0.9 * v)
        elif name == "adagrad":
            h += g * g
            p -= lr * g / (math.sqrt(h) + 1e-7)
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p -= lr * (m / (1 - 0.9 ** (step + 1))) / (math.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    return p


MAKERS = {
    "sgd": lambda lr: optim.sgd(lr),
    "momentum": lambda lr: optim.sgd(lr, 0.9),
    "nesterov": lambda lr: optim.sgd(lr, 0.9, nesterov=True),
    "adagrad": lambda lr: optim.adagrad(lr),
    "adam": lambda lr: optim.adam(lr),
}


@pytest.mark.parametrize("name", MAKERS)
def test_updates_follow_the_formula(arrays, name, rng):
    start = {"a/weight": rng.standard_normal((3, 2)), "b/bias": rng.standard_normal(2)}
    grads = [{path: rng.standard_normal(p.shape) for path, p in start.items()} for _ in range(5)]
    optimizer = MAKERS[name](0.1)
    params = {path: arrays(p) for path, p in start.items()}
    first = dict(params)
    state = optimizer.init(params)
    for step, grad in enumerate(grads):
        params, state = optimizer.update({path: arrays(g) for path, g in grad.items()}, state, params, step)
    for path, p in start.items():
        expected = [by_hand(name, p[i], [grad[path][i] for grad in grads], 0.1) for i in np.ndindex(*p.shape)]
        arrays.check(params[path], np.reshape(expected, p.shape), first[path], 1e-12)
        np.testing.assert_array_equal(arrays.backend.to_numpy(first[path]), p)
    assert list(params) == list(start)


@pytest.mark.parametrize("name", MAKERS)
def test_pytorch_agrees(name, rng):
    torch = pytest.importorskip("torch")
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05),
        "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
        "adagrad": lambda p: torch.optim.Adagrad(p, 0.05, eps=1e-7),
        "adam": lambda p: torch.optim.Adam(p, 0.05),
    }
    start = rng.standard_normal((300, 200))  # large enough for NumPy's version in pieces
    leaf = torch.tensor(start, requires_grad=True)
    theirs, ours = makers[name]([leaf]), MAKERS[name](0.05)
    params = {"p": start}
    state = ours.init(params)
    for step in range(4):
        g = rng.standard_normal(start.shape)
        leaf.grad = torch.tensor(g)
        theirs.step()
        params, state = ours.update({"p": g}, state, params, step)
    np.testing.assert_allclose(params["p"], leaf.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_an_update_is_its_rule_on_the_steps_numbers(arrays, name, rng):
    optimizer = MAKERS[name](lambda step: 0.1 / (step + 1))
    p, g = arrays(rng.standard_normal((4, 3))), arrays(rng.standard_normal((4, 3)))
    state = optimizer.init({"p": p})
    new, new_state = optimizer.update({"p": g}, state, {"p": p}, 3)
    expected = optimizer.rule(optimizer.numbers(3), p, g, *(moment["p"] for moment in state.values()))
    for found, wanted in zip([new["p"], *(m["p"] for m in new_state.values())], expected, strict=True):
        arrays.check(found, arrays.backend.to_numpy(wanted), p, 1e-15)


def test_an_optimizer_of_ones_own_needs_no_rule():
    own = optim.Optimizer("own", lambda params: {}, lambda grads, state, params, step: (grads, state))
    assert own.numbers is None
    assert own.rule is None


def test_a_schedule_gives_each_steps_rate():
    optimizer = optim.sgd(lambda step: 0.5 ** (step + 1))
    params = {"p": np.zeros(1)}
    for step in range(3):
        params, _ = optimizer.update({"p": np.ones(1)}, {}, params, step)
    np.testing.assert_allclose(params["p"], -0.875)


@pytest.mark.parametrize("dtype_name", ["float32", "float64"])
def test_the_dtype_stays(dtype_name):
    for make in MAKERS.values():
        params = {"p": np.ones(3, dtype_name)}
        optimizer = make(0.1)
        params, state = optimizer.update(dict(params), optimizer.init(params), params, 0)
        assert params["p"].dtype == dtype_name
        assert all(moment["p"].dtype == dtype_name for moment in state.values())


@pytest.mark.parametrize(
    "call",
    [
        lambda: optim.sgd(0.0), lambda: optim.sgd(float("nan")), lambda: optim.adam("fast"),
        lambda: optim.adagrad(-1.0), lambda: optim.sgd(0.1, 1.0), lambda: optim.sgd(0.1, nesterov=True),
        lambda: optim.adam(0.1, beta2=1.0), lambda: optim.adagrad(0.1, eps=-1.0), lambda: optim.sgd(float("inf")),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(call):
    with pytest.raises(XpcnnError):
        call()


def test_initial_values_have_their_spread():
    he = optim.HeNormal().draw(Key(0), (200, 500), fan_in=50)
    assert he.std() == pytest.approx(0.2, rel=0.01)
    assert abs(he.mean()) < 0.002
    assert optim.Normal(0.01).draw(Key(0), (100, 1000), 1).std() == pytest.approx(0.01, rel=0.01)
    assert not optim.Zeros().draw(Key(0), (3,), 1).any()


def test_keys_name_streams():
    def draw(*path):
        return Key(1).child(*path).generator().standard_normal(4)

    np.testing.assert_array_equal(draw("init", "conv1"), draw("init", "conv1"))
    assert not np.array_equal(draw("init", "conv1"), draw("init", "conv2"))
    assert not np.array_equal(draw("shuffle", 1), draw("shuffle", "1"))
    assert not np.array_equal(draw("a"), Key(2).child("a").generator().standard_normal(4))


def test_numpy_numbers_do_not_widen_parameters():
    params = {"p": np.ones(3, np.float32)}
    for optimizer in (
        optim.sgd(np.float64(0.1), np.float64(0.9)),
        optim.adam(np.float32(0.1)),
        optim.adagrad(lambda step: 0.05 * (1 + np.cos(step / 100))),
    ):
        new, state = optimizer.update(dict(params), optimizer.init(params), params, 0)
        assert new["p"].dtype == np.float32
        assert all(moment["p"].dtype == np.float32 for moment in state.values())


def test_a_gradient_of_another_dtype_is_computed_with_not_read_as_bytes():
    p, g = np.ones(3000, np.float32), np.full(3000, 2.0)
    new, _ = optim.sgd(lr=0.5).update({"p": g}, {}, {"p": p}, 0)
    np.testing.assert_array_equal(new["p"], 0.0)
