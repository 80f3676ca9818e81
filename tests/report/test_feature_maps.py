"""The drawn feature maps: the right layers, their true range, and the right colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import xpcnn as xc
from xpcnn import layers
from xpcnn.report import draw_feature_maps


def picture_of(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def one_conv(weight, channels=1, size=8):
    net = layers.Sequential(layers.Conv2D(len(weight), 1, bias=False), input_shape=(channels, size, size))
    model = xc.Model(net, "cpu")
    model.load_parameters({"conv1/weight": np.reshape(weight, (len(weight), channels, 1, 1))})
    return model


def reddish(picture):
    return (picture[..., 0] > 90) & (picture[..., 1] < 60)


def bluish(picture):
    return (picture[..., 2] > 80) & (picture[..., 0] < 60) & (picture[..., 1] < 80)


def test_what_is_above_zero_is_red_and_below_blue(tmp_path):
    image = np.ones((1, 8, 8), dtype=np.float32)
    (said,) = draw_feature_maps(tmp_path / "maps.png", one_conv([1.0, -1.0, 0.0]), image)
    assert str(said) == "conv1: 3 maps of 8x8, from -1 to 1"
    maps = picture_of(tmp_path / "maps.png")[-100:, : 10 * 100]  # without the bar of colours
    red, blue = np.argwhere(reddish(maps)), np.argwhere(bluish(maps))
    assert len(red) == pytest.approx(len(blue), rel=0.05)
    assert len(red) > 3000
    assert red[:, 1].max() < blue[:, 1].min()  # the first map, then the second


def test_a_map_lies_as_the_image_does(tmp_path):
    image = np.zeros((1, 8, 8), dtype=np.float32)
    image[0, 0, 6] = 1
    draw_feature_maps(tmp_path / "maps.png", one_conv([1.0]), image)
    maps = picture_of(tmp_path / "maps.png")[:, :1000]
    (top, left), (bottom, right) = np.argwhere(reddish(maps)).min(axis=0), np.argwhere(reddish(maps)).max(axis=0)
    assert (bottom - top) == pytest.approx(right - left, abs=3)  # one pixel
    frame = np.argwhere((picture_of(tmp_path / "maps.png") != 255).any(axis=2))
    assert left > frame[:, 1].min() + 40  # in the right part of the map


def test_convolutions_by_default_or_layers_by_name(tmp_path, rng):
    model = xc.Model(xc.models.lenet5(), "cpu", seed=0)
    image = rng.integers(0, 255, (1, 28, 28)).astype(np.uint8)
    drawn = draw_feature_maps(tmp_path / "maps.png", model, image)
    assert [(d.layer, d.maps, d.of, d.size) for d in drawn] == [("conv1", 6, 6, (28, 28)), ("conv2", 16, 16, (10, 10))]
    (pool,) = draw_feature_maps(tmp_path / "maps.png", model, image, ["pool2"])
    logits = model.predict(image[None])
    assert (pool.layer, pool.size) == ("pool2", (5, 5))
    assert pool.low >= 0
    assert np.isfinite(logits).all()


def test_of_many_maps_and_layers_the_first_are_drawn_and_it_is_said(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("xpcnn.report.feature_maps.MOST_LAYERS", 7)
    blocks = [layers.Conv2D(130, 1) for _ in range(9)]
    model = xc.Model(layers.Sequential(*blocks, input_shape=(1, 2, 2)), "cpu")
    image = rng.random((1, 2, 2))
    drawn = draw_feature_maps(tmp_path / "one.png", model, image, ["conv3"])
    assert str(drawn[0]).startswith("conv3: the first 120 of 130 maps of 2x2, ")
    drawn = draw_feature_maps(tmp_path / "many.png", model, image)
    assert [d.layer for d in drawn] == [f"conv{number}" for number in range(1, 8)]
    assert {d.maps for d in drawn} == {10}
    with pytest.raises(xc.XpcnnError, match="8 layers are too many"):
        draw_feature_maps(tmp_path / "no.png", model, image, [f"conv{number}" for number in range(1, 9)])
    for name in ("one.png", "many.png"):
        assert max(picture_of(tmp_path / name).shape) < 2000


def test_signals_and_colours(tmp_path, rng):
    net = layers.Sequential(layers.Conv1D(2, 3), input_shape=(1, 9))
    (said,) = draw_feature_maps(tmp_path / "signal.png", xc.Model(net, "cpu"), rng.random((1, 9)))
    assert (said.maps, said.size) == (2, (7,))
    assert str(said).startswith("conv1: 2 maps of 7, ")
    colours = np.zeros((3, 8, 8), dtype=np.uint8)
    colours[0] = 200
    draw_feature_maps(tmp_path / "colours.png", one_conv([[1.0, 0, 0]], channels=3), colours)
    assert reddish(picture_of(tmp_path / "colours.png")[:170]).any()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["conv9"], "no feature maps of 'conv9'; this network has those of conv1, relu1, pool1"),
        (["affine1"], "no feature maps of 'affine1'"),
    ],
)
def test_layers_that_cannot_be_drawn(tmp_path, names, says):
    model = xc.Model(xc.models.simple_convnet(), "cpu")
    with pytest.raises(xc.XpcnnError, match=says):
        draw_feature_maps(tmp_path / "maps.png", model, np.zeros((1, 28, 28), dtype=np.uint8), names)
    assert not list(tmp_path.iterdir())


def test_networks_and_images_that_cannot_be_drawn(tmp_path):
    flat = xc.Model(layers.Sequential(layers.Affine(3), input_shape=(1, 4, 4)), "cpu")
    with pytest.raises(xc.XpcnnError, match="no convolution to draw; name layers out of none"):
        draw_feature_maps(tmp_path / "maps.png", flat, np.zeros((1, 4, 4)))
    with pytest.raises(xc.XpcnnError, match="takes batches"):
        draw_feature_maps(tmp_path / "maps.png", one_conv([1.0]), np.zeros((2, 8, 8)))
    with pytest.raises(xc.XpcnnError, match="layer conv1 has values that are not numbers"):
        draw_feature_maps(tmp_path / "maps.png", one_conv([np.nan]), np.ones((1, 8, 8)))
    assert not list(tmp_path.iterdir())
