"""Optimizers against their formulas, written out as loops over single numbers, and PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpcnn import XpcnnError, optim
from xpcnn.random import Key


def by_hand(name, p, grads, lr, decay):
    """Follow one number through its updates; ``decay`` is 0 where weight decay spares it."""
    v = h = m = 0.0
    for step, g in enumerate(grads):
        if name == "adamw":
            p -= lr * decay * p
        else:
            g += decay * p
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
        elif name.startswith("rmsprop"):
            h = 0.9 * h + 0.1 * g * g
            v = (0.8 if name == "rmsprop momentum" else 0.0) * v + g / (math.sqrt(h) + 1e-6)
            p -= lr * v
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p -= lr * (m / (1 - 0.9 ** (step + 1))) / (math.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    return p


DECAY = 0.3
MAKERS = {
    "sgd": lambda lr: optim.sgd(lr),
    "momentum": lambda lr: optim.sgd(lr, 0.9),
    "nesterov": lambda lr: optim.sgd(lr, 0.9, nesterov=True),
    "adagrad": lambda lr: optim.adagrad(lr),
    "rmsprop": lambda lr: optim.rmsprop(lr, alpha=0.9, eps=1e-6),
    "rmsprop momentum": lambda lr: optim.rmsprop(lr, alpha=0.9, eps=1e-6, momentum=0.8),
    "adam": lambda lr: optim.adam(lr),
    "adamw, no decay": lambda lr: optim.adamw(lr, weight_decay=0.0),
    "sgd decayed": lambda lr: optim.sgd(lr, weight_decay=DECAY),
    "momentum decayed": lambda lr: optim.sgd(lr, 0.9, weight_decay=DECAY),
    "nesterov decayed": lambda lr: optim.sgd(lr, 0.9, nesterov=True, weight_decay=DECAY),
    "rmsprop decayed": lambda lr: optim.rmsprop(lr, alpha=0.9, eps=1e-6, weight_decay=DECAY),
    "rmsprop momentum decayed": lambda lr: optim.rmsprop(lr, alpha=0.9, eps=1e-6, momentum=0.8, weight_decay=DECAY),
    "adamw decayed": lambda lr: optim.adamw(lr, weight_decay=DECAY),
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
        decay = DECAY if name.endswith("decayed") and path == "a/weight" else 0.0
        rule = name.removesuffix(" decayed")
        expected = [by_hand(rule, p[i], [grad[path][i] for grad in grads], 0.1, decay) for i in np.ndindex(*p.shape)]
        arrays.check(params[path], np.reshape(expected, p.shape), first[path], 1e-12)
        np.testing.assert_array_equal(arrays.backend.to_numpy(first[path]), p)
    assert list(params) == list(start)


@pytest.mark.parametrize("name", MAKERS)
def test_pytorch_agrees(name, rng, dtype):
    torch = pytest.importorskip("torch")
    decay = DECAY if name.endswith("decayed") else 0.0
    rmsprop = {"alpha": 0.9, "eps": 1e-6, "weight_decay": decay}
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, weight_decay=decay),
        "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=decay),
        "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=decay),
        "adagrad": lambda p: torch.optim.Adagrad(p, 0.05, eps=1e-7),
        "adam": lambda p: torch.optim.Adam(p, 0.05),
        "rmsprop": lambda p: torch.optim.RMSprop(p, 0.05, **rmsprop),
        "rmsprop momentum": lambda p: torch.optim.RMSprop(p, 0.05, momentum=0.8, **rmsprop),
        "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=decay),
        "adamw, no decay": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.0),
    }
    start = rng.standard_normal((300, 200)).astype(dtype)  # large enough for NumPy's version in pieces
    leaf = torch.tensor(start, requires_grad=True)
    theirs, ours = makers[name.removesuffix(" decayed")]([leaf]), MAKERS[name](0.05)
    params = {"p": start}
    state = ours.init(params)
    for step in range(10):
        g = rng.standard_normal(start.shape).astype(dtype)
        leaf.grad = torch.tensor(g)
        theirs.step()
        params, state = ours.update({"p": g}, state, params, step)
    assert params["p"].dtype == dtype
    limit = {"rtol": 1e-9, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(params["p"], leaf.detach().numpy(), **limit)


@pytest.mark.parametrize("name", MAKERS)
def test_an_update_is_its_rule_on_the_steps_numbers(arrays, name, rng):
    optimizer = MAKERS[name](lambda step: 0.1 / (step + 1))
    paths = ("p", "p/bias") if optimizer.bare_rule else ("p",)
    params, grads = ({path: arrays(rng.standard_normal((4, 3))) for path in paths} for _ in range(2))
    state = optimizer.init(params)
    new, new_state = optimizer.update(grads, state, params, 3)
    for path, rule in zip(paths, (optimizer.rule, optimizer.bare_rule), strict=False):
        p = params[path]
        expected = rule(optimizer.numbers(3), p, grads[path], *(moment[path] for moment in state.values()))
        for found, wanted in zip([new[path], *(m[path] for m in new_state.values())], expected, strict=True):
            arrays.check(found, arrays.backend.to_numpy(wanted), p, 1e-15)


def test_biases_norms_and_vectors_do_not_decay():
    shapes = {
        "conv1/weight": (3, 2, 2, 2), "conv1/bias": (3,), "norm1/gamma": (3,), "norm1/beta": (3,),
        "layernorm/gamma": (3, 4, 4), "block/layernorm/beta": (3, 4), "own/bias": (3, 3), "own/scales": (5,),
        "affine1/weight": (3, 2), "temperature": (), "kernel": (2, 2), "beta/weight": (2, 2),
        "gain": (3, 1, 1), "narrow/weight": (5, 1),
    }  # fmt: skip
    decayed = {"conv1/weight", "affine1/weight", "kernel", "beta/weight", "narrow/weight"}
    params = {path: np.full(shape, 2.0) for path, shape in shapes.items()}
    zeros = {path: np.zeros(shape) for path, shape in shapes.items()}
    assert {path for path, p in params.items() if optim.decays(path, p)} == decayed
    for optimizer in (
        optim.sgd(0.5, weight_decay=0.1), optim.sgd(0.5, 0.9, weight_decay=0.1), optim.adamw(0.5, weight_decay=0.1),
        optim.sgd(0.5, 0.9, nesterov=True, weight_decay=0.1), optim.rmsprop(0.5, weight_decay=0.1),
        optim.muon(0.5, weight_decay=0.1),
    ):  # fmt: skip
        new, state = optimizer.update(zeros, optimizer.init(params), params, 0)
        assert list(new) == list(params)
        assert all(list(arrays) == [path for path in params if path in arrays] for arrays in state.values())
        for path, p in new.items():
            assert (p < 2.0).all() if path in decayed else (p == 2.0).all(), (optimizer.name, path)


def test_a_rule_and_its_bare_one_share_the_parameters_out():
    params = {"a/bias": np.ones(2), "a/weight": np.ones((2, 2)), "b/weight": np.ones((3, 2)), "c": np.ones(1)}
    plain, decayed = optim.sgd(0.1), optim.sgd(0.1, weight_decay=0.1)
    assert plain.groups(params) == [(plain.rule, list(params))]
    assert decayed.groups(params) == [
        (decayed.rule, ["a/weight", "b/weight"]), (decayed.bare_rule, ["a/bias", "c"]),
    ]  # fmt: skip
    assert decayed.groups({"a/bias": params["a/bias"]}) == [(decayed.bare_rule, ["a/bias"])]
    assert decayed.update({}, {}, {}, 0) == ({}, {})
    assert optim.muon().groups(params) == []


def test_an_optimizer_of_ones_own_needs_no_rule():
    own = optim.Optimizer("own", lambda params: {}, lambda grads, state, params, step: (grads, state))
    assert own.numbers is None
    assert own.rule is None


def test_a_moving_average_of_weights(arrays, rng, dtype):
    weights = [{"w": rng.standard_normal((300, 70))} for _ in range(30)]
    averaging, expected = optim.moving_average(0.7), weights[0]["w"]
    average = {"w": arrays(expected, dtype)}
    first = average["w"]
    for step, now in enumerate(weights):
        average, state = averaging.update({"w": arrays(now["w"], dtype)}, averaging.init(average), average, step)
        decay = (0.1, 2 / 11, 3 / 12, 4 / 13)[step] if step < 4 else min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * now["w"]
    assert state == {}
    arrays.check(average["w"], expected, first, 1e-6 if dtype == "float32" else 1e-12)


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
        lambda: optim.sgd(0.1, weight_decay=-0.1), lambda: optim.adamw(weight_decay="little"), lambda: optim.adamw(0.0),
        lambda: optim.rmsprop(alpha=1.0), lambda: optim.rmsprop(eps=-1.0), lambda: optim.rmsprop(momentum=1.0),
        lambda: optim.rmsprop(weight_decay=float("nan")), lambda: optim.muon(momentum=1.0), lambda: optim.muon(-1.0),
        lambda: optim.muon(ns_steps=0), lambda: optim.muon(ns_steps=7), lambda: optim.muon(weight_decay=True),
        lambda: optim.clip_by_norm(optim.sgd(), 0.0), lambda: optim.clip_by_norm(optim.sgd(), float("inf")),
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
