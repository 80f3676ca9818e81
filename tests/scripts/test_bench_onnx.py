"""The benchmark beside onnxruntime: both sides compute the same, and every number is written down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import xpcnn as xc
from xpcnn import models

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_onnx.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of this tree")


def test_a_tiny_run_writes_every_number(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    xc.Model(models.lenet5((1, 28, 28), 10), "cpu").to_onnx(tmp_path / "lenet5.onnx")
    options = [
        tmp_path / "lenet5.onnx",
        "--batches",
        "1,3",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--json",
        tmp_path / "f",
    ]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f").read_text())
    assert [row["batch"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        ms = row["ms_per_image"]
        assert min(ms.values()) > 0
        assert row["ratios"]["waiting"] == pytest.approx(ms["xpcnn"] / ms["waiting"])
        assert row["difference"] < 1e-5
    assert "spinning" in done.stdout


def test_wrong_options_are_one_sentence():
    done = subprocess.run([sys.executable, SCRIPT, "--batches", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--batches" in done.stderr
