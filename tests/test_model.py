"""A model: inputs it takes, prediction, saving and loading."""

from __future__ import annotations

import copy
import json
import tracemalloc
from dataclasses import dataclass

import emulator
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xpcnn as xc
from xpcnn import layers, models
from xpcnn.kernels import memory

NET = models.simple_convnet((1, 12, 12), 4, filters=3, kernel_size=3, hidden=5)


@pytest.fixture
def model(arrays):
    return xc.Model(NET, arrays.backend, seed=3)


def test_predict_gives_back_what_kind_it_got(model, arrays, rng):
    x = rng.random((7, 1, 12, 12)).astype(np.float32)
    found = model.predict(x)
    assert type(found) in (np.ndarray, emulator.DeviceArray)
    assert found.shape == (7, 4)
    assert found.dtype == np.float32
    there = model.predict(arrays(x))
    arrays.check(there, found, arrays(x), 1e-5)


def test_the_batch_size_does_not_matter(model, rng):
    x = rng.random((7, 1, 12, 12)).astype(np.float32)
    whole = model.predict(x)
    for size in (1, 2, 7, 100):
        np.testing.assert_allclose(model.predict(x, batch_size=size), whole, rtol=0, atol=1e-5)
    assert model.predict(x[:0]).shape == (0, 4)


