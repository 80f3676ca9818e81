"""Weights of Keras: the same networks compute the same here, from the files that Keras itself wrote."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models
from xpcnn.interop.weights import fitted

h5py = pytest.importorskip("h5py")
if any(importlib.util.find_spec(name) is None for name in ("keras", "torch")):
    pytest.skip("needs keras and torch", allow_module_level=True)


def norm():
    return la.BatchNorm(eps=1e-3)  # Keras'


SEQUENTIAL = la.Sequential(
    la.Conv2D(6, 3, 2, "same"), la.ReLU(), norm(),
    la.Conv2D(12, 3, padding="same", groups=6, bias=False), la.Conv2D(5, 1),
    la.Conv2D(10, (2, 3), groups=5), la.Conv2D(10, 1, groups=5, bias=False), norm(),
    la.ConvTranspose2D(4, (3, 2), (1, 2)), la.ConvTranspose2D(4, 2, 2, "same", bias=False), la.MaxPool2D(2),
    la.Flatten(), norm(), la.Dropout(0.5), la.Affine(7), la.Tanh(), la.Affine(4),
    input_shape=(3, 9, 8),
)  # fmt: skip
FUNCTIONAL = la.Graph(
    [
        ("left", la.Conv2D(4, 3, padding="same"), "input"),
        ("right", la.Conv2D(4, 3, padding="same"), "input"),
        ("relu", la.ReLU(), "left"),
        ("add", la.Join("add"), ("relu", "right")),
        ("groups", la.GroupNorm(2), "add"),
        ("images", la.LayerNorm(), "groups"),
        ("pool", la.AvgPool2D(2), "images"),
        ("wide", la.Flatten(), "pool"),
        ("mean", la.GlobalAvgPool(), "images"),
        ("narrow", la.Affine(3), "mean"),
        ("flat", la.Flatten(), "right"),
        ("join", la.Join("concat"), ("narrow", "wide", "flat")),
        ("norm", norm(), "join"),
        ("out", la.Affine(5), "norm"),
    ],
    input_shape=(3, 6, 7),
)
NESTED = la.Sequential(
    ("body", la.Affine(3)),
    ("head", la.Sequential(("first", la.Affine(6, bias=False)), ("second", la.Affine(2)))),
    input_shape=(4,),
)
CONVNET = models.simple_convnet((1, 12, 11), 5, filters=4, hidden=6)
OWN = la.Sequential(
    ("conv", la.Conv2D(3, 3)), ("norm", norm()), ("flatten", la.Flatten()), ("dense", la.Affine(4)),
    input_shape=(2, 5, 6),
)  # fmt: skip
DENSE = la.Sequential(la.Affine(3), la.Affine(2), input_shape=(4,))
RESNET = models.resnet8((3, 16, 14), 5, width=4)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Return a directory with what Keras computed and wrote."""
    directory = tmp_path_factory.mktemp("keras")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "keras_networks.py"), str(directory)]
    environment = os.environ | {"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


def images(array):
    """(N, H, W, C) -> (N, C, H, W)."""
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def check(there, name, net, source=None, *, tolerance=1e-5, **options):
    """Compare outputs; initial weights, which are random, must not do."""
    arrays = np.load(there / "arrays.npz")
    x, expected = images(arrays[f"{name}/x"]), images(arrays[f"{name}/y"])
    model = xc.Model(net, "cpu")
    assert np.abs(model.predict(x) - expected).max() > 0.1 * np.abs(expected).max()
    model.load_parameters(there / f"{name}.weights.h5" if source is None else source, **options)
    np.testing.assert_allclose(model.predict(x), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", ["sequential.weights.h5", "sequential.keras"])
def test_every_kind_of_layer_from_a_file_by_shapes(there, name):
    check(there, "sequential", SEQUENTIAL, str(there / name))


def test_a_functional_model_with_branches_by_names(there):
    check(there, "functional", FUNCTIONAL)


@pytest.mark.parametrize(("name", "net"), [("nested", NESTED), ("simple_convnet", CONVNET), ("own", OWN)])
def test_models_of_other_makes(there, name, net):
    check(there, name, net)


def test_equal_layers_go_by_their_numbers_and_not_by_the_alphabet(there):
    net = la.Sequential(*(la.Conv2D(2, 3, padding="same") for _ in range(12)), input_shape=(2, 5, 5))
    check(there, "deep", net)


def test_a_residual_network_with_a_function_for_names(there):
    check(there, "resnet", RESNET, names=lambda name: name.rpartition("/")[0].replace("_", "/"))


def test_numbers_do_not_tell_branches_apart(there):
    with pytest.raises(xc.XpcnnError, match="do not say which of several") as caught:
        xc.Model(RESNET, "cpu").load_parameters(there / "resnet_unnamed.weights.h5")
    table = str(caught.value)
    row = r"batch_normalization_\d+: gamma \(16,\), beta \(16,\), moving_mean \(16,\), moving_variance \(16,\)"
    assert len(re.findall(row, table)) == 3
    assert "conv2d" not in table  # whose shapes and places in a sequence do tell


@pytest.mark.parametrize(("name", "digits"), [("float16", 3), ("bfloat16", 2)])
def test_narrow_numbers_become_the_models(there, name, digits):
    check(there, name, DENSE, tolerance=2 * 10.0**-digits)
    with h5py.File(there / f"{name}.weights.h5") as file:
        bits = file["layers/dense/vars/0"][...].view("<u2")
    found = fitted(there / f"{name}.weights.h5", DENSE, (4,))["affine1/weight"]
    if name == "bfloat16":  # sign, 8 bits of exponent, 7 of fraction
        sign, exponent, fraction = bits >> 15, (bits >> 7) & 255, bits & 127
        expected = (1.0 - 2.0 * sign) * 2.0 ** (exponent.astype(int) - 127) * (1 + fraction / 128)
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_array_equal(found.view("<u2"), bits)


def test_arrays_by_the_paths_that_keras_gives_them(there):
    arrays = np.load(there / "arrays.npz")
    given = {name.partition("/")[2]: arrays[name] for name in arrays if name.startswith("by_path/")}
    assert any(name.endswith("dense_1/kernel") or "dense" in name for name in given)
    check(there, "simple_convnet", CONVNET, given, layout="keras")


def test_what_comes_with_one_common_name_is_found_by_the_rest(there):
    with_names = {
        f"functional_1/{name}": value for name, value in fitted(there / "nested.weights.h5", NESTED, (4,)).items()
    }
    renamed = {name.replace("weight", "kernel"): value for name, value in with_names.items()}
    check(there, "nested", NESTED, renamed, layout="keras")


def test_what_a_batch_norm_lacks_is_asked_for(there):
    net = la.Sequential(norm(), input_shape=(4,))
    with pytest.raises(xc.DataError, match=r"does not say whether batch_normalization\w* lacks gamma or beta"):
        xc.Model(net, "cpu").load_parameters(there / "unscaled.weights.h5")


def test_an_image_made_of_features_is_refused(there):
    net = la.Sequential(la.Affine(24), la.Reshape((2, 3, 4)), la.Conv2D(1, 3), input_shape=(5,))
    weights = {"a/kernel": np.ones((5, 24)), "b/kernel": np.ones((3, 3, 2, 1))}
    with pytest.raises(xc.XpcnnError, match=r"reshape1 makes \(2, 3, 4\) of \(24,\)"):
        xc.Model(net, "cpu").load_parameters(weights, layout="keras")


def test_features_of_both_orders_are_not_added():
    net = la.Residual(la.Sequential(la.Affine(24)))
    net = la.Sequential(la.Conv2D(2, 1), la.Flatten(), net, input_shape=(1, 3, 4))
    weights = {
        "a/kernel": np.ones((1, 1, 1, 2)),
        "a/bias": np.ones(2),
        "b/kernel": np.ones((24, 24)),
        "b/bias": np.ones(24),
    }
    with pytest.raises(xc.XpcnnError, match="adds features of flattened images to others"):
        xc.Model(net, "cpu").load_parameters(weights, layout="keras")


def test_a_compressed_archive_is_refused(there, tmp_path):
    with zipfile.ZipFile(there / "sequential.keras") as archive:
        content = archive.read("model.weights.h5")
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", content)
    with pytest.raises(xc.DataError, match="has its weights compressed"):
        xc.Model(SEQUENTIAL, "cpu").load_parameters(tmp_path / "m.keras")
