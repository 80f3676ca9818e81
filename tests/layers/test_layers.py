"""Layers: shapes, initial values, gradients of whole networks, and description as data."""

from __future__ import annotations

import json

import emulator
import numpy as np
import oracles
import pytest

from xpcnn import XpcnnError, models, ops, optim
from xpcnn.layers import Affine, Conv2D, Flatten, MaxPool2D, ReLU, Sequential, from_config, to_config
from xpcnn.layers.fused import ConvReLUPool
from xpcnn.random import Key

NETS = {
    "fused": Sequential(Conv2D(3, 3), ReLU(), MaxPool2D(2), Affine(4), ReLU(), Affine(3)),
    "not-fused": Sequential(Conv2D(3, 3, padding=1), MaxPool2D(3, stride=2), ReLU(), Flatten(), Affine(3)),
    "two-fused": Sequential(Conv2D(2, 3, padding="same", stride=2), ReLU(), MaxPool2D(2), Conv2D(4, 2, bias=False), ReLU(), Affine(3)),
    "nested": Sequential(("stem", Sequential(Conv2D(2, 3), ReLU())), ("body", Sequential(Conv2D(4, 3, groups=2), ReLU())), Affine(3, bias=False)),
}  # fmt: skip
SHAPE = (2, 9, 8)


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_whole_networks(arrays, name, rng):
    net = NETS[name]
    host = net.initial_parameters(Key(1), SHAPE)
    host = {path: p + 0.1 * rng.standard_normal(p.shape) for path, p in host.items()}
    x, t = rng.standard_normal((4, *SHAPE)), np.array([0, 1, 2, 1])
    params = {path: arrays(p) for path, p in host.items()}
    y, saved, _ = net.forward(params, {}, arrays(x), train=True)
    loss, loss_saved = ops.softmax_cross_entropy(y, arrays(t))
    dx, grads = net.backward(params, ops.softmax_cross_entropy_backward(loss_saved), saved)
    assert list(grads) == list(params)

    def value(params, x):
        with emulator.paused():
            return float(ops.softmax_cross_entropy(net.forward(params, {}, x)[0], t)[0])

    arrays.check(loss, value(host, x), y)
    arrays.check(dx, oracles.numerical_gradient(lambda a: value(host, a), x), y, 1e-7)
    for path, p in host.items():
        numeric = oracles.numerical_gradient(lambda a, path=path: value(host | {path: a}, x), p)
        arrays.check(grads[path], numeric, y, 1e-7)
    none, without = net.backward(params, ops.softmax_cross_entropy_backward(loss_saved), saved, need_dx=False)
    assert none is None
    for path, grad in without.items():
        arrays.check(grad, arrays.backend.to_numpy(grads[path]), y, 1e-12)


@pytest.mark.parametrize("name", ["simple_convnet", "lenet5"])
def test_every_backend_has_numpys_gradients_to_1e_10(arrays, name, rng):
    """Float64, relative to each gradient's own largest value, through every op the networks are made of."""
    net = getattr(models, name)()
    host = net.initial_parameters(Key(2), (1, 28, 28))
    x, t = rng.random((4, 1, 28, 28)), np.array([3, 1, 4, 1])

    def gradients(make):
        params = {path: make(p) for path, p in host.items()}
        y, saved, _ = net.forward(params, {}, make(x), train=True)
        _, loss_saved = ops.softmax_cross_entropy(y, make(t))
        dx, grads = net.backward(params, ops.softmax_cross_entropy_backward(loss_saved), saved)
        return grads | {"x": dx}

    expected = gradients(np.array)
    for path, found in gradients(arrays).items():
        scale = np.abs(expected[path]).max()
        assert scale > 0
        np.testing.assert_allclose(
            arrays.backend.to_numpy(found), expected[path], rtol=0, atol=1e-10 * scale, err_msg=path
        )


def test_no_gradient_is_computed_for_the_first_layers_input(monkeypatch, rng):
    asked = []
    real = ops.conv2d_backward
    monkeypatch.setattr(
        ops,
        "conv2d_backward",
        lambda dy, saved, *, need_dx: (asked.append(need_dx), real(dy, saved, need_dx=need_dx))[1],
    )
    net = Sequential(ReLU(), Conv2D(2, 3), ReLU(), Conv2D(2, 3))
    params = net.initial_parameters(Key(0), (1, 7, 7))
    y, saved, _ = net.forward(params, {}, rng.standard_normal((1, 1, 7, 7)))
    net.backward(params, y, saved, need_dx=False)
    assert asked == [True, False]


def test_networks_are_computed_fused_only_where_that_is_the_same():
    def steps(*layers):
        return [type(layer) for _, layer in Sequential(*layers)._steps]

    assert steps(Conv2D(2, 3), ReLU(), MaxPool2D(2), Affine(2)) == [ConvReLUPool, Affine]
    assert steps(Conv2D(2, 3), ReLU(), MaxPool2D(2, stride=2)) == [ConvReLUPool]
    for conv in (Conv2D(2, 3, dilation=2), Conv2D(2, 3, groups=2)):
        assert ConvReLUPool not in steps(conv, ReLU(), MaxPool2D(2))
    for pool in (
        MaxPool2D(3, stride=2),
        MaxPool2D(2, padding=1),
        MaxPool2D(2, dilation=2),
        MaxPool2D(2, ceil_mode=True),
    ):
        assert ConvReLUPool not in steps(Conv2D(2, 3), ReLU(), pool)


