"""A layer's output is what the ops give one after another, and watching changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers, ops
from xpcnn.report import layer_outputs


def test_each_layer_of_a_chain(rng):
    """Convolution, ReLU and pooling are computed together in a network, but each is seen."""
    model = xc.Model(xc.models.simple_convnet((2, 8, 8), 3, filters=4, kernel_size=3, hidden=5), "cpu", seed=1)
    images = rng.standard_normal((2, 2, 8, 8), dtype=np.float32)
    p = model.parameters()
    expected = {"conv1": ops.conv2d(images, p["conv1/weight"], p["conv1/bias"])[0]}
    expected["relu1"] = np.maximum(expected["conv1"], 0)
    expected["pool1"] = expected["relu1"].reshape(2, 4, 3, 2, 3, 2).max(axis=(3, 5))
    expected["affine1"] = expected["pool1"].reshape(2, -1) @ p["affine1/weight"] + p["affine1/bias"]
    expected["relu2"] = np.maximum(expected["affine1"], 0)
    expected["affine2"] = expected["relu2"] @ p["affine2/weight"] + p["affine2/bias"]
    found = layer_outputs(model, images)
    assert list(found) == list(expected)
    for name, output in found.items():
        np.testing.assert_allclose(output, expected[name], atol=1e-5)
    np.testing.assert_allclose(found["affine2"], model.predict(images), atol=1e-5)


def test_layers_within_containers(rng):
    relu = layers.ReLU()  # one object in several places
    body = layers.Sequential(layers.Conv2D(3, 3, padding=1), layers.BatchNorm(), relu, layers.Conv2D(3, 3, padding=1))
    both = layers.Parallel([("left", layers.Conv2D(2, 1)), ("right", layers.Sequential(relu, layers.Conv2D(4, 1)))])
    net = layers.Sequential(("stem", layers.Residual(body)), relu, ("fork", both), input_shape=(3, 5, 5))
    model = xc.Model(net, "cpu", seed=2, dtype="float64")
    model.replace_arrays(model.parameters(), {n: rng.uniform(0.5, 2, a.shape) for n, a in model.state().items()})
    images = rng.standard_normal((2, 3, 5, 5))
    p, s = model.parameters(), model.state()
    found = layer_outputs(model, images)
    assert list(found) == [
        "stem/body/conv1", "stem/body/norm1", "stem/body/relu1", "stem/body/conv2", "stem/shortcut", "relu1",
        "fork/left", "fork/right/relu1", "fork/right/conv1",
    ]  # fmt: skip
    first, _ = ops.conv2d(images, p["stem/body/conv1/weight"], p["stem/body/conv1/bias"], padding=1)
    mean, var = (s[f"stem/body/norm1/{name}"].reshape(1, 3, 1, 1) for name in ("mean", "var"))
    normal = (first - mean) / np.sqrt(var + 1e-5)  # the running statistics: it predicts, and does not train
    second, _ = ops.conv2d(np.maximum(normal, 0), p["stem/body/conv2/weight"], p["stem/body/conv2/bias"], padding=1)
    after = np.maximum(second + images, 0)
    right = np.einsum("nchw,fcij->nfhw", after, p["fork/right/conv1/weight"])
    right += p["fork/right/conv1/bias"].reshape(1, 4, 1, 1)
    for name, expected in (
        ("stem/body/conv1", first), ("stem/body/norm1", normal), ("stem/body/relu1", np.maximum(normal, 0)),
        ("stem/body/conv2", second), ("stem/shortcut", images), ("relu1", after), ("fork/right/relu1", after),
        ("fork/right/conv1", right),
    ):  # fmt: skip
        np.testing.assert_allclose(found[name], expected, atol=1e-10)
    whole = np.concatenate([found["fork/left"], found["fork/right/conv1"]], axis=1)
    np.testing.assert_allclose(model.predict(images), whole, rtol=0, atol=1e-12)  # which folds the normalisation


def test_it_changes_nothing_and_stays_on_the_device(arrays, rng):
    model = xc.Model(xc.models.simple_convnet((1, 6, 6), 2, filters=2, kernel_size=3, hidden=3), arrays.backend)
    before = {name: arrays.backend.to_numpy(array).copy() for name, array in model.parameters().items()}
    images = rng.integers(0, 255, (3, 1, 6, 6)).astype(np.uint8)
    logits = arrays.backend.to_numpy(model.predict(arrays(images)))
    found = layer_outputs(model, arrays(images))
    arrays.check(found["affine2"], logits, like=model.parameters()["conv1/weight"])
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(arrays.backend.to_numpy(array), before[name])


def test_a_network_of_one_layer(rng):
    model = xc.Model(layers.Conv2D(2, 3), "cpu", input_shape=(1, 4, 4))
    images = rng.standard_normal((1, 1, 4, 4))
    (output,) = layer_outputs(model, images).values()
    np.testing.assert_array_equal(output, model.predict(images))


def test_images_of_another_shape_are_refused():
    model = xc.Model(layers.Conv2D(2, 3), "cpu", input_shape=(1, 4, 4))
    with pytest.raises(xc.XpcnnError, match="takes batches"):
        layer_outputs(model, np.zeros((1, 4, 4)))