def test_every_backend_predicts_the_same_from_one_seed(model, rng):
    x = rng.random((3, 1, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(model.predict(x), xc.Model(NET, "cpu", seed=3).predict(x), rtol=0, atol=1e-5)


def test_uint8_images_are_normalised_and_floats_are_not(arrays, rng):
    pixels = rng.integers(0, 256, (5, 1, 12, 12)).astype(np.uint8)
    for mean, std in ((0.0, 1.0), (0.25, 0.5)):
        model = xc.Model(NET, arrays.backend, normalise=xc.Normalise(mean, std))
        floats = ((pixels / 255.0 - mean) / std).astype(np.float32)
        np.testing.assert_allclose(model.predict(pixels), model.predict(floats), rtol=0, atol=1e-5)
        np.testing.assert_allclose(model.predict(floats.astype(np.float64)), model.predict(floats), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kind", "says"),
    [
        ((2, 1, 12, 11), "float32", "(N, 1, 12, 12), got (2, 1, 12, 11)"),
        ((1, 12, 12), "float32", "x[None]"),
        ((2, 3, 12, 12), "float32", "got (2, 3, 12, 12)"),
        ((2, 1, 12, 12), "int64", "int64"),
        ((2, 1, 12, 12), "bool", "bool"),
    ],
)
def test_wrong_inputs_are_named(model, shape, kind, says):
    with pytest.raises(xc.XpcnnError) as caught:
        model.predict(np.zeros(shape, kind))
    assert says in str(caught.value)


def test_wrong_arguments_are_named():
    for call in (
        lambda: xc.Model(layers.Sequential(layers.Affine(3)), "cpu"),
        lambda: xc.Model("lenet5", "cpu"),
        lambda: xc.Model(NET, "cpu", dtype="float16"),
        lambda: xc.Model(NET, "cpu").predict(np.zeros((1, 1, 12, 12)), batch_size=0),
    ):
        with pytest.raises(xc.XpcnnError):
            call()


def test_parameters_are_named_by_path_and_cannot_be_changed_from_outside(model):
    assert list(model.parameters()) == [
        "conv1/weight", "conv1/bias", "affine1/weight", "affine1/bias", "affine2/weight", "affine2/bias",
    ]  # fmt: skip
    model.parameters().clear()
    assert len(model.parameters()) == 6


def test_a_saved_model_is_the_same_everywhere(model, tmp_path, rng):
    x = rng.random((3, 1, 12, 12)).astype(np.float32)
    model.save(tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    for device in ("cpu", model.backend):
        again = xc.Model.load(tmp_path / "m.safetensors", device)
        assert again.net == NET
        for path, array in model.parameters().items():
            ours, theirs = model.backend.to_numpy(array), again.backend.to_numpy(again.parameters()[path])
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(again.predict(x), model.predict(x), rtol=0, atol=1e-5)


def test_load_parameters_is_all_or_nothing(model):
    values = {path: model.backend.to_numpy(array) + 1 for path, array in model.parameters().items()}
    before = model.backend.to_numpy(model.parameters()["conv1/bias"])
    wrong = dict(values, extra=np.zeros(2), **{"affine2/bias": np.zeros(5)})
    del wrong["conv1/weight"]
    with pytest.raises(xc.XpcnnError) as caught:
        model.load_parameters(wrong)
    for words in ("conv1/weight is missing", "extra is unknown", "affine2/bias has shape (5,) instead of (4,)"):
        assert words in str(caught.value)
    np.testing.assert_array_equal(model.backend.to_numpy(model.parameters()["conv1/bias"]), before)
    model.load_parameters(values)
    np.testing.assert_array_equal(model.backend.to_numpy(model.parameters()["conv1/bias"]), before + 1)


STATEFUL = layers.Sequential(layers.Conv2D(2, 3), layers.BatchNorm(), layers.Affine(3), input_shape=(1, 5, 5))


def test_load_parameters_takes_state_too(arrays, rng):
    model = xc.Model(STATEFUL, arrays.backend)
    shapes = {path: tuple(a.shape) for path, a in (model.parameters() | model.state()).items()}
    assert list(model.state()) == ["norm1/mean", "norm1/var"]
    values = {path: rng.random(shape) + 0.5 for path, shape in reversed(shapes.items())}
    x = rng.standard_normal((4, 1, 5, 5)).astype(np.float32)
    before = model.predict(x)
    model.load_parameters(values)
    assert list(model.parameters() | model.state()) == list(shapes)  # in the network's order, not the given one
    for path, array in (model.parameters() | model.state()).items():
        arrays.check(array, values[path], arrays(x), 1e-7)
    changed = model.predict(x)
    assert np.abs(changed - before).max() > 0.1
    model.load_parameters(values | {"norm1/var": arrays(values["norm1/var"] * 4)})
    assert np.abs(model.predict(x) - changed).max() > 0.1


@pytest.mark.parametrize("path", ["conv1/weight", "norm1/gamma", "norm1/mean"])
def test_what_does_not_fit_is_named_and_nothing_is_changed(path):
    model = xc.Model(STATEFUL, "cpu")
    whole = model.parameters() | model.state()
    before = {p: array.copy() for p, array in whole.items()}
    shape = whole[path].shape
    others = {p: array + 1 for p, array in whole.items() if p != path}
    wrong = [
        (others | {path: np.zeros(size)}, f"{path} has shape {size} instead of {shape}") for size in ((3,), (1, 2), ())
    ]
    if path in model.parameters():
        wrong.append((others, f"{path} is missing"))
    for values, says in wrong:
        with pytest.raises(xc.XpcnnError) as caught:
            model.load_parameters(values)
        assert says in str(caught.value)
    for p, array in (model.parameters() | model.state()).items():
        np.testing.assert_array_equal(array, before[p])


def test_state_that_is_not_given_stays_as_it_is():
    model = xc.Model(STATEFUL, "cpu")
    mean = np.array([3.0, 4.0], np.float32)
    model.load_parameters(model.parameters() | {"norm1/mean": mean})
    model.load_parameters({path: array + 1 for path, array in model.parameters().items()})
    np.testing.assert_array_equal(model.state()["norm1/mean"], mean)
    np.testing.assert_array_equal(model.state()["norm1/var"], np.ones(2))


def test_predicting_keeps_nothing_of_the_layers_before(rng):
    """A deep network's prediction takes a few layers' memory, not all layers'."""
    net = layers.Sequential(*[layers.Conv2D(4, 3, padding=1), layers.ReLU()] * 20, input_shape=(4, 64, 64))
    model = xc.Model(net, "cpu")
    x = rng.random((16, 4, 64, 64), np.float32)  # 1 MB, as every layer's output
    memory.release()
    tracemalloc.start()
    model.predict(x)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_a_deep_network_is_predicted_in_smaller_batches():
    largest = 24 * 24 * 4  # bytes of a filter's output
    for device, most in (("cpu", 1 << 24), ("array_api_strict", 1 << 27)):
        for filters in (1, 30, 300, 3000):
            found = xc.Model(models.simple_convnet(filters=filters), device).images_at_once
            assert found == min(1000, most // (filters * largest))


def test_parameters_and_state_are_dicts_of_the_callers_own():
    model = xc.Model(STATEFUL, "cpu")
    model.parameters().clear()
    model.state()["norm1/mean"] = None
    assert model.predict(np.zeros((1, 1, 5, 5), np.float32)).shape == (1, 3)


def test_files_that_are_no_whole_models_are_refused(tmp_path, rng):
    path = tmp_path / "m.safetensors"
    xc.Model(NET, "cpu").save(path)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(xc.DataError):
            xc.Model.load(path, "cpu")
    header = int.from_bytes(whole[:8], "little")
    for _ in range(300):  # wherever the description is damaged, it is refused or still means the same network
        place = int(rng.integers(0, header + 8))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(0, 8)))]) + whole[place + 1 :])
        try:
            model = xc.Model.load(path, "cpu")
        except xc.DataError:
            continue
        assert model.predict(np.zeros((1, 1, 12, 12), np.uint8)).shape == (1, 4)
    with pytest.raises(xc.DataError, match="does not exist"):
        xc.Model.load(tmp_path / "nothing", "cpu")


