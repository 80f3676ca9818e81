"""Layers side by side and inside each other: paths, gradients that add up, and one network of many kinds everywhere."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn.layers.describe import KNOWN
from xpcnn.random import Key

SHAPE = (4, 8, 7)


def many_kinds():
    """Return a network of every kind of layer that images, and vectors made of them, can pass."""
    stem = la.Sequential(la.Conv2D(6, 3, padding=1, groups=2, bias=False), la.BatchNorm(), la.ReLU6())
    body = la.Sequential(la.Conv2D(6, 3, padding="same"), la.GroupNorm(3), la.SiLU())
    pools = [la.MaxPool2D(2), la.AvgPool2D(3, stride=2, padding=1, count_include_pad=False), la.Conv2D(4, 2, stride=2)]
    pools[1] = la.Sequential(pools[1], la.AdaptiveAvgPool2D((4, 3)))
    added = la.Parallel([la.ELU(), la.Sequential(la.PadChannels(20), la.Conv2D(16, 1)), la.GELU()], merge="add")
    up = la.ConvTranspose2D(8, 3, stride=2, padding=1, output_padding=1, bias=False)
    wide = la.Sequential(up, la.LayerNorm(axes=(2, 3)), la.LeakyReLU())
    gate = la.Graph([
        ("mean", la.GlobalAvgPool(), "input"), ("shape", la.Reshape((-1, 1, 1)), "mean"),
        ("scale", la.Scale((8, 1, 1), shift=True), "shape"), ("gate", la.HardSigmoid(), "scale"),
        ("times", la.Join("multiply"), ("input", "gate")), ("small", la.Conv2D(3, 2, stride=2), "times"),
        ("large", la.Upsample2D((2, 1)), "small"), ("wide", la.Pad2D(((0, 0), (1, 2)), 0.5), "large"), ("clip", la.Clip(-1, 1), "wide"),
        ("all", la.Join("concat"), ("times", "clip")),
    ])  # fmt: skip
    fused = la.Sequential(la.Conv2D(5, 3), la.ReLU(), la.MaxPool2D(2))
    ends = [la.GlobalAvgPool(), la.GlobalMaxPool(), la.Sequential(la.Flatten(), la.Affine(3), la.Softmax())]
    tail = [la.Affine(6), la.Tanh(), la.Affine(6), la.HardSwish(), la.SELU(), la.Softplus(), la.Sigmoid()]
    return la.Sequential(
        stem, la.Residual(body), ("pools", la.Parallel(pools)), ("added", added), wide, ("gate", gate), fused,
        la.Identity(), la.Dropout(0.0), ("ends", la.Parallel(ends)), *tail, la.Affine(4), la.LogSoftmax(),
    )  # fmt: skip


def few_kinds():
    """Return a network for backends that compile every shape: of what layers do themselves, beyond calling ops."""
    joined = la.Parallel([la.Identity(), la.Sequential(la.PadChannels(6), la.BatchNorm())])
    nodes = [
        ("pad", la.Pad2D(1, 0.5), "input"),
        ("up", la.Scale((10, 1, 1)), "pad"),
        ("times", la.Join("multiply"), ("up", "pad")),
    ]
    return la.Sequential(joined, la.Residual(la.Conv2D(10, 1)), la.Graph(nodes), la.Flatten(), la.Affine(3))


def network(arrays):
    return few_kinds() if arrays.id == "jax" else many_kinds()


def kinds(layer, shape):
    return {type(layer).__name__}.union(*(kinds(child.layer, child.input_shape) for child in layer.children(shape)))


def test_one_network_of_many_kinds_computes_pytorchs_numbers_on_every_backend(arrays):
    mirror = pytest.importorskip("torch_mirror")
    mirror.check(network(arrays), SHAPE, arrays.backend)


def test_the_many_kinds_are_all_but_those_of_signals_and_volumes():
    layers = {name for name, cls in KNOWN.items() if issubclass(cls, la.Layer)}
    assert {name for name in layers - kinds(many_kinds(), SHAPE) if not name.endswith(("1D", "3D"))} == set()


def test_results_stay_on_the_backend_and_its_device(arrays):
    net = network(arrays)
    params = {path: arrays(p) for path, p in net.initial_parameters(Key(0), SHAPE).items()}
    state = {path: arrays(s) for path, s in net.initial_state(Key(0), SHAPE).items()}
    x = arrays(np.ones((3, *SHAPE)) * np.arange(7))
    y, saved, new = net.forward(params, state, x, train=True, key=Key(0))
    dx, grads = net.backward(params, y, saved)
    assert list(grads) == list(params)
    for array in (y, dx, *grads.values(), *new.values()):
        arrays.check(array, arrays.backend.to_numpy(array), x)


def test_paths_are_the_names_on_the_way():
    inner = la.Parallel([la.Conv2D(2, 1), la.Conv2D(3, 1, bias=False), ("norm", la.BatchNorm())])
    block = la.Residual(la.Sequential(inner), la.Conv2D(9, 1))
    shape = (4, 3, 3)
    expected = {
        "body/parallel1/conv1/weight": (2, 4, 1, 1), "body/parallel1/conv1/bias": (2,),
        "body/parallel1/conv2/weight": (3, 4, 1, 1), "body/parallel1/norm/gamma": (4,),
        "body/parallel1/norm/beta": (4,), "shortcut/weight": (9, 4, 1, 1), "shortcut/bias": (9,),
    }  # fmt: skip
    assert {path: p.shape for path, p in block.parameters(shape).items()} == expected
    assert list(block.parameters(shape)) == list(expected)
    assert list(block.state(shape)) == ["body/parallel1/norm/mean", "body/parallel1/norm/var"]
    assert list(la.Sequential(("a", block)).parameters(shape)) == [f"a/{path}" for path in expected]
    placed = [place.path for place in la.leaves(block, shape)]
    assert placed == ["body/parallel1/conv1", "body/parallel1/conv2", "body/parallel1/norm", "shortcut"]


def test_names_that_begin_alike_keep_their_parameters_apart(rng):
    net = la.Parallel([("a", la.Affine(1, bias=False)), ("ab", la.Affine(1, bias=False))])
    params = {"a/weight": np.array([[2.0]]), "ab/weight": np.array([[5.0]])}
    y, saved, _ = net.forward(params, {}, np.array([[3.0]]))
    np.testing.assert_array_equal(y, [[6.0, 15.0]])
    dx, grads = net.backward(params, np.array([[1.0, 10.0]]), saved)
    np.testing.assert_array_equal(dx, [[2.0 + 50.0]])
    assert {path: g.item() for path, g in grads.items()} == {"a/weight": 3.0, "ab/weight": 30.0}


def test_the_gradients_of_branches_add_up():
    """y = x + 3x + x² through a square layer: dy/dx = 4 + 2x, exactly."""

    class Square(la.Identity):
        def forward(self, params, state, x, *, train=False, key=None):
            return x * x, x, state

        def backward(self, params, dy, saved, *, need_dx=True):
            return 2 * saved * dy, {}

    x = np.array([[1.0, -2.0, 5.0]])
    triple = la.Parallel([la.Identity(), la.Identity(), la.Identity()], merge="add")
    net = la.Residual(la.Residual(Square(), triple))
    y, saved, _ = net.forward({}, {}, x)
    np.testing.assert_array_equal(y, x * x + 4 * x)
    dx, grads = net.backward({}, np.array([[1.0, 1.0, 10.0]]), saved)
    np.testing.assert_array_equal(dx, [[6.0, 0.0, 140.0]])
    assert grads == {}


def test_joined_channels_come_in_the_branches_order_and_their_deltas_go_back():
    net = la.Parallel([la.PadChannels(2), la.Identity(), la.Sequential(la.Identity(), la.PadChannels(3))])
    x = np.array([[7.0]])
    y, saved, _ = net.forward({}, {}, x)
    np.testing.assert_array_equal(y, [[7, 0, 7, 7, 0, 0]])
    dx, _ = net.backward({}, np.array([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]]), saved)
    np.testing.assert_array_equal(dx, [[1.0 + 4.0 + 8.0]])


def test_what_was_given_is_never_written_to(rng):
    """A residual's shortcut hands on the very array it got: adding must make a new one."""
    x, dy = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    before = x.copy(), dy.copy()
    net = la.Residual(la.Residual(la.Identity()), la.Identity())
    y, saved, _ = net.forward({}, {}, x)
    dx, _ = net.backward({}, dy, saved)
    np.testing.assert_array_equal(y, 3 * before[0])
    np.testing.assert_array_equal(dx, 3 * before[1])
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(dy, before[1])


def test_a_model_of_branches_trains_saves_and_loads(tmp_path, rng):
    net = la.Sequential(*many_kinds().layers, input_shape=SHAPE)
    model = xc.Model(net, "cpu", seed=1)
    before, state = model.parameters(), model.state()
    x, t = rng.standard_normal((6, *SHAPE)).astype(np.float32), np.array([0, 1, 2, 3, 0, 1])
    xc.Trainer(model, xc.optim.sgd(0.1)).step(x, t)
    assert {path for path, p in model.parameters().items() if np.array_equal(p, before[path])} == set()
    assert {path for path, s in model.state().items() if np.array_equal(s, state[path])} == set()
    model.save(tmp_path / "m.safetensors")
    again = xc.Model.load(tmp_path / "m.safetensors", "cpu")
    assert again.net == net
    for path, array in (model.parameters() | model.state()).items():
        np.testing.assert_array_equal((again.parameters() | again.state())[path], array)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
