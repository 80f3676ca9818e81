"""`xpcnn features` draws what a model makes of a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import xpcnn as xc
from xpcnn import layers
from xpcnn.report import layer_outputs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a small model's file."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    xc.Model(xc.models.simple_convnet(filters=4, hidden=4), "cpu", seed=3).save(path)
    return path


@pytest.fixture
def digit(tmp_path):
    """Return a picture's file and its pixels, light on black as the model takes them."""
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[5:20, 10:14] = 250
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return tmp_path / "digit.png", pixels


def test_what_it_says_is_the_layers_output(call, model, digit, tmp_path):
    path, pixels = digit
    status, out, _ = call("features", model, path, "--out", tmp_path / "maps.png", "--device", "cpu")
    maps = layer_outputs(xc.Model.load(model, "cpu"), pixels[None, None])["conv1"]
    assert status == 0
    assert out == (
        f"conv1: 4 maps of 24x24, from {maps.min():.3g} to {maps.max():.3g}\ndrawn in {tmp_path / 'maps.png'}\n"
    )
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.format == "PNG"


def test_layers_by_name_and_the_usual_file(call, model, digit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = call("features", model, digit[0], "--layer", "pool1", "--layer", "relu1", "--device", "cpu")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["pool1:", "relu1:", "drawn"]
    assert (tmp_path / "features.png").is_file()


def test_of_many_convolutions_some_are_left_out_and_it_is_said(call, digit, tmp_path, monkeypatch):
    monkeypatch.setattr("xpcnn.report.feature_maps.MOST_LAYERS", 2)
    net = layers.Sequential(*[layers.Conv2D(1, 1) for _ in range(5)], input_shape=(1, 28, 28))
    xc.Model(net, "cpu").save(tmp_path / "deep")
    out = call("features", tmp_path / "deep", digit[0], "--out", tmp_path / "maps.png", "--device", "cpu")[1]
    assert out.count("1 map of 28x28") == 2
    assert "3 more convolutions are left out" in out


def test_refusals(refused, model, digit, tmp_path):
    to = ("--out", tmp_path / "maps.png", "--device", "cpu")
    assert "no feature maps of 'conv7'" in refused("features", model, digit[0], "--layer", "conv7", *to)
    assert "does not exist" in refused("features", model, tmp_path / "none.png", *to)
    assert "there is no run nowhere" in refused("features", "nowhere", digit[0], *to)
    net = layers.Sequential(layers.Conv1D(1, 3), input_shape=(1, 9))
    xc.Model(net, "cpu").save(tmp_path / "signal.safetensors")
    assert "a model of images (C, H, W), not of (1, 9)" in refused(
        "features", tmp_path / "signal.safetensors", digit[0], *to
    )
    assert not (tmp_path / "maps.png").exists()
