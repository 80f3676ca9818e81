"""Every layer class with its options: shapes, gradients and state against PyTorch, and description as data."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn.layers.describe import KNOWN
from xpcnn.optim import Normal

IMAGE = (4, 7, 6)
CPU = xc.resolve_backend("cpu")


def gated():
    """Return a squeeze-and-excite gate: the image times a number for each channel, and the image again."""
    return la.Graph([
        ("conv", la.Conv2D(4, 3, padding=1), ["input"]), ("norm", la.BatchNorm(), "conv"), ("relu", la.ReLU(), "norm"),
        ("mean", la.GlobalAvgPool(), "relu"), ("tall", la.Reshape((4, 1, 1)), "mean"), ("gate", la.HardSigmoid(), "tall"),
        ("times", la.Join("multiply"), ("relu", "gate")), ("sum", la.Join("add"), ("times", "input", "gate", "input")),
    ])  # fmt: skip


def joined():
    """Return a graph in which what is joined differs in shape, comes twice, and is subtracted from itself."""
    return la.Graph((
        ("row", la.Conv2D(4, (7, 1)), "input"), ("column", la.Conv2D(1, (1, 6)), "input"),
        ("outer", la.Join("multiply"), ("column", "row")), ("less", la.Join("subtract"), ("row", "outer")),
        ("twice", la.Join("concat"), ("less", "outer", "less")), ("none", la.Join("subtract"), ("twice", "twice")),
        ("end", la.Join("add"), ("none", "twice")),
    ))  # fmt: skip


WINDOWS = {
    "Conv1D": (la.Conv1D(6, 3), (4, 9)),
    "Conv1D-options": (la.Conv1D(6, 3, stride=2, padding=(2,), dilation=2, groups=2), (4, 9)),
    "Conv1D-same": (la.Conv1D(3, 4, stride=2, padding="same", bias=False), (4, 9)),
    "Conv1D-center": (la.Conv1D(3, 4, stride=2, mode="convolution", center=(0,)), (2, 9)),
    "Conv2D": (la.Conv2D(5, 3), IMAGE),
    "Conv2D-oblong": (la.Conv2D(5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), IMAGE),
    "Conv2D-groups": (la.Conv2D(6, 3, padding=1, groups=2), IMAGE),
    "Conv2D-depthwise": (la.Conv2D(8, 3, stride=2, padding=1, groups=4, bias=False), IMAGE),
    "Conv2D-pairs": (la.Conv2D(2, 3, padding=((0, 2), (1, 0))), IMAGE),
    "Conv2D-same": (la.Conv2D(2, (4, 3), stride=(2, 3), padding="same"), IMAGE),
    "Conv2D-valid": (la.Conv2D(2, 3, padding="valid"), IMAGE),
    "Conv2D-convolution": (la.Conv2D(2, (3, 2), mode="convolution", padding=1), IMAGE),
    "Conv2D-center": (la.Conv2D(2, (3, 4), center=(2, 0)), IMAGE),
    "Conv2D-center-convolution": (la.Conv2D(2, (3, 4), stride=2, center=(2, 0), mode="convolution"), IMAGE),
    "Conv2D-1x1": (la.Conv2D(3, 1), IMAGE),
    "Conv3D": (la.Conv3D(3, 2), (2, 4, 5, 3)),
    "Conv3D-options": (la.Conv3D(4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 1), groups=2), (2, 4, 5, 3)),
    "ConvTranspose1D": (la.ConvTranspose1D(6, 3), (4, 5)),
    "ConvTranspose1D-options": (la.ConvTranspose1D(6, 3, stride=3, padding=1, output_padding=2, groups=2), (4, 5)),
    "ConvTranspose2D": (la.ConvTranspose2D(3, 3), IMAGE),
    "ConvTranspose2D-options": (la.ConvTranspose2D(6, (3, 2), (2, 3), (1, 0), (2, 1), 2, bias=False, output_padding=(1, 2)), IMAGE),
    "ConvTranspose2D-same": (la.ConvTranspose2D(3, (5, 2), stride=(2, 3), padding="same"), IMAGE),
    "ConvTranspose2D-pairs": (la.ConvTranspose2D(3, 4, stride=2, padding=((0, 1), (2, 1))), IMAGE),
    "ConvTranspose3D": (la.ConvTranspose3D(4, 2, stride=2, groups=2), (2, 3, 2, 3)),
    "MaxPool1D": (la.MaxPool1D(3, stride=2, padding=1), (4, 9)),
    "MaxPool2D": (la.MaxPool2D(2), IMAGE),
    "MaxPool2D-options": (la.MaxPool2D((3, 2), stride=(2, 1), padding=(1, 1), dilation=(2, 1)), IMAGE),
    "MaxPool2D-ceil": (la.MaxPool2D(2, ceil_mode=True), IMAGE),
    "MaxPool2D-ceil-wide": (la.MaxPool2D(3, stride=2, padding=2, ceil_mode=True), IMAGE),
    "MaxPool2D-same": (la.MaxPool2D(3, stride=2, padding="same"), IMAGE),
    "MaxPool2D-center": (la.MaxPool2D(3, stride=2, center=(0, 2)), IMAGE),
    "MaxPool2D-center-convolution": (la.MaxPool2D((2, 3), stride=1, center=(0, 2), mode="convolution"), IMAGE),
    "MaxPool3D": (la.MaxPool3D(2, stride=1), (2, 4, 5, 3)),
    "AvgPool1D": (la.AvgPool1D(3, stride=2, padding=1), (4, 9)),
    "AvgPool2D": (la.AvgPool2D(2), IMAGE),
    "AvgPool2D-options": (la.AvgPool2D((3, 2), stride=(2, 1), padding=1, count_include_pad=False), IMAGE),
    "AvgPool2D-ceil": (la.AvgPool2D(3, stride=2, padding=1, ceil_mode=True), IMAGE),
    "AvgPool2D-dilated": (la.AvgPool2D(2, stride=2, padding=1, dilation=2, ceil_mode=True), IMAGE),
    "AvgPool2D-strides-alone": (la.AvgPool2D(1, stride=2), IMAGE),
    "AvgPool3D": (la.AvgPool3D((2, 1, 3)), (2, 4, 5, 3)),
}  # fmt: skip
OTHERS = {
    "AdaptiveAvgPool2D": (la.AdaptiveAvgPool2D(3), IMAGE),
    "AdaptiveAvgPool2D-pair": (la.AdaptiveAvgPool2D((5, None)), IMAGE),
    "AdaptiveAvgPool2D-larger": (la.AdaptiveAvgPool2D((9, 1)), IMAGE),
    "GlobalAvgPool": (la.GlobalAvgPool(), IMAGE),
    "GlobalMaxPool": (la.GlobalMaxPool(), IMAGE),
    "Affine": (la.Affine(5), (7,)),
    "Affine-images": (la.Affine(5, bias=False, init=Normal(0.1)), (2, 3, 4)),
    "Flatten": (la.Flatten(), IMAGE),
    "Flatten-flat": (la.Flatten(), (5,)),
    "BatchNorm": (la.BatchNorm(), IMAGE),
    "BatchNorm-vectors": (la.BatchNorm(momentum=0.3, eps=0.1), (6,)),
    "BatchNorm-signals": (la.BatchNorm(momentum=1.0), (3, 5)),
    "LayerNorm": (la.LayerNorm(), IMAGE),
    "LayerNorm-last": (la.LayerNorm(axes=-1, eps=0.1), IMAGE),
    "LayerNorm-channels": (la.LayerNorm(axes=(1,)), IMAGE),
    "LayerNorm-any-order": (la.LayerNorm(axes=(3, 1)), IMAGE),
    "GroupNorm": (la.GroupNorm(2), IMAGE),
    "GroupNorm-one": (la.GroupNorm(1, eps=0.1), (4, 5)),
    "GroupNorm-each": (la.GroupNorm(4), IMAGE),
    "Dropout": (la.Dropout(0.0), IMAGE),
    "PadChannels": (la.PadChannels(7), IMAGE),
    "PadChannels-none": (la.PadChannels(4), IMAGE),
    "PadChannels-vectors": (la.PadChannels(7), (4,)),
    "Pad2D": (la.Pad2D(2), IMAGE),
    "Pad2D-axes": (la.Pad2D((0, 3), value=-0.5), IMAGE),
    "Pad2D-pairs": (la.Pad2D(((1, 0), (0, 2)), 1.5), IMAGE),
    "Upsample2D": (la.Upsample2D(2), IMAGE),
    "Upsample2D-oblong": (la.Upsample2D((1, 3)), IMAGE),
    "Reshape": (la.Reshape((2, 3, -1)), IMAGE),
    "Reshape-whole": (la.Reshape((4, 1, 1)), (4,)),
    "Reshape-flat": (la.Reshape((-1,)), IMAGE),
    "Scale": (la.Scale(), IMAGE),
    "Scale-channels": (la.Scale((4, 1, 1), shift=True), IMAGE),
    "Scale-columns": (la.Scale((6,), shift=True), IMAGE),
    "Scale-shift": (la.Scale((1, 7, 1), scale=False, shift=True), IMAGE),
    "Scale-vectors": (la.Scale((5,)), (5,)),
    "Graph": (la.Graph([("a", la.Conv2D(3, 1), "input"), ("b", la.Tanh(), "a")]), IMAGE),
    "Graph-gated": (gated(), IMAGE),
    "Graph-joined": (joined(), IMAGE),
    "Clip": (la.Clip(-0.5, 0.75), IMAGE),
    "Clip-low": (la.Clip(low=0.25), IMAGE),
    "Clip-high": (la.Clip(high=-0.25), IMAGE),
    "HardSigmoid": (la.HardSigmoid(), IMAGE),
    "HardSigmoid-options": (la.HardSigmoid(0.9, 0.3), IMAGE),
    "ReLU": (la.ReLU(), IMAGE),
    "ReLU6": (la.Sequential(la.Affine(40, init=Normal(2.0)), la.ReLU6()), IMAGE),
    "LeakyReLU": (la.LeakyReLU(), IMAGE),
    "LeakyReLU-steep": (la.LeakyReLU(0.3), IMAGE),
    "ELU": (la.ELU(), IMAGE),
    "ELU-alpha": (la.ELU(0.4), IMAGE),
    "SELU": (la.SELU(), IMAGE),
    "GELU": (la.GELU(), IMAGE),
    "GELU-tanh": (la.GELU("tanh"), IMAGE),
    "SiLU": (la.SiLU(), IMAGE),
    "Softplus": (la.Softplus(), IMAGE),
    "Softplus-options": (la.Softplus(beta=3.0, threshold=2.0), IMAGE),
    "HardSwish": (la.HardSwish(), IMAGE),
    "Sigmoid": (la.Sigmoid(), IMAGE),
    "Tanh": (la.Tanh(), IMAGE),
    "Softmax": (la.Softmax(), IMAGE),
    "Softmax-channels": (la.Softmax(axis=1), IMAGE),
    "LogSoftmax": (la.LogSoftmax(), (5,)),
    "LogSoftmax-rows": (la.LogSoftmax(axis=-2), IMAGE),
    "Identity": (la.Identity(), IMAGE),
    "Sequential": (la.Sequential(la.Conv2D(3, 2), la.Tanh(), la.Flatten(), la.Affine(3)), IMAGE),
    "Sequential-empty": (la.Sequential(), IMAGE),
    "Sequential-untrained": (la.Sequential(la.Tanh(), la.Sequential(la.Sigmoid())), IMAGE),
    "Residual": (la.Residual(la.Sequential(la.Conv2D(4, 3, padding=1, bias=False), la.BatchNorm())), IMAGE),
    "Residual-shortcut": (la.Residual(la.Conv2D(3, 3, stride=2), la.Sequential(la.Conv2D(3, 1, stride=2), la.MaxPool2D(2, stride=1, ceil_mode=True))), (4, 8, 9)),
    "Residual-bare": (la.Residual(la.Tanh()), IMAGE),
    "Parallel": (la.Parallel([la.Conv2D(2, 1), la.Identity(), la.Sequential(la.BatchNorm(), la.Conv2D(3, 3, padding=1))]), IMAGE),
    "Parallel-vectors": (la.Parallel([la.GlobalAvgPool(), la.GlobalMaxPool(), la.Affine(2)]), IMAGE),
    "Parallel-add": (la.Parallel((la.Conv2D(2, 1), ("wide", la.Conv2D(2, 3, padding=1)), la.Conv2D(2, 1)), merge="add"), IMAGE),
    "Parallel-one": (la.Parallel([la.Conv2D(2, 1)]), IMAGE),
    "Parallel-nested": (la.Parallel([("a", la.Parallel([la.Affine(2), la.Affine(3)])), ("b", la.Residual(la.Sequential(la.Flatten(), la.Affine(6)), la.Affine(6)))]), (2, 3)),
}  # fmt: skip
CASES = WINDOWS | OTHERS


@pytest.fixture
def mirror():
    return pytest.importorskip("torch_mirror")


def classes_of(layer, shape):
    """Yield the class of a layer and of those inside it."""
    yield type(layer)
    for child in layer.children(shape):
        yield from classes_of(child.layer, child.input_shape)


def test_the_cases_and_the_mirror_know_every_layer(mirror):
    known = {name for name, cls in KNOWN.items() if issubclass(cls, la.Layer)}
    assert {cls.__name__ for layer, shape in CASES.values() for cls in classes_of(layer, shape)} == known
    assert set(mirror.RULES) == known
    with pytest.raises(NotImplementedError, match="Unheard"):
        mirror.run(type("Unheard", (la.Identity,), {})(), {}, {}, None)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_state_are_pytorchs(mirror, case, dtype, train):
    mirror.check(*CASES[case], CPU, dtype, train=train)


@pytest.mark.parametrize("case", CASES)
def test_the_output_shape_is_the_forwards(case, rng):
    layer, shape = CASES[case]
    params, state = (draw(xc.random.Key(0), shape) for draw in (layer.initial_parameters, layer.initial_state))
    y, _, _ = layer.forward(params, state, rng.standard_normal((2, *shape)))
    assert y.shape == (2, *layer.output_shape(shape))
    assert all(type(n) is int for n in layer.output_shape(shape))


@pytest.mark.parametrize("case", CASES)
def test_a_layer_survives_json(case):
    layer, _ = CASES[case]
    again = la.from_config(json.loads(json.dumps(la.to_config(layer), allow_nan=False)))
    assert again == layer
    assert type(again) is type(layer)


@pytest.mark.parametrize("case", CASES)
def test_a_layer_cannot_be_changed_and_can_be_a_key(case):
    layer, _ = CASES[case]
    with pytest.raises(AttributeError):
        layer.kind = "other"
    assert {layer: 1}[la.from_config(la.to_config(layer))] == 1


@pytest.mark.parametrize(
    ("layer", "shape", "weight", "bias", "fan_in"),
    [
        (la.Conv1D(6, 3, groups=2), (4, 9), (6, 2, 3), (6,), 6),
        (la.Conv2D(6, (3, 5)), (4, 9, 9), (6, 4, 3, 5), (6,), 60),
        (la.Conv2D(8, 3, groups=4), (4, 9, 9), (8, 1, 3, 3), (8,), 9),
        (la.Conv3D(5, 2, bias=False), (3, 4, 4, 4), (5, 3, 2, 2, 2), None, 24),
        (la.ConvTranspose1D(6, 3, groups=2), (4, 9), (4, 3, 3), (6,), 6),
        (la.ConvTranspose2D(6, (3, 5), bias=False), (4, 9, 9), (4, 6, 3, 5), None, 60),
        (la.ConvTranspose3D(6, 2), (3, 4, 4, 4), (3, 6, 2, 2, 2), (6,), 24),
        (la.Affine(6), (4, 3, 2), (24, 6), (6,), 24),
        (la.Affine(6, bias=False), (4,), (4, 6), None, 4),
    ],
)
def test_weights_have_their_shapes_and_hes_spread(layer, shape, weight, bias, fan_in):
    described = layer.parameters(shape)
    assert {path: p.shape for path, p in described.items()} == {"weight": weight} | ({"bias": bias} if bias else {})
    assert layer.state(shape) == {}
    assert layer.parameter_count(shape) == np.prod(weight) + (bias[0] if bias else 0)
    drawn = np.concatenate([layer.initial_parameters(xc.random.Key(n), shape)["weight"].ravel() for n in range(50)])
    assert drawn.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    assert abs(drawn.mean()) < 4 * drawn.std() / drawn.size**0.5
    if bias:
        np.testing.assert_array_equal(layer.initial_parameters(xc.random.Key(0), shape)["bias"], np.zeros(bias))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (la.BatchNorm(), (4, 3, 2), (4,)),
        (la.BatchNorm(), (4,), (4,)),
        (la.GroupNorm(2), (4, 3), (4,)),
        (la.LayerNorm(), (4, 3, 2), (4, 3, 2)),
        (la.LayerNorm(axes=(1, 3)), (4, 3, 2), (4, 2)),
        (la.LayerNorm(axes=(-1, -2)), (4, 3, 2), (3, 2)),
    ],
)
def test_norms_begin_as_the_plain_normalisation(layer, shape, expected):
    start = layer.initial_parameters(xc.random.Key(0), shape)
    assert list(start) == ["gamma", "beta"]
    np.testing.assert_array_equal(start["gamma"], np.ones(expected))
    np.testing.assert_array_equal(start["beta"], np.zeros(expected))
    statistics = layer.initial_state(xc.random.Key(0), shape)
    if isinstance(layer, la.BatchNorm):
        assert list(statistics) == ["mean", "var"]
        np.testing.assert_array_equal(statistics["mean"], np.zeros(expected))
        np.testing.assert_array_equal(statistics["var"], np.ones(expected))
    else:
        assert statistics == {}


def test_batch_norm_keeps_its_statistics_in_prediction_and_moves_them_in_training(rng):
    layer, x = la.BatchNorm(momentum=0.25), rng.standard_normal((5, 2, 3)) + 4
    params, state = layer.initial_parameters(xc.random.Key(0), (2, 3)), {"mean": np.ones(2), "var": np.full(2, 3.0)}
    _, _, kept = layer.forward(params, state, x)
    _, _, moved = layer.forward(params, state, x, train=True)
    for name, statistic in (("mean", x.mean((0, 2))), ("var", x.var((0, 2), ddof=1))):
        np.testing.assert_array_equal(kept[name], state[name])
        np.testing.assert_allclose(moved[name], 0.75 * state[name] + 0.25 * statistic, rtol=1e-12)
    np.testing.assert_array_equal(state["mean"], np.ones(2))  # what was given is as it was


def test_what_is_not_said_is_what_pytorch_takes():
    """Options of the same name have the defaults of PyTorch's modules."""
    nn = pytest.importorskip("torch").nn
    named = {"Affine": "Linear", "HardSwish": "Hardswish", "BatchNorm": "BatchNorm2d"}
    compared = set()
    for name in KNOWN:
        theirs = getattr(nn, named.get(name, f"{name[:-1]}d" if name.endswith("D") else name), None)
        if theirs is None:
            continue
        ours, theirs = inspect.signature(KNOWN[name]).parameters, inspect.signature(theirs).parameters
        for option in ours.keys() & theirs.keys() - {"init"}:
            found, expected = ours[option].default, theirs[option].default
            assert found == expected, f"{name}'s {option}"
            compared.add(option)
    wanted = "stride padding output_padding dilation groups bias ceil_mode count_include_pad momentum eps negative_slope alpha"
    assert compared >= {*wanted.split(), "approximate", "beta", "threshold"}
    assert la.Dropout().rate == inspect.signature(nn.Dropout).parameters["p"].default
