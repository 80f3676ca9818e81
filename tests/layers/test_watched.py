"""Watched layers give what PyTorch's autograd gives at every layer, and change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import layers, models
from xpcnn.layers import watched
from xpcnn.layers.base import leaves
from xpcnn.random import Key

GATED = layers.Graph([
    ("conv", layers.Conv2D(4, 3, padding=1), "input"), ("norm", layers.BatchNorm(), "conv"), ("relu", layers.ReLU(), "norm"),
    ("mean", layers.GlobalAvgPool(), "relu"), ("tall", layers.Reshape((4, 1, 1)), "mean"), ("gate", layers.HardSigmoid(), "tall"),
    ("times", layers.Join("multiply"), ("relu", "gate")), ("all", layers.Join("concat"), ("times", "relu", "input")),
    ("end", layers.Affine(3), "all"),
])  # fmt: skip
NETWORKS = {
    "graph": (layers.Sequential(GATED, layers.Identity()), (3, 8, 8)),
    "simple_convnet": (models.simple_convnet((2, 8, 8), 3, filters=4, kernel_size=3, hidden=5), (2, 8, 8)),
    "resnet20": (models.resnet20((3, 8, 8), 3), (3, 8, 8)),
    "mobilenet_v2": (models.mobilenet_v2((3, 32, 32), 3, width=0.25, dropout=0.0), (3, 32, 32)),
    "densenet_bc": (models.densenet_bc((3, 8, 8), 3, depth=10, growth=4), (3, 8, 8)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """Return a network, its input's shape and drawn parameters, state, batch and upstream gradient."""
    mirror = pytest.importorskip("torch_mirror")
    net, shape = NETWORKS[request.param]
    rng = np.random.default_rng(1)
    params, state = mirror.draw(net, shape)
    return net, shape, params, state, rng.standard_normal((3, *shape)), rng.standard_normal((3, 3))


@pytest.mark.parametrize("train", [False, True])
def test_every_output_and_gradient_is_pytorchs(monkeypatch, network, train):
    from torch_watched import watch

    net, shape, params, state, x, dy = network
    outputs, gradients, dx = watch(monkeypatch, net, shape, params, state, x, dy, train=train)
    found = watched.gradients(net, shape, params, state, x, lambda _: dy, train=train)
    alone = watched.outputs(net, shape, params, state, x, train=train)
    order = [placed.path for placed in leaves(net, shape)]
    assert list(found.outputs) == list(found.gradients) == list(alone) == order
    for path in order:
        np.testing.assert_array_equal(alone[path], found.outputs[path])
        _near(found.outputs[path], outputs[path])
        _near(found.gradients[path], gradients[path])
    _near(found.dx, dx)
    np.testing.assert_array_equal(found.y, found.outputs[order[-1]])
    usual = net.backward(params, dy, net.forward(params, state, x, train=train)[1])[1]
    assert list(found.parameters) == list(usual)
    for path, gradient in usual.items():
        _near(found.parameters[path], gradient)


def test_on_every_backend(arrays, rng):
    """The gradient at the ReLU is affine's: dy W^T; at the convolution it is cut where ReLU is 0."""
    net = layers.Sequential(layers.Conv2D(2, 1, bias=False), layers.ReLU(), layers.Affine(2, bias=False))
    x, weight = rng.standard_normal((4, 1, 2, 2)), rng.standard_normal((2, 1, 1, 1))
    to = rng.standard_normal((8, 2))
    params = {"conv1/weight": arrays(weight, "float32"), "affine1/weight": arrays(to, "float32")}
    found = watched.gradients(net, (1, 2, 2), params, {}, arrays(x, "float32"), lambda y: y)
    conv = x * weight.reshape(1, 2, 1, 1)
    y = np.maximum(conv, 0).reshape(4, 8) @ to
    at_relu = (y @ to.T).reshape(4, 2, 2, 2)
    for path, expected in {"conv1": conv, "relu1": np.maximum(conv, 0), "affine1": y}.items():
        arrays.check(found.outputs[path], expected, like=params["conv1/weight"])
    for path, expected in {"conv1": at_relu * (conv > 0), "relu1": at_relu, "affine1": y}.items():
        arrays.check(found.gradients[path], expected, like=params["conv1/weight"])
    arrays.check(found.dx, (at_relu * (conv > 0) * weight.reshape(1, 2, 1, 1)).sum(1, keepdims=True), like=found.dx)


def test_dropout_falls_as_in_the_step_of_the_same_key(rng):
    net = layers.Sequential(layers.Affine(50), layers.Dropout(0.5))
    params = {"affine1/weight": rng.standard_normal((5, 50)), "affine1/bias": np.zeros(50)}
    x = rng.standard_normal((6, 5))
    found = watched.outputs(net, (5,), params, {}, x, train=True, key=Key(3))
    np.testing.assert_array_equal(found["dropout1"], net.forward(params, {}, x, train=True, key=Key(3))[0])
    assert (found["dropout1"] == 0).any()
    assert (found["affine1"] != 0).all()
    assert (watched.outputs(net, (5,), params, {}, x)["dropout1"] != 0).all()


def test_the_first_layer_that_is_no_number_is_found(rng):
    """What training asks: of three layers whose outputs are NaN, the first in their order is the cause."""
    net = NETWORKS["resnet20"][0]
    params = net.initial_parameters(Key(0), (3, 8, 8))
    state = net.initial_state(Key(0), (3, 8, 8))
    paths = [placed.path for placed in leaves(net, (3, 8, 8))]
    broken = next(path for path in paths[20:] if f"{path}/weight" in params)
    params[f"{broken}/weight"] = np.full_like(params[f"{broken}/weight"], np.nan)
    found = watched.outputs(net, (3, 8, 8), params, state, rng.standard_normal((2, 3, 8, 8)), train=True)
    wrong = [path for path, output in found.items() if not np.isfinite(output).all()]
    assert wrong[0] == broken
    assert len(wrong) > 1


def _near(found, expected):
    scale = max(1e-3, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * scale)