def test_hostile_descriptions_are_refused_before_anything_is_allocated(tmp_path):
    path = tmp_path / "m.safetensors"
    xc.Model(NET, "cpu").save(path)
    arrays = load_file(path)
    good = {
        "format": 1, "network": layers.to_config(NET), "input_shape": [1, 12, 12], "dtype": "float32",
        "normalise": {}, "classes": [], "dataset": "",
    }  # fmt: skip
    huge = layers.to_config(models.simple_convnet((1, 12, 12), 4, hidden=10**12))
    changes = [
        {"format": 2}, {"network": huge}, {"network": "deep"}, {"network": None},
        {"input_shape": [1, 10**9, 10**9]}, {"input_shape": "wide"}, {"input_shape": [1, -12, 12]}, {"dtype": "object"},
        {"normalise": {"std": 0}}, {"normalise": {"std": "x"}}, {"normalise": 3}, {"classes": 7}, {"classes": [7]}, {"dataset": 3},
        {"network": {"type": "Key", "seed": 0}},
    ]  # fmt: skip
    for change in changes:
        text = json.dumps(good | change).replace('"deep"', "[" * 3000 + "]" * 3000)
        save_file(arrays, path, metadata={"xpcnn": text})
        with pytest.raises(xc.DataError):
            xc.Model.load(path, "cpu")
    save_file(arrays, path, metadata={"xpcnn": json.dumps(good)})
    xc.Model.load(path, "cpu")
    whole = {name: array.astype(np.int32) for name, array in arrays.items()}
    save_file(whole, path, metadata={"xpcnn": json.dumps(good)})
    with pytest.raises(xc.DataError, match="conv1/bias is I32"):
        xc.Model.load(path, "cpu")
    save_file(arrays, path)
    with pytest.raises(xc.DataError, match="not one that xpcnn wrote"):
        xc.Model.load(path, "cpu")


@dataclass(frozen=True)
class Double(layers.Layer):
    """A user's own layer."""

    kind = "double"

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, params, state, x, *, train=False, key=None):
        return 2 * x, None, state

    def backward(self, params, dy, saved, *, need_dx=True):
        return 2 * dy, {}


def test_a_users_own_layer_trains_and_survives_saving(tmp_path):
    net = layers.Sequential(Double(), layers.Affine(3), input_shape=(1, 2, 2))
    model = xc.Model(net, "cpu")
    xc.Trainer(model, xc.optim.sgd(0.1)).step(np.ones((2, 1, 2, 2), np.float32), np.array([0, 1]))
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(xc.DataError, match=r"'Double'.*custom"):
        xc.Model.load(tmp_path / "m.safetensors", "cpu")
    assert xc.Model.load(tmp_path / "m.safetensors", "cpu", custom=[Double]).net == net


