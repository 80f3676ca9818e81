"""What does not fit is refused with the layer, what it takes and what it got; nothing else than XpcnnError comes out."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import XpcnnError
from xpcnn import layers as la
from xpcnn.random import Key

IMAGE = (4, 7, 6)


def message(layer, shape):
    with pytest.raises(XpcnnError) as caught:
        layer.output_shape(shape)
    return str(caught.value)


IMAGES = {
    1: [la.Conv1D(2, 2), la.ConvTranspose1D(2, 2), la.MaxPool1D(2), la.AvgPool1D(2)],
    2: [la.Conv2D(2, 2), la.ConvTranspose2D(2, 2), la.MaxPool2D(2), la.AvgPool2D(2), la.AdaptiveAvgPool2D(2), la.GlobalAvgPool(), la.GlobalMaxPool()],
    3: [la.Conv3D(2, 2), la.ConvTranspose3D(2, 2), la.MaxPool3D(2), la.AvgPool3D(2)],
}  # fmt: skip


@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (4, 5, 5), (4, 5, 5, 5), (4, 5, 5, 5, 5)], ids=str)
@pytest.mark.parametrize("axes", IMAGES)
def test_images_of_another_rank_are_refused(axes, shape):
    takes = {1: "(C, L)", 2: "(C, H, W)", 3: "(C, D, H, W)"}[axes]
    for layer in IMAGES[axes]:
        if len(shape) == axes + 1:
            layer.output_shape(shape)
            continue
        text = message(layer, shape)
        for words in (type(layer).__name__, takes, f"got the shape {shape}"):
            assert words in text


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (la.Conv2D(4, 3, groups=3), IMAGE, ["Conv2D", "groups=3", "4 channels", "4 filters", "(4, 7, 6)"]),
        (la.Conv2D(6, 3, groups=4), IMAGE, ["Conv2D", "groups=4", "4 channels", "6 filters"]),
        (la.Conv1D(5, 3, groups=2), (4, 9), ["Conv1D", "groups=2", "5 filters"]),
        (la.ConvTranspose2D(5, 3, groups=2), IMAGE, ["ConvTranspose2D", "groups=2", "5 filters", "(4, 7, 6)"]),
        (la.Conv2D(0, 3), IMAGE, ["filters", "1 or more", "0"]),
        (la.Conv2D(2, 3, groups=0), IMAGE, ["groups", "1 or more"]),
        (la.Conv2D(2, (3, 9)), IMAGE, ["kernel (3, 9)", "(7, 6)"]),
        (la.Conv2D(2, 3, dilation=4), IMAGE, ["kernel (3, 3)", "(9, 9)", "(7, 6)"]),
        (la.Conv2D(2, (3, 3, 3)), IMAGE, ["kernel_size", "(3, 3, 3)"]),
        (la.Conv2D(2, 3, stride=0), IMAGE, ["stride", "0"]),
        (la.Conv2D(2, 3, padding="full"), IMAGE, ["padding", "'full'"]),
        (la.Conv2D(2, 3, center=(3, 0)), IMAGE, ["center (3, 0)", "(3, 3)"]),
        (la.Conv2D(2, 3, center=(1, 1), padding=1), IMAGE, ["center", "padding"]),
        (la.Conv2D(2, 3, mode="correlation"), IMAGE, ["mode", "'correlation'"]),
        (la.Conv3D(2, 3), (1, 5, 2, 5), ["kernel (3, 3, 3)", "(5, 2, 5)"]),
        (la.ConvTranspose2D(2, 3, padding=9), IMAGE, ["(7, 6)", "padding 9"]),
        (la.ConvTranspose2D(2, 3, output_padding=1), IMAGE, ["output_padding", "stride"]),
        (la.MaxPool2D(8), IMAGE, ["kernel (8, 8)", "(7, 6)"]),
        (la.MaxPool2D(2, padding=2), IMAGE, ["padding", "2"]),
        (la.AvgPool1D(8), (4, 7), ["kernel (8,)", "(7,)"]),
        (la.AdaptiveAvgPool2D(0), IMAGE, ["output_size", "0"]),
        (la.AdaptiveAvgPool2D((2, 2, 2)), IMAGE, ["output_size", "(2, 2, 2)"]),
        (la.Affine(3), (), ["Affine", "()"]),
        (la.Affine(0), (4,), ["out", "1 or more", "0"]),
        (la.Affine(2.5), (4,), ["out", "2.5"]),
        (la.BatchNorm(), (), ["BatchNorm", "()"]),
        (la.GroupNorm(2), (), ["GroupNorm", "()"]),
        (la.GroupNorm(3), IMAGE, ["GroupNorm", "groups=3", "4 channels", "(4, 7, 6)"]),
        (la.GroupNorm(0), IMAGE, ["groups", "0"]),
        (la.LayerNorm(axes=0), IMAGE, ["LayerNorm", "axis 0", "batch"]),
        (la.LayerNorm(axes=(1, -4)), IMAGE, ["LayerNorm", "axis 0", "batch"]),
        (la.LayerNorm(axes=4), IMAGE, ["axes", "4"]),
        (la.LayerNorm(axes=(1, 1)), IMAGE, ["axes", "(1, 1)"]),
        (la.LayerNorm(), (), ["axes"]),
        (la.Softmax(axis=0), IMAGE, ["Softmax", "axis 0", "batch"]),
        (la.LogSoftmax(axis=-4), IMAGE, ["LogSoftmax", "axis", "-4", "batch"]),
        (la.Softmax(axis=4), IMAGE, ["axis", "4"]),
        (la.PadChannels(3), IMAGE, ["PadChannels(3)", "(4, 7, 6)"]),
        (la.PadChannels(3), (), ["PadChannels(3)", "()"]),
        (la.Dropout(1.0), IMAGE, ["Dropout", "rate", "1.0"]),
        (la.Dropout(-0.1), IMAGE, ["Dropout", "rate", "-0.1"]),
        (la.Dropout(float("nan")), IMAGE, ["Dropout", "rate", "nan"]),
    ],
)  # fmt: skip
def test_options_and_shapes_that_do_not_fit_are_named(layer, shape, says):
    text = message(layer, shape)
    for words in says:
        assert words in text
    in_a_network = message(la.Sequential(("first", la.Identity()), ("odd", layer)), shape)
    assert f"layer odd does not fit its input {shape}" in in_a_network
    assert text in in_a_network


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (la.Residual(la.Conv2D(4, 3)), ["added", "body makes (4, 5, 4)", "shortcut makes (4, 7, 6)"]),
        (la.Residual(la.Flatten(), la.GlobalAvgPool()), ["added", "body makes (168,)", "shortcut makes (4,)"]),
        (
            la.Parallel([la.Conv2D(1, 1), ("half", la.MaxPool2D(2)), la.Conv2D(2, 1)]),
            ["joined along the channels", "of (4, 7, 6)", "conv1 makes (1, 7, 6)", "half makes (4, 3, 3)", "conv2 makes (2, 7, 6)"],
        ),
        (la.Parallel([la.Identity(), la.Flatten()]), ["joined", "identity1 makes (4, 7, 6)", "flatten1 makes (168,)"]),
        (la.Parallel([la.Conv2D(2, 1), la.Conv2D(3, 1)], merge="add"), ["added", "conv1 makes (2, 7, 6)", "conv2 makes (3, 7, 6)"]),
    ],
)  # fmt: skip
def test_branches_that_do_not_match_are_listed_with_their_shapes(layer, says):
    text = message(layer, IMAGE)
    for words in says:
        assert words in text


def test_a_fault_deep_inside_names_every_layer_on_the_way():
    inner = la.Parallel([("a", la.Identity()), ("b", la.Sequential(la.ReLU(), la.Conv2D(4, 8)))])
    net = la.Sequential(("stem", la.Conv2D(4, 1)), ("tail", la.Residual(inner)))
    text = message(net, IMAGE)
    order = [text.index(words) for words in ("layer tail", "layer body", "layer b does", "layer conv1", "(8, 8)")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    "make",
    [
        lambda: la.Parallel([]),
        lambda: la.Parallel(la.ReLU()),
        lambda: la.Parallel([la.ReLU(), 3]),
        lambda: la.Parallel([la.ReLU()], merge="multiply"),
        lambda: la.Parallel([("a", la.ReLU()), ("a", la.ReLU())]),
        lambda: la.Parallel([("a/b", la.ReLU())]),
    ],
)
def test_branches_that_are_none_are_refused(make):
    with pytest.raises(XpcnnError):
        make()


@pytest.mark.parametrize("value", [3, None, "relu", [la.ReLU()]], ids=repr)
def test_a_residual_is_made_of_layers(value):
    for arguments in ((value,), (la.ReLU(), value)):
        with pytest.raises(XpcnnError):
            la.Residual(*arguments).output_shape(IMAGE)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (la.Softmax(axis=3), "axis"),
        (la.LogSoftmax(axis=-4), "axis"),
        (la.LeakyReLU("x"), "negative_slope"),
        (la.ELU(alpha="x"), "alpha"),
        (la.GELU("exact"), "'exact'"),
        (la.Softplus(beta=0), "beta"),
        (la.BatchNorm(momentum=3), "momentum"),
        (la.GroupNorm(2, eps=-1), "eps"),
    ],
)
def test_options_that_no_shape_depends_on_are_refused_when_a_model_is_made(layer, says):
    with pytest.raises(XpcnnError, match=says):
        layer.output_shape((4, 7))
    with pytest.raises(XpcnnError, match=rf"layer {layer.kind}1 .*{says}"):
        la.Sequential(layer).output_shape((4, 7))


def test_what_an_op_complains_of_in_forward_names_the_layer():
    net = la.Sequential(("first", la.Sequential(la.Flatten(), ("bn", la.BatchNorm()))))
    params, state = (draw(Key(0), (3,)) for draw in (net.initial_parameters, net.initial_state))
    with pytest.raises(XpcnnError, match=r"layer first: layer bn: batch_norm cannot train on x of shape \(1, 3\)"):
        net.forward(params, state, np.ones((1, 3)), train=True)
