"""``xpcnn train``: what is learnt, what is left on the disk, and that it can be had again."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import xpcnn as xc
from xpcnn.data import Augment, load_dataset
from xpcnn.training.settings import Settings

OPTIONS = {
    "model": "lenet5", "dataset": "mnist", "epochs": 2, "batch_size": 70, "optimizer": "sgd", "lr": 0.02, "seed": 5,
    "device": "cpu", "dtype": "float64", "precision": "float32", "conv_engine": "im2col",
    "capture": "off", "validation": 0.25, "normalise": "standard", "momentum": 0.5, "weight_decay": 0.001,
    "schedule": "cosine", "warmup": 0.5, "final_lr": 0.01, "step_epochs": 3.0, "step_factor": 0.2, "clip_norm": 5.0,
    "label_smoothing": 0.1, "class_weights": "balanced", "ema": 0.9, "evaluate_every": 2, "keep": "last", "patience": 7,
    "threads": 1, "time_limit": "1h", "checkpoint_every": "20s", "max_memory": "1GiB",
}  # fmt: skip
FLAGS = {
    "sync_batchnorm": True,
    "drop_last": False,
    "nesterov": True,
    "skip_bad": False,
    "evaluate_train": False,
    "tensorboard": False,
}
NOT_GIVEN = {"image_size", "channels", "beta1", "beta2", "eps"}  # of other data sets and optimizers
AUGMENT = {
    "crop": 1, "flip": True, "rotate": 5.0, "translate": 0.1, "scale": 0.1, "brightness": 0.1, "contrast": 0.2,
    "cutout": 3, "mixup": 0.2, "cutmix": 0.3,
}  # fmt: skip
FILES = {
    "config.toml", "metrics.jsonl", "model.safetensors", "curves.png", "epochs.csv", "checkpoint.safetensors",
}  # fmt: skip


def arguments(options):
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def metrics(run):
    """Return a run's losses by update and its records by epoch."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if "epoch" in record]
    updates = [record for record in records if "update" in record]
    assert len(epochs) + len(updates) == len(records)
    assert [update["update"] for update in updates] == list(range(1, len(updates) + 1))
    assert [epoch["epoch"] for epoch in epochs] == list(range(len(epochs)))
    return [update["loss"] for update in updates], epochs


def best_of(epochs):
    return max(epoch["test_accuracy"] for epoch in epochs[1:])


@pytest.fixture
def train(call, few, tmp_path):
    """Return a function that trains on few images and returns the run's directory."""

    def train(name, **options):
        options = {"data_dir": few, "epochs": 2, "device": "cpu", "out": tmp_path / name} | options
        status, out, err = call("train", *arguments(options), "--quiet")
        assert (status, out, err) == (0, f"{tmp_path / name}\n", "")
        return tmp_path / name

    return train


def test_it_learns_more_than_the_nearest_neighbour_knows(run, data):
    """The best that needs no training, comparing pixels with all training images, is right for 89 %."""
    train, test = load_dataset("mnist", data)
    a, b = (part.images.reshape(len(part), -1).astype(np.float32) for part in (train, test))
    nearest = ((a**2).sum(axis=1) - 2 * b @ a.T).argmin(axis=1)
    neighbours = (train.labels[nearest] == test.labels).mean()
    assert neighbours > 0.85
    assert best_of(metrics(run)[1]) > neighbours + 0.02


def test_it_cannot_learn_where_there_is_nothing_to_learn(train, shuffled):
    _, epochs = metrics(train("run", data_dir=shuffled, epochs=3))
    assert all(epoch["test_accuracy"] < 0.2 for epoch in epochs[1:])


def test_the_metrics_are_whole(run):
    losses, epochs = metrics(run)
    assert len(losses) == 3 * 3000 / 100
    assert len(epochs) == 1 + 3
    before = epochs[0]
    assert before["loss"] is None
    assert before["images_per_second"] is None
    assert before["test_accuracy"] < 0.4  # untrained
    for number, epoch in enumerate(epochs[1:]):
        assert epoch["loss"] == pytest.approx(np.mean(losses[30 * number : 30 * (number + 1)]))
        assert 0 < 3000 / epoch["images_per_second"] <= epoch["seconds"]
        assert 0.8 < epoch["train_accuracy"] <= 1
    assert epochs[3]["loss"] < epochs[2]["loss"] < epochs[1]["loss"]


def test_the_configuration_has_every_option_and_the_environment(call, few, tmp_path):
    """None is left out of this test."""
    out = tmp_path / "new" / "run"
    flags = [f"--{'' if on else 'no-'}{name.replace('_', '-')}" for name, on in FLAGS.items()]
    augment = [word for name, value in AUGMENT.items() for word in ("--set", f"augment.{name}={json.dumps(value)}")]
    status, _, err = call("train", *arguments(OPTIONS), *flags, *augment, "--data-dir", few, "--out", out, "--quiet")
    assert (status, err) == (0, "")
    assert {path.name for path in out.iterdir()} == FILES
    config = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    assert config["train"] == OPTIONS | FLAGS | {"data_dir": str(few)}
    assert config["train"].keys() | NOT_GIVEN | {"augment"} == {one.name for one in fields(Settings)}
    assert config["augment"] == AUGMENT
    assert AUGMENT.keys() == {one.name for one in fields(Augment)}
    environment = config["environment"]
    assert environment["xpcnn"] == xc.__version__
    assert environment["numpy"] == np.__version__
    assert environment["backend"] == "numpy"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", environment["started"])
    assert set(environment) >= {"python", "platform", "backend_version", "device"}
    losses, _ = metrics(out)
    assert len(losses) == 2 * 4  # 250 images in batches of 70, 70, 70 and 40