def test_the_summary_lists_layers_shapes_and_parameters():
    text = xc.Model(models.simple_convnet(), "cpu").summary()
    for words in ("conv1", "Conv2D", "(30, 24, 24)", "780", "432,100", "433,890"):
        assert words in text


def test_the_summary_follows_the_model_and_not_its_values():
    model = xc.Model(NET, "cpu")
    text = model.summary()
    model.load_parameters({path: array + 1 for path, array in model.parameters().items()})
    assert model.summary() == text
    assert xc.Model(NET, "cpu", dtype="float64").summary(50) == text  # half as many numbers twice as large
    assert xc.Model(layers.Sequential(*NET.layers), "cpu", input_shape=(1, 12, 12)).summary() == text


def test_what_was_given_is_copied_and_a_copy_is_another_model(rng):
    x = rng.random((2, 1, 12, 12)).astype(np.float32)
    model = xc.Model(NET, "cpu")
    values = {path: array.copy() for path, array in model.parameters().items()}
    model.load_parameters(values)
    before = model.predict(x)
    values["affine2/bias"] += 5
    np.testing.assert_array_equal(model.predict(x), before)
    other = copy.deepcopy(model)
    xc.Trainer(other, xc.optim.sgd(0.1)).step(x, np.array([0, 1]))
    np.testing.assert_array_equal(model.predict(x), before)


def test_seeds_are_whole_numbers_of_any_kind():
    first, second = xc.Model(NET, "cpu", seed=7), xc.Model(NET, "cpu", seed=np.int64(7))
    np.testing.assert_array_equal(first.parameters()["conv1/weight"], second.parameters()["conv1/weight"])
    for seed in (None, -1, 1.5, True):
        with pytest.raises(xc.XpcnnError, match="seed"):
            xc.Model(NET, "cpu", seed=seed)


def test_numpy_statistics_normalise(rng):
    pixels = rng.integers(0, 256, (5, 1, 12, 12)).astype(np.uint8)
    model = xc.Model(NET, "cpu", normalise=xc.Normalise(pixels.mean() / 255, pixels.std() / 255))
    assert model.predict(pixels).dtype == np.float32


@pytest.mark.parametrize("net", [layers.Flatten(), layers.Dropout(), layers.Sequential(), layers.ReLU()])
def test_what_is_predicted_is_not_the_images_memory(net):
    x = np.ones((2, 3, 4), np.float32)
    assert not np.may_share_memory(xc.Model(net, "cpu", input_shape=(3, 4)).predict(x), x)


@pytest.mark.parametrize("shape", [28, (), "abc", (1, 28.0, 28), (0, 3), (-1, 2), (True, 3)])
def test_an_input_shape_is_whole_numbers_above_0(shape):
    with pytest.raises(xc.XpcnnError, match="input_shape"):
        xc.Model(layers.Affine(3), "cpu", input_shape=shape)
    with pytest.raises(xc.XpcnnError, match="input_shape"):
        layers.Sequential(layers.Affine(3), input_shape=shape)


def test_options_that_are_numpys_numbers_are_saved(tmp_path):
    net = layers.Sequential(
        layers.Conv2D(np.int64(2), 3, bias=np.True_), layers.BatchNorm(np.float32(0.5)), layers.LayerNorm(range(1, 4)),
        input_shape=(1, 5, 5),
    )  # fmt: skip
    xc.Model(net, "cpu").save(tmp_path / "m.safetensors")
    again = xc.Model.load(tmp_path / "m.safetensors", "cpu")
    assert again.net.layers[1][1] == layers.BatchNorm(0.5)


def test_the_same_model_is_the_same_file(tmp_path):
    model = xc.Model(models.lenet5((1, 28, 28), 10), "cpu")
    for number in range(12):
        model.save(tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
