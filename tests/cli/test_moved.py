"""Runs, and the data they were trained on, that are moved, left behind half written, or wanted by two at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

OPTIONS = (
    *("--model", "lenet5", "--epochs", 2, "--batch-size", 10, "--optimizer", "adam", "--keep", "last"),
    *("--image-size", 12, "--channels", 1, "--validation", 0.5, "--seed", 7, "--device", "cpu", "--quiet"),
)


@pytest.fixture
def photos(tmp_path, rng):
    """Return a folder of noise that can only be learnt by heart."""
    for number in range(40):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def run(call, photos, tmp_path):
    assert call("train", "--dataset", f"folder:{photos}", "--out", tmp_path / "run", *OPTIONS)[0] == 0
    return tmp_path / "run"


def measured(call, *arguments):
    status, out, _ = call("evaluate", *arguments, "--device", "cpu", "--json")
    assert status == 0
    found = json.loads(out)
    return found["images"], found["accuracy"], found["loss"]


def test_images_that_were_moved_are_divided_as_in_training(call, run, photos, tmp_path):
    """By the run's seed and share; else some that it was trained on would count as new."""
    before = measured(call, run)
    assert before[0] == 20
    photos.rename(tmp_path / "elsewhere")
    assert measured(call, run, "--dataset", f"folder:{tmp_path / 'elsewhere'}") == before
    for options, says in (((), "There are no images"), (("--dataset", f"folder:{tmp_path / 'elsewhere'}"), "")):
        status, out, _ = call("report", run, "--device", "cpu", "--images", 0, *options)
        assert status == 0
        assert out.startswith(says or str(run))


def test_a_resumed_run_names_the_place_of_its_images(call, run, photos, tmp_path):
    before = tomllib.loads((run / "config.toml").read_text())
    expected = measured(call, run)
    photos.rename(tmp_path / "elsewhere")
    assert call("train", "--resume", run, "--dataset", f"folder:{tmp_path / 'elsewhere'}")[0] == 0
    after = tomllib.loads((run / "config.toml").read_text())
    assert after["train"].pop("dataset") == f"folder:{tmp_path / 'elsewhere'}"
    assert before["train"].pop("dataset") == f"folder:{photos}"
    assert after == before
    assert measured(call, run.rename(tmp_path / "moved")) == expected


def test_what_killed_processes_leave_is_removed(call, run, photos, tmp_path):
    for name in ("checkpoint.safetensors", "metrics.jsonl"):
        (run / f".{name}.abcdefgh.part").write_bytes(b"half")
    (run / ".report.html.abcdefgh.part").write_bytes(b"somebody else's")
    assert call("train", "--resume", run)[0] == 0
    assert [path.name for path in run.glob(".*")] == [".report.html.abcdefgh.part"]
    shutil.rmtree(run)
    run.mkdir()
    (run / ".config.toml.abcdefgh.part").write_bytes(b"[tra")  # killed before anything was whole
    assert call("train", "--dataset", f"folder:{photos}", "--out", run, *OPTIONS)[0] == 0
    assert not list(run.glob(".*"))


HOLD = """
import sys
from pathlib import Path
from xpcnn.files import held
handle = held(Path(sys.argv[1]))
print(handle is not None, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(path):
    """Let another process hold a directory."""
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline() != "True\n":
                pytest.skip("no locks here")
            yield process
        finally:
            process.kill()


def test_two_processes_do_not_train_in_one_directory(call, refused, run, photos, tmp_path):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (tmp_path / "link").symlink_to(run)
    with holding(run):
        for name in (run, tmp_path / "link"):
            says = refused("train", "--resume", name)
            assert says.endswith(f"another process is training in {name}; wait until it ends, or end it.")
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        assert measured(call, run)[0] == 20  # reading is free
    assert call("train", "--resume", run)[0] == 0  # it was killed, and what it held with it
    (tmp_path / "new").mkdir()
    with holding(tmp_path / "new"):
        assert "another process is training" in refused(
            "train", "--dataset", f"folder:{photos}", "--out", tmp_path / "new", *OPTIONS
        )
    assert not list((tmp_path / "new").iterdir())
