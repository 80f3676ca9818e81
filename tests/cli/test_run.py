"""A run's directory, without the command line: which model is kept, and configurations that lie."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import DataError, layers, optim
from xpcnn.report.curves import draw_curves, running_mean
from xpcnn.training import Epoch
from xpcnn.training.run import Run, open_run
from xpcnn.training.settings import Settings, to_toml


@pytest.fixture
def model():
    return xc.Model(layers.Sequential(layers.Affine(2), input_shape=(3,)), "cpu")


@pytest.fixture
def make(tmp_path, model):
    """Return a function that makes a run of some settings."""

    def make(**settings):
        return Run.create(tmp_path / "run", Settings(**settings), xc.Trainer(model, optim.sgd(0.1)), {"training": "0"})

    return make


def epoch(number, train, test):
    return Epoch(number, float(number), train, test, 1.0, 100.0)


def mark(model, number):
    """Make a model's bias tell which epoch it is of."""
    params = model.parameters()
    model.load_parameters(params | {"affine1/bias": np.full(2, number, dtype=np.float32)})


def kept(run):
    model, _ = open_run(run.path, "cpu")
    return float(model.parameters()["affine1/bias"][0])


@pytest.mark.parametrize(
    ("tests", "best"),
    [([0.9, 0.5, 0.8, 0.7], 2), ([0.1, 0.2, 0.3, 0.4], 3), ([0, 0.5, 0.5, 0.5], 1), ([1, 0, 0, 0], 1)],
)
@pytest.mark.parametrize("with_test", [True, False])
def test_the_best_epochs_model_is_kept(make, model, tests, best, with_test):
    """Of equals the first, and never the untrained one."""
    run = make()
    for number, accuracy in enumerate(tests):
        mark(model, number)
        train, test = (0.5, accuracy) if with_test else (accuracy, None)
        run.record(epoch(number, train, test), [1.0, 2.0] if number else [])
    assert run.best.epoch == best
    assert kept(run) == best
    assert run.waited == 3 - best
    run.keep_something()
    assert kept(run) == best
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("update") for line in lines] == [None, 1, 2, None, 3, 4, None, 5, 6, None]


def test_the_last_model_is_kept_where_it_is_asked_for(make, model):
    run = make(keep="last")
    for number, accuracy in enumerate((0.1, 0.9, None, 0.5)):
        mark(model, number)
        run.record(epoch(number, None, accuracy), [1.0] if number else [])
    assert (run.best.epoch, run.waited, kept(run)) == (1, 1, 3)


def test_patience_counts_evaluations(make, model):
    """What is not measured is not waited for, and the untrained network is no mark."""
    run = make(patience=2)
    found = []
    for number, accuracy in enumerate((0.9, 0.5, None, 0.4, 0.6, 0.6, None, 0.1)):
        run.record(epoch(number, None, accuracy), [1.0] if number else [])
        found.append((run.waited, run.is_out_of_patience))
    assert [waited for waited, _ in found] == [0, 0, 0, 1, 0, 1, 1, 2]
    assert [over for _, over in found] == [False] * 7 + [True]
    assert run.is_finished


def test_something_is_kept_of_an_unfinished_epoch(make, model):
    run = make()
    mark(model, 0.25)
    run.keep_something()
    assert kept(run) == 0.25


def test_a_failed_save_leaves_the_last_model(make, model, monkeypatch):
    run = make()
    mark(model, 1)
    run.record(epoch(1, 0.5, 0.5), [1.0])

    def full(*arguments):
        raise OSError(28, "No space left on device")

    mark(model, 2)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        run.record(epoch(2, 0.5, 0.6), [1.0])
    assert kept(run) == 1
    assert {path.name for path in run.path.iterdir()} == {
        "config.toml", "metrics.jsonl", "model.safetensors", "epochs.csv", "checkpoint.safetensors",
    }  # fmt: skip


def test_toml_reads_back_what_was_written():
    values = {
        "text": 'a "b" \\ é 😀 \x00 \x7f \n \t', "whole": -3, "float": 1e-7, "small": 5e-324, "one": 1.0, "large": 1e300,
        "yes": True, "no": False, "infinite": float("inf"),
    }  # fmt: skip
    found = tomllib.loads(to_toml({"train": values | {"nothing": None}, "environment": {}}))
    assert found == {"train": values, "environment": {}}
    assert [type(value) for value in found["train"].values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense", "", "train = 3", "[train]\ndataset = []", "[train]\ndata_dir = 5", "[train]\ndataset = {}",
        "[train]\nx = " + "9" * 5000, "[train]\nx = " + "[" * 5000, "[environment]", '[train]\nx = "\\ud800"', b"\xff",
        b"[train]\n\0",
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_named(tmp_path, model, text):
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "config.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match="is not a run's configuration") as caught:
        open_run(tmp_path, "cpu")
    assert str(tmp_path / "config.toml") in str(caught.value)


def test_a_model_file_alone_has_no_settings(tmp_path, model):
    model.save(tmp_path / "any-name")
    assert open_run(tmp_path / "any-name", "cpu")[1] == {}
    assert open_run(str(tmp_path / "any-name"), "cpu")[0].output_shape == (2,)


def test_the_running_mean_is_of_the_last_values(rng):
    values = rng.random(30).tolist()
    for window in (1, 7, 30):
        expected = [np.mean(values[max(0, end - window) : end]) for end in range(1, 31)]
        assert running_mean(values, window) == pytest.approx(expected)


@pytest.mark.parametrize("losses", [[], [0.5], [0.0] * 50, [1e-30, 1e30]])
@pytest.mark.parametrize("accuracies", [[], [(0.1, 0.1)], [(0.1, None), (1.0, None)], [(0.0, 0.0), (0.0, 1.0)]])
def test_curves_of_next_to_nothing(tmp_path, losses, accuracies):
    epochs = [epoch(number, *both).as_dict() for number, both in enumerate(accuracies)]
    draw_curves(tmp_path / "curves.png", losses, epochs, "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
