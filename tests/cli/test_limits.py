"""``--max-memory`` and ``--threads``: followed, and refused before anything is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from safetensors.numpy import load_file

import xpcnn as xc


@pytest.fixture
def brief(few):
    return ["train", "--data-dir", few, "--device", "cpu", "--epochs", 1, "--batch-size", 200]


def losses(run):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "update" in line]


def test_training_in_tiles_learns_the_same(call, brief, tmp_path):
    runs = []
    for name, options in (("whole", []), ("tiled", ["--max-memory", "27MB", "--threads", 1])):
        status, out, _ = call(*brief, "--out", tmp_path / name, *options)
        assert status == 0
        assert ("tiles of up to" in out) == (name == "tiled")
        runs.append(losses(tmp_path / name))
    assert len(runs[0]) == 2
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    settings = tomllib.loads((tmp_path / "tiled" / "config.toml").read_text())
    assert settings["train"]["max_memory"] == "27MB"
    assert settings["environment"]["threads"] == 1


def test_a_limit_that_is_wide_enough_changes_no_bit(call, brief, tmp_path):
    for name, options in (("free", []), ("wide", ["--max-memory", "4GiB"])):
        assert call(*brief, "--out", tmp_path / name, "--quiet", *options)[0] == 0
    assert losses(tmp_path / "free") == losses(tmp_path / "wide")
    free, wide = (load_file(tmp_path / name / "model.safetensors") for name in ("free", "wide"))
    assert list(free) == list(wide)
    assert all(free[path].tobytes() == wide[path].tobytes() for path in free)


def test_the_least_limit_is_named_and_works(refused, call, brief, tmp_path):
    says = refused(*brief, "--out", tmp_path / "run", "--max-memory", "2MB")
    assert "max_memory of 2.0MB is too small: even one image at a time takes" in says
    assert not (tmp_path / "run").exists()
    least = re.search(r"takes ([0-9.]+MB)", says)[1]
    status, out, _ = call(*brief, "--out", tmp_path / "run", "--max-memory", least)
    assert status == 0
    assert f"of {least} allowed" in out


def test_batch_norm_needs_its_batch(refused, brief, tmp_path):
    says = refused(*brief, "--model", "resnet20", "--out", tmp_path / "run", "--max-memory", "50MB")
    assert re.search(r"layer stem/norm1 \(BatchNorm\) needs the whole batch at once, and 200 images take \d", says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-memory", ""], "max_memory must be a size above 0"),
        (["--max-memory", "0"], "max_memory must be a size above 0"),
        (["--max-memory", "-5MB"], "max_memory must be a size above 0"),
        (["--max-memory", "lots"], "max_memory must be a size above 0"),
        (["--max-memory", "nanMB"], "max_memory must be a size above 0"),
        (["--max-memory"], "requires an argument"),
        (["--threads", "0"], "0 is not in the range 1<=x<=1024"),
        (["--threads", "-1"], "not in the range"),
        (["--threads", "1025"], "not in the range"),
        (["--threads", "two"], "is not a valid integer"),
        (["--threads", "1.5"], "is not a valid integer"),
        (["--threads"], "requires an argument"),
    ],
)
def test_wrong_values(refused, brief, tmp_path, options, says):
    assert says in refused(*brief, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_threads_hold_while_a_command_runs(call, run, digits, monkeypatch):
    before, seen = xc.num_threads(), []
    predict = xc.Model.predict
    monkeypatch.setattr(xc.Model, "predict", lambda *given: seen.append(xc.num_threads()) or predict(*given))
    for command in (["evaluate", run], ["predict", run, digits[0][0]]):
        assert call(*command, "--device", "cpu", "--threads", 3)[0] == 0
    assert set(seen) == {3}
    assert len(seen) >= 2
    assert xc.num_threads() == before


def test_threads_are_restored_after_a_fault(refused, run):
    before = xc.num_threads()
    refused("predict", run, "nowhere.png", "--device", "cpu", "--threads", before + 1)
    assert xc.num_threads() == before


@pytest.mark.parametrize("command", [["train", "--out", "out"], ["evaluate", "out"], ["predict", "out", "x.png"]])
def test_a_wrong_environment_is_one_sentence(command, tmp_path):
    def started(*options, threads):
        arguments = [sys.executable, "-m", "xpcnn", *command, *options]
        environment = os.environ | {"XPCNN_NUM_THREADS": threads}
        return subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    for threads in ("0", "many"):
        process = started(threads=threads)
        assert process.returncode == 2
        assert process.stdout == ""
        assert process.stderr.startswith("xpcnn: error: the environment variable XPCNN_NUM_THREADS must be a whole num")
        assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    other = started("--threads", "1", "--device", "nonsense", threads="many")  # what is asked for comes first
    assert "XPCNN_NUM_THREADS" not in other.stderr
