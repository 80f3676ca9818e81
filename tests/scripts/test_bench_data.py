"""The benchmark of the loader: every variant trains on the same images, and every number is written down."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_data.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of this tree")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("bench_data")


def bench(*options):
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)


def test_a_tiny_run_writes_every_number(tmp_path):
    file = tmp_path / "found.json"
    tiny = ["--only", "steps", "--networks", "simple_convnet", "--rounds", "2", "--steps", "2", "--threads", "1"]
    done = bench(*tiny, "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    (row,) = found["steps"]
    assert set(row["ms"]) == {"memory", "loader", "shift", "warp", "inline"}
    assert all(len(values) == 2 and min(values) > 0 for values in row["ms"].values())
    assert row["ratios"]["warp"][1] == pytest.approx(row["ms"]["warp"][1] / row["ms"]["memory"][1])
    assert "simple_convnet, 100" in done.stdout


def test_wrong_options_end_in_one_sentence():
    done = bench("--networks", "alexnet")
    assert done.returncode == 2
    assert "takes some of simple_convnet,lenet5,resnet20, not 'alexnet'" in done.stderr.splitlines()[-1]


def test_the_loader_without_augmentation_brings_what_memory_does(script):
    data = script.data_for("resnet20", 20)
    pairs = zip(script.from_memory(data, 6, 3), script.Loader(data, 6).epoch(3), strict=True)
    assert all((x == y).all() and (s == t).all() for (x, s), (y, t) in pairs)


def test_pytorchs_shift_is_a_padded_and_mirrored_crop(script):
    pytest.importorskip("torch")
    size = (6, 2, 8, 9)
    images = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    found = script.pytorchs(script.SHIFT, size, 1)().numpy()
    padded = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)])
    for image, around in zip(found, padded, strict=True):
        crops = [a[:, y : y + 8, x : x + 9] for a in (around, around[..., ::-1]) for y in range(5) for x in range(5)]
        assert any((image == crop).all() for crop in crops)
