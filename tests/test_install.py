"""The wheel, installed into a fresh environment, trains from it outside the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import xpcnn

ROOT = Path(xpcnn.__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="this xpcnn runs from an installed wheel"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_everything_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "xpcnn/kernels/cuda/windows.cu", "xpcnn/data/mnist/train-images-idx3-ubyte.gz", "xpcnn/data/mnist/LICENSE",
        "xpcnn/data/mnist/t10k-labels-idx1-ubyte.gz", "xpcnn/cli/train.py", "xpcnn/py.typed",
    ):  # fmt: skip
        assert needed in names
    assert {name.split("/")[0] for name in names} == {"xpcnn", f"xpcnn-{xpcnn.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 13_000_000


def test_it_trains_from_a_fresh_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    _run(python, "-m", "pip", "install", "-q", str(wheel))
    work = tmp_path / "work"
    work.mkdir()
    command = tmp_path / "env" / "bin" / "xpcnn"
    out = _run(
        command, "train", "--device", "cpu", "--model", "lenet5", "--optimizer", "adam", "--epochs", "1", cwd=work
    )
    assert "before training" in out
    (run,) = (work / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "metrics.jsonl", "epochs.csv", "model.safetensors", "checkpoint.safetensors", "curves.png"
    }  # fmt: skip
    assert tomllib.loads((run / "config.toml").read_text())["train"]["model"] == "lenet5"
    accuracy = float(_run(command, "evaluate", "--device", "cpu", str(run), cwd=work).split(":")[1].split("%")[0])
    assert accuracy > 95.0
    where = _run(python, "-c", "import xpcnn; print(xpcnn.__file__)", cwd=work)
    assert Path(where.strip()).is_relative_to(tmp_path / "env")


def _run(*command, cwd=None):
    """Run a command without this environment's variables about Python; return what it prints."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