def test_the_model_kept_is_of_the_asked_kind(train):
    run = train("run", model="lenet5", dtype="float64", optimizer="adam")
    arrays = load_file(run / "model.safetensors")
    shapes = [array.shape for path, array in sorted(arrays.items()) if path.endswith("weight")]
    assert shapes == [(400, 120), (120, 84), (84, 10), (6, 1, 5, 5), (16, 6, 5, 5)]
    assert {array.dtype.name for array in arrays.values()} == {"float64"}
    assert xc.Model.load(run / "model.safetensors", "cpu").classes == tuple("0123456789")


def test_the_curves_can_be_looked_at(run):
    with Image.open(run / "curves.png") as picture:
        assert picture.format == "PNG"
        assert 800 <= picture.width <= 4000
        assert 400 <= picture.height <= 3000
        pixels = np.asarray(picture.convert("RGB"))
    for half in np.array_split(pixels, 2, axis=1):
        colours, counts = np.unique(half.reshape(-1, 3), axis=0, return_counts=True)
        assert (colours[counts.argmax()] == 255).all()
        assert 0.01 < 1 - counts.max() / counts.sum() < 0.5  # drawn upon, but not black
        assert (np.ptp(colours.astype(int), axis=1) > 80).any()  # a curve in colour


def test_the_same_seed_gives_the_same_bits(train):
    runs = [train(name, seed=seed) for name, seed in (("first", 7), ("second", 7), ("other", 8))]
    first, second, other = (load_file(run / "model.safetensors") for run in runs)
    assert first.keys() == second.keys() == other.keys()
    for path in first:
        assert np.array_equal(first[path], second[path]), path
        assert not np.array_equal(first[path], other[path]), path
    found = []
    for run in runs:
        losses, epochs = metrics(run)
        found.append((losses, [{k: v for k, v in e.items() if "second" not in k} for e in epochs]))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_what_is_printed(call, few, tmp_path):
    out = tmp_path / "run"
    status, text, err = call("train", "--data-dir", few, "--epochs", 2, "--device", "cpu", "--out", out)
    assert (status, err) == (0, "")
    _, epochs = metrics(out)
    assert "250 training and 100 test images" in text
    assert "seed 0" in text
    assert "numpy on cpu: cpu was asked for" in text
    shown = re.findall(r"train +([\d.]+) % +test +([\d.]+) %", text)
    assert shown == [(f"{100 * e['train_accuracy']:.2f}", f"{100 * e['test_accuracy']:.2f}") for e in epochs]
    assert f"Best test accuracy: {100 * best_of(epochs):.2f} %" in text
    for name in FILES - {"checkpoint.safetensors"}:
        assert name in text
    assert f"evaluate {out}" in text
    assert "\x1b" not in text


def test_a_run_has_a_name_of_its_own(call, few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = set()
    for _ in range(2):
        status, text, _ = call("train", "--data-dir", few, "--epochs", 1, "--device", "cpu", "--quiet")
        assert status == 0
        assert re.fullmatch(r"runs/\d{8}-\d{6}-simple-convnet-mnist(-\d)?\n", text)
        assert {path.name for path in (tmp_path / text.strip()).iterdir()} == FILES
        names.add(text)
    assert len(names) == 2


def test_an_empty_directory_is_taken_and_a_full_one_is_not(train, refused, few, tmp_path):
    (tmp_path / "empty").mkdir()
    train("empty", epochs=1)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("kept")
    again = ("train", "--data-dir", few, "--epochs", 1, "--device", "cpu", "--out")
    assert "not an empty directory; choose another --out" in refused(*again, full)
    assert [path.name for path in full.iterdir()] == ["precious"]
    assert (full / "precious").read_text() == "kept"
    assert "not an empty directory" in refused(*again, tmp_path / "empty")
    assert "not an empty directory" in refused(*again, full / "precious")


def test_a_data_directory_of_any_name(call, train, few, tmp_path, monkeypatch):
    """The name comes back from the configuration, and from any working directory."""
    name = 'a "b" \\ é 😀 \x7f\n\t#='
    (tmp_path / name).symlink_to(few)
    monkeypatch.chdir(tmp_path)
    run = train("run", data_dir=name, epochs=1)
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    assert config["train"]["data_dir"] == str(tmp_path / name)
    monkeypatch.chdir("/")
    status, text, _ = call("evaluate", run, "--device", "cpu")
    assert status == 0
    assert "of 100 images right" in text


def test_a_loss_that_is_no_number_stops_training(refused, few, tmp_path):
    for optimizer in ("sgd", "adam", "adagrad"):
        says = refused(
            "train", "--data-dir", few, "--epochs", 2, "--device", "cpu", "--optimizer", optimizer, "--lr", "1e30",
            "--out", tmp_path / optimizer, "--quiet",
        )  # fmt: skip
        assert re.search(r"the loss is no longer a number in step \d, in epoch 1: \w+ ", says)
        assert "a smaller learning rate, a warm-up or clip_norm may help" in says
        assert says.rstrip().endswith(f"is in {tmp_path / optimizer}.")


@pytest.mark.parametrize("device", ["torch", "array_api_strict"])
def test_other_backends_train_too(call, few, tmp_path, device):
    pytest.importorskip(device)
    out = tmp_path / "run"
    status, _, err = call("train", "--data-dir", few, "--epochs", 1, "--device", device, "--out", out, "--quiet")
    assert (status, err) == (0, "")
    status, text, _ = call("evaluate", out, "--device", "cpu", "--json")
    assert status == 0
    assert json.loads(text)["accuracy"] == pytest.approx(best_of(metrics(out)[1]), abs=0.02)
