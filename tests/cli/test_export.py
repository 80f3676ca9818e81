"""``xpcnn export``: a run becomes an ONNX file that computes the same."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from runs import make_run

import xpcnn as xc
from xpcnn import files
from xpcnn.data.normalise import Normalise

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path, rng):
    """Return a run's directory, with a model that normalises."""
    made = make_run(tmp_path, rng)
    model = made.model
    model.normalise = Normalise(0.25, 0.5)
    model.save(made.path / "model.safetensors")
    return made.path


def outputs(path, x):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


def test_a_run_or_a_model_file(call, run, rng, tmp_path):
    model = xc.Model.load(run / "model.safetensors", "cpu")
    x = rng.standard_normal((3, 1, 12, 12)).astype(np.float32)
    for number, name in enumerate((run, run / "model.safetensors")):
        out = tmp_path / f"{number}.onnx"
        status, said, err = call("export", name, out)
        assert (status, err) == (0, "")
        np.testing.assert_allclose(outputs(out, x), model.predict(x), rtol=0, atol=1e-5)
        facts = json.loads((tmp_path / f"{number}.onnx.json").read_text())
        lines = said.splitlines()
        assert lines[0] == f"opset 17, IR version 8, 5 nodes, {os.path.getsize(out):,} bytes"
        assert lines[1:4] == [
            "takes input (N, 1, 12, 12) float32",
            "returns output (N, 3) float32",
            "images are to be normalised first: (pixel / 255 - 0.25) / 0.5",
        ]
        for line, key in zip(lines[4:6], ("reference", "onnxruntime"), strict=True):
            assert f"differs by at most {facts[key]['absolute']:.1e}, {facts[key]['relative']:.1e} of" in line
        assert lines[6:] == [f"written to {out}; what was measured to {out}.json"]


def test_pixels(call, run, rng, tmp_path):
    model = xc.Model.load(run / "model.safetensors", "cpu")
    status, said, _ = call("export", run, tmp_path / "m.onnx", "--normalise", "--opset", "21")
    assert status == 0
    assert said.startswith("opset 21, IR version 10, 8 nodes")
    assert "takes input (N, 1, 12, 12) uint8\n" in said
    assert "normalised first" not in said
    x = rng.integers(0, 256, (4, 1, 12, 12), np.uint8)
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx", x), model.predict(x), rtol=0, atol=1e-5)


def test_without_a_check(call, run, tmp_path, monkeypatch):
    monkeypatch.setattr(xc.Model, "predict", None)
    status, said, _ = call("export", run, tmp_path / "m.onnx", "--no-check")
    assert status == 0
    assert "its outputs were not compared with the model's\n" in said
    assert "onnxruntime" not in said


def test_what_is_left_out_is_said(call, run, tmp_path, monkeypatch):
    from xpcnn.interop import onnx_check

    monkeypatch.setattr(onnx_check, "MOST_SECONDS", 0.0)
    _, said, _ = call("export", run, tmp_path / "m.onnx")
    assert "ONNX's reference evaluator was left out: it would take about 0 s\n" in said


def test_what_cannot_be(refused, run, tmp_path, monkeypatch):
    out = tmp_path / "m.onnx"
    assert "must end in .onnx, not 'm.pt'" in refused("export", run, tmp_path / "m.pt")
    assert "nowhere/m.onnx: No such file or directory" in refused("export", run, tmp_path / "nowhere" / "m.onnx")
    assert "there is no run" in refused("export", tmp_path / "nothing", out)
    assert "too low: it must be 17 or more" in refused("export", run, out, "--opset", "9")
    assert "is higher than the installed onnx" in refused("export", run, out, "--opset", "999")
    assert "not a valid integer" in refused("export", run, out, "--opset", "new")
    assert "Missing argument 'FILE.onnx'" in refused("export", run)
    (tmp_path / "is.onnx").mkdir()
    assert "is.onnx: Is a directory" in refused("export", run, tmp_path / "is.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "is.onnx"}


def test_a_disk_that_fills_up(refused, run, tmp_path, monkeypatch):
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert f"{out}: No space left on device" in refused("export", run, out)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "m.onnx"}
    assert out.read_bytes() == b"old"
