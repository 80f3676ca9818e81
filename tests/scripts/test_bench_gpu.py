"""The benchmark on the GPU, as far as a CPU can try it: all sides do the same work, and what fails is said."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from xpcnn.backend import cuda_devices

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.py"
TINY = ["--dry-run", "--quick", "--only", "step", "--networks", "simple_convnet"]

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of this tree")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module


def bench(*options):
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)


def test_a_dry_run_measures_every_side_and_their_losses_agree(tmp_path):
    file = tmp_path / "found.json"
    torch = importlib.util.find_spec("torch")
    done = bench(*TINY, "--peers", "torch,graph" if torch else "", "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    (row,) = found["step"]
    assert list(row["sides"]) == ["xpcnn", "xpcnn eager", *(["torch eager", "torch graph"] if torch else [])]
    assert all(side["ms"]["median"] > 0 and len(side["losses"]) == 3 for side in row["sides"].values())
    assert len(set(row["sides"]["xpcnn"]["losses"])) == 3  # it does train
    assert row["difference"] < 1e-3
    assert found["dry_run"]
    assert found["faults"] == found["targets"] == []
    assert found["machine"]["versions"]["numpy"]
    assert "torch graph" in done.stdout or not torch


@pytest.mark.slow
def test_every_other_part_can_be_tried(tmp_path):
    file = tmp_path / "found.json"
    done = bench("--dry-run", "--quick", "--only", "gradients,seed,images,goal", "--peers", "", "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {row["network"] for row in found["gradients"]} == {"simple_convnet", "resnet20"}
    assert all(row["largest"]["device"] < 1e-4 for row in found["gradients"])
    assert found["seed"]["start"]["cold"]["first_step"] > found["seed"]["start"]["cold"]["imports"] > 0
    assert found["seed"]["warm"]["epochs"] == 1
    assert {row["network"] for row in found["images"]} == {"resnet20"}
    assert [run["reached"] for row in found["goal"] for run in row["runs"]] == [False, False]  # of noise


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--networks", "alexnet"], "takes some of simple_convnet,lenet5,resnet20,resnet18, not 'alexnet'"),
        (["--only", ""], "takes some of facts,gradients,step,seed,images,goal"),
        (["--peers", "keras"], "takes some of torch,compile,reduce-overhead,graph,jax, not 'keras'"),
        (["--precisions", "fp8"], "takes some of bf16,tf32,float32, not 'fp8'"),
        (["--budget", "0"], "must be a whole number from 1"),
        (["--seconds", "nan"], "must be a number from 0 to 60"),
        (["--json", "/nowhere/found.json"], "No such file or directory"),
    ],
)
def test_wrong_options_end_in_one_sentence(options, fault):
    done = bench("--dry-run", *options)
    assert done.returncode == 2
    assert fault in done.stderr.splitlines()[-1]


@pytest.mark.skipif(cuda_devices()[0] > 0, reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so():
    done = bench("--quick")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("bench_gpu: error: no GPU can be measured: ")
    assert line.endswith(cuda_devices()[1])


def test_what_there_is_no_time_for_is_left_out_and_named(script, tmp_path, capsys):
    parts = script("bench_gpu_parts")
    options = SimpleNamespace(dry_run=True, quick=True, peers=[], networks=["lenet5"], precisions=["float32"])
    run = parts.Bench(options, tmp_path, time.monotonic() - 1)
    for part in ("facts", "gradients", "step", "seed", "images"):
        parts.MEASURES[part](run)
    assert run.faults == []
    assert "step lenet5 float32: no time is left" in run.found["left_out"]
    assert "left out: images resnet20 float32: no time is left" in capsys.readouterr().out


def test_a_process_that_fails_or_hangs_is_a_sentence(script):
    process = script("bench_gpu_process")
    worker = process.Worker({"work": "step", "library": "nothing", "data": "nowhere"}, dict(os.environ))
    with pytest.raises(process.WorkError, match="No module named 'bench_gpu_nothing'") as found:
        worker.answer(60)
    assert "Traceback" in found.value.tail
    with pytest.raises(process.WorkError, match="stopped after 0 s"):
        process.run([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), 0.3)
    with pytest.raises(process.WorkError, match=r"^gone$") as found:
        process.run([sys.executable, "-c", "print('so far'); raise SystemExit('gone')"], dict(os.environ), 60)
    assert (found.value.status, found.value.printed) == (1, "so far\n")


def test_one_bad_side_leaves_the_others(script, tmp_path, capsys):
    parts = script("bench_gpu_parts")
    options = SimpleNamespace(dry_run=True, rounds=1, seconds=0.0)
    run = parts.Bench(options, tmp_path, time.monotonic() + 100)
    sides = {"xpcnn": ("xpcnn", "captured", "auto"), "other": ("nothing", "eager", "")}
    run.found["step"] = []
    parts.table(run, "step", "simple_convnet", "float32", sides, False)
    assert list(run.found["step"][0]["sides"]) == ["xpcnn"]
    (fault,) = run.faults
    assert fault.startswith("step simple_convnet float32, other: ModuleNotFoundError")
    assert "FAILED" in capsys.readouterr().out


def test_losses_that_differ_are_a_fault(script, tmp_path):
    parts = script("bench_gpu_parts")
    run = parts.Bench(SimpleNamespace(dry_run=True), tmp_path, 0.0)
    sides = {"xpcnn": {"losses": [2.0, 1.0]}, "torch eager": {"losses": [2.0, 1.01]}}
    assert parts.compare(run, "step", "float32", sides) == pytest.approx(0.005)
    assert run.faults == ["step: torch eager's first losses differ from xpcnn's by 5.0e-03"]
    assert parts.compare(run, "step", "tf32", sides) == pytest.approx(0.005)
    assert len(run.faults) == 1


def test_targets_are_reached_missed_or_unknown(script):
    tables = script("bench_gpu_tables")
    empty = tables.targets({})
    assert len(empty) == 9
    assert {row["met"] for row in empty} == {None}
    sides = {
        side: {"ms": {"median": ms}} for side, ms in {"xpcnn": 0.1, "torch eager": 0.31, "torch graph": 0.09}.items()
    }
    found = {
        "step": [{"network": "simple_convnet", "sides": sides}],
        "seed": {"warm": {"training_s": 1.2, "test_accuracy": 0.987}, "start": {"cold": {"first_step": 9.0}}},
        "gradients": [{"network": "simple_convnet", "largest": {"device": 2e-6, "cpu": 1e-6}}],
    }
    met = {row["what"].partition(":")[0] + str(row["met"]): row["found"] for row in tables.targets(found)}
    assert met["seed runFalse"] == 1.2
    assert met["seed runTrue"] == 0.987
    assert met["simple_convnetTrue"] == pytest.approx(3.1)
    assert met["simple_convnetFalse"] == pytest.approx(0.9)
    assert met["gradients, float32True"] == 2e-6
    assert met["before the first step, coldTrue"] == 9.0
    assert met["before the first step, warmNone"] is None
