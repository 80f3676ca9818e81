"""The benchmark of several ranks: every number is written down, and the model is the formula that it says it is."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import mpi
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_parallel.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of this tree")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("bench_parallel")


def bench(*options):
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)


@pytest.mark.skipif(not mpi.available(), reason="mpiexec or mpi4py is not installed")
def test_a_tiny_run_writes_every_number(tmp_path):
    file = tmp_path / "found.json"
    tiny = ["--ranks", "2", "--threads", "1", "--rounds", "1", "--steps", "2", "--batch", "4"]
    done = bench(*tiny, "--latency", "50", "--bandwidth", "8", "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    alone, two = found["steps"]
    assert [(row["ranks"], row["threads"], row["runs"][0]["ranks"]) for row in (alone, two)] == [(1, 1, 1), (2, 1, 2)]
    assert [run["threads"] for row in (alone, two) for run in row["runs"]] == [1, 1]
    assert len(two["runs"][0]["ms"]) == 2 == len(alone["runs"][0]["ms"])
    assert two["ratios"] == [two["images_per_second"][0] / alone["images_per_second"][0]]
    assert 0 < two["runs"][0]["sum_ms"] < sum(two["runs"][0]["ms"])
    (sums,) = found["sums"]
    assert sums["bytes"][0] == 1024
    assert sums["bytes"][-1] == 64 << 20
    assert all(times[-1] > times[0] > 0 for times in (sums["ms"]["mpi"], sums["ms"]["gradients"]))
    size = found["model"]["bytes"]
    assert size == two["runs"][0]["sum_bytes"] >= 4 * 433_890  # of the book's network, float32
    last = found["model"]["foretold"][-1]
    assert last["ranks"] == 4
    assert last["sum_ms"] == pytest.approx(1e3 * (6 * 50e-6 + 1.5 * size / 1e9))
    assert last["same_batch"] == pytest.approx(4e3 / (last["step_ms"] + last["sum_ms"]))
    assert "A MODEL, NOT A MEASUREMENT" in done.stdout


def test_a_ring_takes_what_its_formula_says(script):
    assert script.ring(1, 1e9, 1e-6, 1e9) == 0
    assert script.ring(2, 4e6, 1e-5, 1e9) == pytest.approx(2e-5 + 4e-3)  # 2 messages, in which all bytes go out once
    assert script.ring(4, 4e6, 1e-5, 1e9) == pytest.approx(6e-5 + 6e-3)  # 6 messages of a quarter each


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_latency_and_bandwidth_are_found_again(script, ranks):
    sizes = [1 << 10, 1 << 16, 1 << 24]
    seconds = [script.ring(ranks, size, 7e-6, 3e9) for size in sizes]
    assert script.fitted(ranks, sizes, seconds) == pytest.approx((7e-6, 3e9))


def test_losses_that_differ_are_a_fault(script):
    found = script.Bench(None)
    script.compare(found, [{"losses": [2.0, 1.0]}], [{"losses": [2.0, 1.0005]}], "2 ranks")
    assert found.faults == []
    script.compare(found, [{"losses": [2.0, 1.0]}], [{"losses": [2.0, 1.01]}], "2 ranks")
    assert found.faults == ["2 ranks: the losses differ from those of 1 rank by 5.0e-03"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--ranks", "1,0"], "must be a whole number from 1 to 10000, not '0'"),
        (["--latency", "-1"], "must be a number above 0, not '-1'"),
        (["--network", "alexnet"], "invalid choice: 'alexnet'"),
        (["--only", "everything"], "takes some of steps,sums,model"),
    ],
)
def test_wrong_options_end_in_one_sentence(options, fault):
    done = bench(*options)
    assert done.returncode == 2
    assert fault in done.stderr.splitlines()[-1]
