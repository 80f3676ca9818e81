"""Settings on the command line: recipes, files, --set and options; and that a run's configuration makes the run again."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from safetensors.numpy import load_file

from xpcnn.kernels import threads
from xpcnn.training import build
from xpcnn.training.settings import Settings, from_tables

RECIPE = """
description = "of these tests"
[train]
epochs = 1
batch_size = 10
lr = 0.5
seed = 1
optimizer = "sgd"
[augment]
crop = 3
flip = true
"""


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 12, 12), np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "data.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    return tmp_path / "data.npz"


@pytest.fixture
def train(call, npz, tmp_path):
    """Return a function that trains and returns the run's directory."""

    def train(name, *options):
        status, out, err = call("train", "--out", tmp_path / name, "--quiet", *options)
        assert (status, out, err) == (0, f"{tmp_path / name}\n", "")
        return tmp_path / name

    return train


@pytest.fixture
def begin(npz):
    return "--dataset", f"npz:{npz}", "--model", "lenet5", "--device", "cpu"


def config(run):
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))


def ending(run):
    """Return what a run ended with, but for times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    files = [(run / f"{name}.safetensors") for name in ("model", "checkpoint")]
    arrays = {(file.name, name): a.tobytes() for file in files for name, a in load_file(file).items()}
    return arrays, [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def test_what_wins(train, begin, tmp_path, monkeypatch):
    """Options over --set, that over --config, that over --recipe, that over the defaults."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    monkeypatch.setattr(build, "recipes", lambda: {"mine": tmp_path / "mine.toml"})
    (tmp_path / "file.toml").write_text("[train]\nlr = 0.25\nseed = 2\n[augment]\ncrop = 2\n")
    chosen = ("--recipe", "mine", "--config", tmp_path / "file.toml", "--set", "seed=3", "--set", "augment.flip=none")
    found = config(train("run", *begin, *chosen, "--batch-size", 15))
    assert found["augment"] | {"crop": 2, "flip": False} == found["augment"]
    wanted = {"epochs": 1, "batch_size": 15, "lr": 0.25, "seed": 3, "optimizer": "sgd", "schedule": "constant"}
    assert found["train"] | wanted == found["train"]
    again = config(train("again", *begin, *chosen, "--seed", 4, "--set", "seed=5"))
    assert (again["train"]["seed"], again["train"]["batch_size"]) == (4, 10)


def test_a_runs_configuration_makes_the_run_again(train, begin, tmp_path):
    """Bit for bit: weights, averages, metrics; with every kind of setting, from anywhere."""
    first = train(
        "first", *begin, "--epochs", 3, "--batch-size", 7, "--optimizer", "muon", "--schedule", "one-cycle",
        "--warmup", 0.5, "--ema", 0.8, "--clip-norm", 1, "--label-smoothing", 0.1, "--class-weights", "balanced",
        "--normalise", "standard", "--drop-last", "--no-evaluate-train", "--evaluate-every", 2, "--threads", 1,
        "--keep", "last", "--set", "augment.rotate=20", "--set", "augment.cutmix=0.5", "--seed", 11,
    )  # fmt: skip
    again = train("again", "--config", first / "config.toml")
    assert ending(again) == ending(first)
    one, two = config(first), config(again)
    assert one["train"] == two["train"]
    assert one["augment"] == two["augment"]
    assert one["environment"]["threads"] == two["environment"]["threads"] == 1
    other = train("other", "--config", first / "config.toml", "--set", "augment.rotate=21")
    assert ending(other) != ending(first)
    assert from_tables(one) == Settings(**one["train"], augment=from_tables(one).augment)


def test_threads_hold_while_it_trains_and_no_longer(train, begin, monkeypatch):
    from xpcnn.training import run

    seen, before = [], threads.thread_count()
    own = run.environment
    monkeypatch.setattr(run, "environment", lambda backend: seen.append(threads.thread_count()) or own(backend))
    for number, options in enumerate((("--threads", 1), ("--set", "threads=2"))):
        found = config(train(str(number), *begin, "--epochs", 1, *options))
        assert found["train"]["threads"] == found["environment"]["threads"] == number + 1
    assert seen == [1, 2]
    assert threads.thread_count() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "epoch=3"], "there is no setting epoch; did you mean epochs?"),
        (["--set", "augment.rot=3"], "there is no setting augment.rot"),
        (["--set", "augment.flip=3"], "flip must be true or false, not 3."),
        (["--set", "epochs"], "--set takes key=value, or augment.key=value, not 'epochs'."),
        (["--set", "environment.x=3"], "--set takes key=value"),
        (["--set", "seed=three"], "seed must be a whole number, not 'three'."),
        (["--set", "seed=1" + "0" * 400], "seed must be 0 or more"),
        (["--epochs", "1" + "0" * 400], "epochs must be 1 or more"),
        (["--set", "lr=[1]"], "lr must be a number, not [1]."),
        (["--set", "lr=1979-05-27"], "lr must be a number, not datetime.date"),
        (["--set", "threads=100000"], "must be a whole number from 1 to 1024, not 100000"),
        (["--set", "max_memory=lots"], "'lots'"),
        (["--recipe", "nothing"], "there is no recipe nothing; there are"),
        (["--config", "none.toml"], "there is no configuration file none.toml."),
        (["--config", "."], "there is no configuration file ."),
        (["--config", "bad.toml"], "bad.toml is not a configuration file"),
        (["--config", "odd.toml"], "there is no table [trian]; did you mean train?"),
        (["--optimizer", "adagrad", "--momentum", "0.5"], "adagrad has no momentum; it has lr, eps."),
        (["--warmup", "1"], "warmup must be shorter than the training of 1 epochs, not 1."),
        (["--warmup", "1e308"], "warmup must be shorter than the training of 1 epochs"),
        (["--set", "augment.cutout=13"], "cutout=13 is too much for images of 12×12 pixels."),
        (["--drop-last", "--batch-size", "31"], "batch_size is 31, but there are 30 images"),
        (["--dataset", "folder:"], "names no path; write folder:PATH."),
        (["--dataset", "npz:"], "names no path; write npz:PATH."),
        (["--image-size", "9"], "image_size and channels can be chosen for folder: only."),
        (["--ema", "1"], "ema must be above 0 and below 1, not 1.0."),
        (["--patience", "0"], "not in the range"),
        (["--time-limit", "soon"], "time_limit must be a time such as 90s, 10m or 2h, not 'soon'."),
        (["--checkpoint-every", "-1"], "checkpoint_every must be a time"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_sentence(refused, begin, tmp_path, monkeypatch, options, says):
    """And nothing was begun."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("[train]\nlr = ")
    (tmp_path / "odd.toml").write_text("[trian]\nlr = 1")
    assert says in refused("train", *begin, "--epochs", 1, "--out", "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_data_set_in_the_home_directory(train, npz, tmp_path, monkeypatch):
    """No shell expands what stands after a colon."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run = train("run", "--dataset", f"npz:~/{npz.name}", "--model", "lenet5", "--device", "cpu", "--epochs", 1)
    assert config(run)["train"]["dataset"] == f"npz:{npz}"
