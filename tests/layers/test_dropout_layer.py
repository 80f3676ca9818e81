"""Dropout as a layer: which values it drops, where, and when."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import ops
from xpcnn.random import Key

ONES = np.ones((4, 5, 6))


def dropped(layer, key, x=ONES):
    return layer.forward({}, {}, x, train=True, key=key)[0] == 0


def test_a_key_drops_the_same_values_on_every_backend(arrays, dtype):
    """Numbers of NumPy's generator, compared with the backend's zeros: nothing depends on the device."""
    layer, key, x = la.Dropout(0.3), Key(5).child("step", 2), arrays(ONES, dtype)
    y, saved, state = layer.forward({}, {}, x, train=True, key=key)
    expected = np.where(dropped(layer, key), 0.0, 1 / 0.7)
    arrays.check(y, expected, x, 1e-6)
    arrays.check(layer.backward({}, x, saved)[0], expected, x, 1e-6)
    assert state == {}
    assert layer.backward({}, x, saved, need_dx=False) == (None, {})


def test_layers_steps_and_seeds_have_masks_of_their_own():
    branches = la.Parallel([la.Dropout(), la.Dropout(), ("deep", la.Sequential(la.Dropout(), la.Identity()))])
    joined = dropped(la.Sequential(("first", la.Identity()), ("second", branches)), Key(0))
    masks = [joined[:, 0:5], joined[:, 5:10], joined[:, 10:15]]
    masks += [dropped(la.Sequential((name, la.Dropout())), Key(0)) for name in ("dropout1", "dropout2", "second")]
    masks += [dropped(la.Dropout(), key) for key in (Key(0), Key(1), Key(0).child("step", 1), Key(0).child("step", 2))]
    for first in range(len(masks)):
        for second in range(first):
            agree = (masks[first] == masks[second]).mean()
            assert 0.3 < agree < 0.7, (first, second)


def test_training_draws_a_new_mask_each_step_and_the_seed_repeats_them():
    def trained(seed):
        net = la.Sequential(la.Dropout(0.5), la.Affine(1, bias=False), input_shape=(40,))
        model = xc.Model(net, "cpu", seed=seed, values={"affine1/weight": np.ones((40, 1))})
        trainer = xc.Trainer(model, xc.optim.sgd(1.0), loss="mean_squared_error")
        moved = []
        for _ in range(3):
            before = model.parameters()["affine1/weight"]
            trainer.step(np.ones((1, 40), np.float32), np.zeros((1, 1), np.float32))
            moved.append(np.asarray(before != model.parameters()["affine1/weight"]).ravel())
        return moved

    once, again, other = trained(0), trained(0), trained(1)
    for first, second in zip(once, again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(once[0], once[1])
    assert not np.array_equal(once[1], once[2])
    assert not np.array_equal(once[0], other[0])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_the_rate_and_the_mean_stays(rate):
    x = np.full((200, 500), 3.0)
    y, _, _ = la.Dropout(rate).forward({}, {}, x, train=True, key=Key(1))
    spread = (rate * (1 - rate) / x.size) ** 0.5
    assert abs((y == 0).mean() - rate) <= 5 * spread
    assert abs(y.mean() - 3.0) <= 5 * 3.0 * spread / (1 - rate)
    assert set(np.round(np.unique(y), 9)) <= {0.0, round(3.0 / (1 - rate), 9)}


def test_prediction_drops_nothing_and_needs_no_key(arrays):
    x = arrays(ONES)
    y, saved, _ = la.Dropout(0.9).forward({}, {}, x, key=Key(0))
    arrays.check(y, ONES, x, 0.0)
    arrays.check(la.Dropout(0.9).backward({}, x, saved)[0], ONES, x, 0.0)


@pytest.mark.parametrize("net", [la.Dropout(), la.Sequential(la.ReLU(), la.Residual(la.Sequential(la.Dropout(0.1))))])
def test_training_without_a_key_is_an_error(net):
    with pytest.raises(xc.XpcnnError, match=r"Dropout.*key"):
        net.forward({}, {}, ONES, train=True)


def test_gradients_through_a_network_with_a_fixed_key(rng):
    """Dropout before, between and beside trained layers; the mask stays while numbers are nudged."""
    body = la.Sequential(la.Conv2D(2, 3, padding=1), la.Dropout(0.3), la.Tanh())
    joined = la.Parallel([la.Dropout(0.5), la.Sequential(la.BatchNorm(), la.Dropout(0.2))])
    head = la.Sequential(la.Affine(4), la.Dropout(0.25), la.SiLU(), la.Affine(3))
    net = la.Sequential(la.Dropout(0.2), la.Residual(body), joined, head)
    shape, key = (2, 4, 3), Key(3)
    host = {path: p + 0.1 * rng.standard_normal(p.shape) for path, p in net.initial_parameters(Key(1), shape).items()}
    state, x, t = net.initial_state(Key(1), shape), rng.standard_normal((3, *shape)), np.array([0, 2, 1])

    def run(params, x):
        y, saved, _ = net.forward(params, state, x, train=True, key=key)
        return (*ops.softmax_cross_entropy(y, t), saved)

    _, loss_saved, saved = run(host, x)
    dx, grads = net.backward(host, ops.softmax_cross_entropy_backward(loss_saved), saved)
    for name, found in ({"x": dx} | grads).items():

        def value(a, name=name):
            return float(run(host, a)[0] if name == "x" else run(host | {name: a}, x)[0])

        numeric = oracles.numerical_gradient(value, x if name == "x" else host[name])
        assert np.abs(numeric).max() > 1e-4
        np.testing.assert_allclose(found, numeric, rtol=0, atol=1e-8, err_msg=name)
