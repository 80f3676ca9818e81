"""The benchmark on the CPU: all sides do the same work, and it says so when they do not."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_cpu.py"
CASES = [(3, 4, 6, 1, 2), (1, 5, 4, 1, 3), (3, 6, 5, 6, 2)]  # kernel, channels, size, groups, batch

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of this tree")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module


def bench(*options):
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)


def test_a_tiny_run_writes_every_number(tmp_path):
    file = tmp_path / "found.json"
    tiny = ["--only", "step", "--networks", "simple_convnet", "--rounds", "1", "--seconds", "0", "--threads", "1"]
    done = bench(*tiny, "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    (row,) = found["step"]
    there = {"xpcnn", "numpy"} | ({"torch"} if importlib.util.find_spec("torch") else set())
    assert set(row["runs"]) == there
    assert [len(runs) for runs in row["runs"].values()] == [1] * len(there)
    assert all(
        run["ms"][0] > 0 and run["peak_mb"] > run["base_mb"] > 5 for runs in row["runs"].values() for run in runs
    )
    assert row["difference"] < 1e-5
    assert found["faults"] == []
    assert "simple_convnet, 100" in done.stdout


@pytest.mark.slow
def test_the_cold_start_finds_a_class(tmp_path):
    file = tmp_path / "found.json"
    done = bench("--only", "start", "--quick", "--peers", "", "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["start"]
    assert [len(runs) for runs in found["runs"].values()] == [5, 5, 5]
    assert found["ms"]["xpcnn"]["median"] > found["ms"]["import numpy"]["median"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--networks", "lenet5,alexnet"], "takes some of simple_convnet,lenet5,resnet20,mobilenet_v2, not 'alexnet'"),
        (["--only", ""], "takes some of step,one,many,conv,start"),
        (["--peers", "tensorflow"], "takes some of torch,compile,jax, not 'tensorflow'"),
        (["--threads", "0"], "must be a whole number from 1"),
        (["--seconds", "nan"], "must be a number from 0 to 60"),
        (["--json", "/nowhere/found.json"], "No such file or directory"),
    ],
)
def test_wrong_options_end_in_one_sentence(options, fault):
    done = bench(*options)
    assert done.returncode == 2
    assert fault in done.stderr.splitlines()[-1]


def test_without_pytorch_xpcnn_is_timed_alone(script, monkeypatch, capsys):
    main = script("bench_cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main.installed(["torch"]) == []
    assert capsys.readouterr().out.startswith("torch is left out: torch is not installed.")


@pytest.mark.parametrize("network", ["simple_convnet", "lenet5", "resnet20", "mobilenet_v2"])
def test_pytorchs_networks_compute_what_xpcnns_do(network, script, tmp_path):
    pytest.importorskip("torch")
    work = script("bench_cpu_work")
    ours, theirs = script("bench_cpu_xpcnn"), script("bench_cpu_torch")
    task = {"network": network, "batch": 2, "target": str(tmp_path / "data.npz"), "data": str(tmp_path / "data.npz")}
    task |= {"work": "many", "seconds": 0, "threads": 1, "side": "torch"}
    work.prepare(ours, task)
    a, b = (np.asarray(work.predict(side, task)["check"][0]) for side in (ours, theirs))
    assert np.ptp(a) > 0.1
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_both_sides_convolve_the_same_and_work_is_counted_by_definition(script):
    pytest.importorskip("torch")
    main, work = script("bench_cpu"), script("bench_cpu_work")
    cases = [main.described(*case[:4]) | {"batch": case[4]} for case in CASES]
    task = {"cases": cases, "seconds": 0, "threads": 1}
    sides = (work.convolutions(script(f"bench_cpu_{name}"), task)["check"] for name in ("xpcnn", "torch"))
    for a, b in zip(*sides, strict=True):
        assert main.difference(a, b) < 1e-5
    large = main.described(3, 64, 56, 1)
    multiplications = large["batch"] * 64 * 56 * 56 * 64 * 3 * 3
    assert large["gflop"] == pytest.approx(2e-9 * multiplications)
    assert main.described(3, 64, 56, 64)["gflop"] == pytest.approx(2e-9 * 64 * 64 * 56 * 56 * 3 * 3)


@pytest.mark.parametrize("other", [[1.0, 2.01], [1.0, float("nan")]])
def test_a_disagreement_is_a_fault(other, script):
    main = script("bench_cpu")
    state = SimpleNamespace(faults=[])
    runs = {"xpcnn": [{"check": [[1.0, 2.0]]}], "torch": [{"check": [[1.0, 2.001]]}, {"check": [other]}]}
    assert main.compare(state, runs, "step lenet5") > 1e-3
    assert state.faults[0].startswith("step lenet5: torch differs from xpcnn by")
    del runs["torch"][1]
    state.faults.clear()
    assert main.compare(state, runs, "step lenet5") == pytest.approx(5e-4)
    assert state.faults == []


def test_a_side_that_fails_is_left_out_of_the_rounds(script):
    main = script("bench_cpu")
    answers = iter([1, None, 2, 3])
    state = SimpleNamespace(options=SimpleNamespace(rounds=3))
    found = main.alternate(state, {"a": lambda: next(answers), "b": lambda: next(answers)})
    assert found == {"a": [1, 2, 3]}