def test_many_channels_are_not_fused_and_give_the_same(rng):
    layers = Conv2D(4, 3), ReLU(), MaxPool2D(2)
    few, many = rng.standard_normal((2, 3, 9, 9)), rng.standard_normal((2, 64, 9, 9))
    for x in (few, many):
        net = Sequential(*layers)
        params = net.initial_parameters(Key(0), x.shape[1:])
        y, saved, _ = net.forward(params, {}, x)
        expected = x
        for layer in layers:
            own = {"weight": params["conv1/weight"], "bias": params["conv1/bias"]} if isinstance(layer, Conv2D) else {}
            expected = layer.forward(own, {}, expected)[0]
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        assert net.backward(params, y, saved)[0].shape == x.shape


def test_layers_are_named_by_kind_and_number():
    net = Sequential(Conv2D(2, 3), ReLU(), Conv2D(2, 3), ("head", Affine(2)), Affine(2))
    assert [name for name, _ in net.layers] == ["conv1", "relu1", "conv2", "head", "affine1"]
    assert Sequential([Conv2D(2, 3), ReLU()]) == Sequential(Conv2D(2, 3), ReLU())


def test_initial_parameters_depend_on_seed_and_path_alone():
    first, second = (models.lenet5().initial_parameters(Key(seed), (1, 28, 28)) for seed in (0, 0))
    for path, p in first.items():
        np.testing.assert_array_equal(p, second[path])
    short = Sequential(Conv2D(6, 5, padding=2)).initial_parameters(Key(0), (1, 28, 28))
    np.testing.assert_array_equal(short["conv1/weight"], first["conv1/weight"])
    other = models.lenet5().initial_parameters(Key(1), (1, 28, 28))
    assert not np.array_equal(other["conv1/weight"], first["conv1/weight"])
    assert other["conv1/weight"].std() == pytest.approx((2 / 25) ** 0.5, rel=0.25)


@pytest.mark.parametrize(
    ("net", "shape", "says"),
    [
        (Sequential(Conv2D(2, 9)), (1, 5, 5), ["conv1", "(1, 5, 5)", "(9, 9)"]),
        (Sequential(Affine(3), ("second", Conv2D(2, 3))), (1, 5, 5), ["second", "(3,)"]),
        (Sequential(Conv2D(4, 3, groups=2)), (3, 5, 5), ["conv1", "groups=2", "3 channels"]),
        (Sequential(("a", Sequential(("b", MaxPool2D(6))))), (1, 5, 5), ["layer a", "layer b", "(1, 5, 5)"]),
    ],
)
def test_what_does_not_fit_names_layer_and_shapes(net, shape, says):
    with pytest.raises(XpcnnError) as caught:
        net.output_shape(shape)
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "children",
    [[3], [("a/b", ReLU())], [("a", ReLU()), ("a", ReLU())], [("", ReLU())], [("a", 3)], [("relu1", ReLU()), ReLU()]],
)
def test_wrong_children_are_refused(children):
    with pytest.raises(XpcnnError):
        Sequential(*children)


@pytest.mark.parametrize("name", [*NETS, "lenet5", "simple_convnet"])
def test_a_network_survives_json(name):
    net = NETS[name] if name in NETS else getattr(models, name)()
    assert from_config(json.loads(json.dumps(to_config(net)))) == net


def test_wrong_descriptions_are_refused():
    for config in (
        {"type": "Conv4D"},
        {"type": "Conv2D"},
        {"type": "Affine", "out": 3, "depth": 1},
        {"type": "Sequential"},
    ):
        with pytest.raises(XpcnnError):
            from_config(config)


def test_the_books_network_has_the_books_parameters():
    net = models.simple_convnet(init=optim.Normal(0.01))
    counts = {path: p.shape for path, p in net.parameters((1, 28, 28)).items()}
    assert counts == {
        "conv1/weight": (30, 1, 5, 5), "conv1/bias": (30,), "affine1/weight": (4320, 100), "affine1/bias": (100,),
        "affine2/weight": (100, 10), "affine2/bias": (10,),
    }  # fmt: skip
    assert net.parameter_count((1, 28, 28)) == 433_890
    drawn = net.initial_parameters(Key(0), (1, 28, 28))["affine1/weight"]
    assert drawn.std() == pytest.approx(0.01, rel=0.01)


def test_lenet5_has_its_paper_parameters():
    """C1 156, F6 10,164, C5 48,120 as the paper counts; C3 is fully connected here (2,416), the output affine (850)."""
    counts = [parameter.shape for parameter in models.lenet5((1, 32, 32)).parameters((1, 32, 32)).values()]
    assert sum(int(np.prod(shape)) for shape in counts) == 156 + 2416 + 48_120 + 10_164 + 850
    assert models.lenet5((1, 28, 28)).parameter_count((1, 28, 28)) == 156 + 2416 + 48_120 + 10_164 + 850
