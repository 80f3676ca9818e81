"""The check on the GPU, as far as a CPU can try it: every part ends in a summary, and the report holds them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from xpcnn.backend import cuda_devices

SCRIPTS = Path(__file__).parents[2] / "scripts"

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="the scripts are not part of this tree")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("gpu_check")


def check(*options, **variables):
    command = [sys.executable, SCRIPTS / "gpu_check.py", *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)


def test_a_dry_run_of_two_parts_is_reported(tmp_path):
    report = tmp_path / "folder" / "report.json"
    done = check(report, "--dry-run", "--parts", "bench,verify")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["ok"]
    assert found["dry_run"]
    assert found["asked"] == ["verify", "bench"]
    assert found["verify"]["certificate"]["ok"]
    assert found["bench"]["found"]["step"][0]["network"] == "simple_convnet"
    assert "verify: " in done.stdout
    assert "bench: 0 of 0 targets reached, 0 measurements failed" in done.stdout
    assert done.stdout.endswith(f"all is well: {report}\n")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_the_shell_script_tries_all_parts(tmp_path):
    variables = os.environ | {"PYTHON": sys.executable, "XPCNN_REPORT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", SCRIPTS / "gpu_check.sh", "--dry-run"], capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = tmp_path.glob("gpu-report-*.json")
    found = json.loads(report.read_text())
    assert found["tests"]["counts"]["passed"] > 10
    assert found["train"]["same_losses_twice"]
    assert [found[part]["ok"] for part in ("verify", "tests", "train", "recipes", "bench")] == [True] * 5


def test_a_budget_that_is_spent_leaves_parts_out_and_is_no_success(tmp_path):
    done = check(tmp_path / "report.json", "--dry-run", "--parts", "train", "--budget", "1")
    assert done.returncode == 1
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["train"] == {"ok": False, "summary": "LEFT OUT, no time is left"}
    assert "SOMETHING FAILED" in done.stdout


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--parts", "verify,timings"], "takes some of verify,tests,train,recipes,bench, not 'timings'"),
        (["--budget", "-1"], "must be seconds, not -1"),
    ],
)
def test_wrong_options_end_in_one_sentence(options, fault):
    done = check(*options)
    assert done.returncode == 2
    assert fault in done.stderr.splitlines()[-1]


@pytest.mark.skipif(cuda_devices()[0] > 0, reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(tmp_path):
    done = check(tmp_path / "report.json")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("gpu_check: error: nothing can be checked without a GPU: ")
    assert not (tmp_path / "report.json").exists()


def test_a_part_that_fails_says_why(script, tmp_path, monkeypatch):
    options = SimpleNamespace(dry_run=True, quick=True, data_dir=None)
    one = script.Check(options, tmp_path, dict(os.environ), time.monotonic() + 100)
    monkeypatch.setattr(
        script.Check, "python", lambda *a, **k: {"rc": 124, "fault": "stopped after 9 s", "stdout": "", "tail": "slow"}
    )
    for part in script.PARTS:
        found = script.timed(one, part)
        assert not found["ok"]
        assert "stopped after 9 s" in found["summary"], part


def test_wheels_of_what_is_missing_are_chosen_with_what_they_need(script):
    files = [Path(f"{name}-1.0-py3-none-any.whl") for name in ("execnet", "pytest_xdist", "rich", "ml_dtypes", "cupy")]
    chosen = [file.name.partition("-")[0] for file in files if script.wanted_wheel(file, ["pytest-xdist", "ml_dtypes"])]
    assert chosen == ["execnet", "pytest_xdist", "ml_dtypes"]
