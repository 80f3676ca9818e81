"""Grad-CAM and saliency against PyTorch's autograd, definitions written as loops, and numerical differences."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import xpcnn as xc
from xpcnn import layers, models
from xpcnn.report.attribution import draw_overlay, enlarged, explained_layer, grad_cam, saliency

NETWORKS = {
    "simple_convnet": (models.simple_convnet((1, 10, 10), 4, filters=5, kernel_size=3, hidden=6), "relu1"),
    "resnet20": (models.resnet20((3, 8, 8), 4), "stage3/relu3"),
    "mobilenet_v2": (models.mobilenet_v2((3, 32, 32), 4, width=0.25), "last/relu61"),
    "densenet_bc": (models.densenet_bc((3, 8, 8), 4, depth=10, growth=4), "relu1"),
}


def made(name, dtype="float64", backend="cpu"):
    """Return a model whose parameters and statistics are noisy, with its host arrays."""
    mirror = pytest.importorskip("torch_mirror")
    net = NETWORKS[name][0]
    params, state = mirror.draw(net, net.input_shape)
    return xc.Model(net, backend, dtype=dtype, values=params | state), params, state


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("own_classes", [False, True])
def test_both_are_what_pytorchs_gradients_give(monkeypatch, name, own_classes, dtype):
    mirror = pytest.importorskip("torch_mirror")
    import torch
    from torch_watched import watch

    model, params, state = made(name, dtype)
    images = np.random.default_rng(2).standard_normal((3, *model.input_shape))
    classes = np.asarray([3, 0, 3]) if own_classes else None
    own = [{path: torch.tensor(value) for path, value in arrays.items()} for arrays in (params, state)]
    logits = mirror.run(model.net, *own, torch.tensor(images)).numpy()
    upstream = np.eye(4)[logits.argmax(axis=1) if classes is None else classes]
    outputs, gradients, dx = watch(monkeypatch, model.net, model.input_shape, params, state, images, upstream)
    for layer in (None, next(iter(outputs))):
        path = explained_layer(model, layer)
        maps = np.maximum((gradients[path].mean(axis=(2, 3))[:, :, None, None] * outputs[path]).sum(axis=1), 0)
        size = model.input_shape[1:]
        large = torch.nn.functional.interpolate(torch.tensor(maps[:, None]), size, mode="bilinear", align_corners=False)
        _near(grad_cam(model, images, classes, layer), _scaled(large.numpy()[:, 0]), dtype)
    _near(saliency(model, images, classes), _scaled(np.abs(dx).max(axis=1)), dtype)


def test_saliency_by_numerical_differences(rng):
    model, _, _ = made("resnet20")
    x = rng.standard_normal((1, 3, 8, 8))
    slopes = np.zeros((3, 8, 8))
    for place in np.ndindex(slopes.shape):
        moved = [x.copy() for _ in range(2)]
        for copy, step in zip(moved, (1e-6, -1e-6), strict=True):
            copy[(0, *place)] += step
        up, down = (model.predict(copy)[0, 2] for copy in moved)
        slopes[place] = (up - down) / 2e-6
    np.testing.assert_allclose(saliency(model, x, 2), _scaled(np.abs(slopes).max(axis=0)[None]), atol=1e-4)


def test_the_map_lies_where_the_class_is_seen(arrays):
    """Two filters see bright and dark; the class counts the bright, so that the map is the bright square alone."""
    net = layers.Sequential(
        layers.Conv2D(2, 1, bias=False), layers.ReLU(), layers.GlobalAvgPool(), layers.Affine(2, bias=False)
    )
    values = {"conv1/weight": np.asarray([1.0, -1.0]).reshape(2, 1, 1, 1), "affine1/weight": np.eye(2)}
    model = xc.Model(net, arrays.backend, input_shape=(1, 6, 6), values=values)
    image = np.zeros((1, 1, 6, 6), dtype=np.float32)
    image[0, 0, :2, :3], image[0, 0, 4:, 4:] = 1.0, -1.0
    bright, dark = np.zeros((6, 6)), np.zeros((6, 6))
    bright[:2, :3], dark[4:, 4:] = 1.0, 1.0
    for classes, expected in ((0, bright), (1, dark), (None, bright)):
        found = grad_cam(model, arrays(image), classes)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[0], expected, atol=1e-6)
        seen = saliency(model, arrays(image), classes)  # ReLU's slope is 0 where its input is none above 0
        assert seen.dtype == np.float32
        np.testing.assert_allclose(seen[0], expected, atol=1e-6)


def test_what_speaks_for_nothing_is_zero_and_many_images_are_as_one(monkeypatch, rng):
    model, _, _ = made("simple_convnet")
    images = rng.integers(0, 256, (7, 1, 10, 10), dtype=np.uint8)
    alone = [np.concatenate([tell(model, image[None], 1) for image in images]) for tell in (grad_cam, saliency)]
    monkeypatch.setattr("xpcnn.report.attribution.ONCE", 3)
    for tell, expected in zip((grad_cam, saliency), alone, strict=True):
        together = tell(model, images, 1)
        np.testing.assert_allclose(together, expected, atol=1e-6)
        assert set(together.max(axis=(1, 2))) <= {0.0, 1.0}
        assert tell(model, images[:0]).shape == (0, 10, 10)
    model.load_parameters(model.parameters() | {"affine2/weight": np.zeros((6, 4))})
    assert not grad_cam(model, images).any()
    assert not saliency(model, images).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_which_layer_explains(name):
    model, _, _ = made(name)
    assert explained_layer(model) == NETWORKS[name][1]


def test_which_layer_explains_without_a_wide_convolution():
    whole = layers.Sequential(layers.AvgPool2D(2), layers.Conv2D(3, 2), layers.Affine(2), input_shape=(1, 4, 4))
    assert explained_layer(xc.Model(whole, "cpu")) == "pool1"
    flat = xc.Model(layers.Sequential(layers.Affine(2), input_shape=(1, 4, 4)), "cpu")
    with pytest.raises(xc.XpcnnError, match="nothing can be located"):
        grad_cam(flat, np.zeros((1, 1, 4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 4}, "from 0 to 3"),
        ({"classes": [0, -1]}, "from 0 to 3"),
        ({"classes": [0, 1, 2]}, "one for each of 2 images"),
        ({"classes": 1.5}, "whole number"),
        ({"classes": "cat"}, "whole number"),
        ({"layer": "affine1"}, "no maps of a layer 'affine1'.*conv1, relu1, pool1"),
        ({"layer": "conv9"}, "no maps of a layer 'conv9'"),
    ],
)
def test_refusals(options, message):
    model, _, _ = made("simple_convnet")
    with pytest.raises(xc.XpcnnError, match=message):
        grad_cam(model, np.zeros((2, 1, 10, 10)), **options)


def test_refused_models():
    with pytest.raises(xc.XpcnnError, match="from images"):
        saliency(xc.Model(layers.Conv2D(2, 3), "cpu", input_shape=(1, 4, 4)), np.zeros((1, 1, 4, 4)))
    model, params, _ = made("simple_convnet")
    model.load_parameters(params | {"affine2/weight": np.full((6, 4), np.nan)})
    for tell in (grad_cam, saliency):
        with pytest.raises(xc.XpcnnError, match="not numbers"):
            tell(model, np.ones((1, 1, 10, 10)))


@pytest.mark.parametrize(("size", "to"), [((1, 1), (3, 4)), ((2, 3), (7, 5)), ((4, 4), (4, 4)), ((6, 5), (3, 9))])
def test_enlarging_is_pytorchs(size, to, rng):
    torch = pytest.importorskip("torch")
    maps = rng.standard_normal((2, *size))
    expected = torch.nn.functional.interpolate(torch.tensor(maps[None]), to, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(enlarged(maps, *to), expected.numpy()[0], atol=1e-12)


def test_an_overlay_shows_cold_places_dimmed_and_hot_ones_glow():
    image = np.zeros((1, 4, 4), dtype=np.uint8)
    image[0, 3] = 200
    heat = np.zeros((4, 4))
    heat[0, 0] = 1.0
    with Image.open(io.BytesIO(draw_overlay(image, heat))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (224, 224))
        pixels = np.asarray(picture).astype(int)
    assert (pixels[200:] == 120).all()
    assert (pixels[100:160, 120:] == 0).all()
    red, _, blue = pixels[0, 0]
    assert red > 150 > blue
    colour = np.zeros((3, 300, 240), dtype=np.uint8)
    colour[2] = 90
    with Image.open(io.BytesIO(draw_overlay(colour, np.zeros((300, 240))))) as picture:
        assert picture.size == (240, 300)  # large enough as it is
        assert (np.asarray(picture) == [0, 0, 54]).all()


@pytest.mark.parametrize(
    ("image", "heat"),
    [(np.zeros((1, 4, 4)), (4, 4)), (np.zeros((2, 4, 4), np.uint8), (4, 4)), (np.zeros((1, 4, 4), np.uint8), (4, 5))],
)
def test_what_cannot_be_laid_over(image, heat):
    with pytest.raises(xc.XpcnnError, match="an overlay needs"):
        draw_overlay(image, np.zeros(heat))


def _scaled(maps):
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(largest > 0, largest, 1)


def _near(found, expected, dtype):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 if dtype == "float32" else 1e-6)
