"""The scripts behind the tables of the pages: what they count and measure."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xpcnn import Model, load_dataset, models

SCRIPTS = Path(__file__).parents[2] / "scripts"

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="the scripts are not part of this tree")


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dead_filters_and_dead_hidden_units_are_counted():
    model = Model(models.simple_convnet(), "cpu")
    values = {path: np.array(value) for path, value in model.parameters().items()}
    values["conv1/weight"][:, 0, 2, 2] = 1.0  # now some pixel brings every filter above 0
    values["conv1/bias"][:] = 0.5
    values["conv1/bias"][[3, 7]] = -1000.0
    values["affine1/weight"] = np.abs(values["affine1/weight"])
    values["affine1/bias"][:4] = -1e6
    model.load_parameters(values)
    images = load_dataset("mnist")[1].images[:20]
    assert load("book_experiment").living(model, images) == (28, 96)


def test_the_books_experiment_ends_with_its_records(tmp_path):
    command = [sys.executable, SCRIPTS / "book_experiment.py", "--limit", "200", "--epochs", "1", "--seeds", "0", "1"]
    done = subprocess.run([*command, "--json", "--curves", tmp_path / "c.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [(r["seed"], len(r["losses"]), len(r["epochs"])) for r in results] == [(0, 2, 2), (1, 2, 2)]
    assert results[0]["losses"] != results[1]["losses"]
    assert results[0]["losses"][0] == pytest.approx(np.log(10), abs=0.01)  # the book's weights know nothing yet
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_the_cures_are_in_the_networks_they_are_named_for():
    script = load("compare_cures")
    plain, normalised = (script.network(script.INITIAL["He"], with_norm) for with_norm in (False, True))
    assert not plain.state((1, 28, 28))
    assert {path.partition("/")[0] for path in normalised.state((1, 28, 28))} == {"norm1", "norm2", "norm3"}
    weights = {name: Model(script.network(init, False), "cpu").parameters() for name, init in script.INITIAL.items()}
    assert weights["N(0, 0.01)"]["affine1/weight"].std() == pytest.approx(0.01, rel=0.05)
    assert weights["He"]["affine1/weight"].std() == pytest.approx((2 / 256) ** 0.5, rel=0.05)


def test_a_cure_is_measured_on_the_test_images():
    script = load("compare_cures")
    train, test = (part.first(300) for part in load_dataset("mnist"))
    options = SimpleNamespace(epochs=3, device="cpu")
    found = script.measure(("He", "Adam 0.001", "batch norm"), train, test, 0, options)
    assert 0.3 < found["test_accuracy"] <= 1.0
    assert found["loss"] < np.log(10)
