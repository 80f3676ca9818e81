"""``xpcnn verify`` as a person runs it."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

import xpcnn
from xpcnn import ops
from xpcnn.verify import OPS, TOLERANCE


def test_the_certificate(call, tmp_path):
    path = tmp_path / "certificate.json"
    status, out, err = call("verify", "--device", "cpu", "--cases", 3, "--seed", 7, "--out", path)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "numpy on cpu, 3 cases per op, seed 7"
    assert [line.split()[0] for line in lines[3:-1]] == list(OPS)
    assert all(line.endswith("  ok") for line in lines[3:-1])
    assert lines[-1].startswith(f"{len(OPS)} ops verified on numpy on cpu in ")
    assert lines[-1].endswith(f"the certificate is {path}.")
    found = json.loads(path.read_text())
    assert found["ok"] is True
    assert (found["backend"], found["device"], found["seed"]) == ("numpy", "cpu", 7)
    assert found["versions"]["xpcnn"] == xpcnn.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert [(row["op"], row["dtype"]) for row in found["results"]] == [(op, dtype) for op in OPS for dtype in TOLERANCE]
    for row in found["results"]:
        assert row["backend"] == "numpy"
        assert row["cases"] == 3
        assert row["ok"] is True
        assert row["first_failure"] is None
        assert 0 <= row["largest_forward_error"] <= row["tolerance"]
        assert 0 <= row["largest_gradient_error"] <= row["tolerance"]


def test_another_backend_and_the_usual_name(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("verify", "--device", "array_api_strict", "--cases", 2, "--op", "relu", "--op", "max-pool1d")
    assert status == 0
    assert "2 ops verified on array_api_strict" in out
    found = json.loads((tmp_path / "xpcnn-verify-array_api_strict.json").read_text())
    assert {row["op"] for row in found["results"]} == {"relu", "max_pool1d"}
    assert found["versions"]["array_api_strict"]


def test_a_wrong_op_fails(call, tmp_path, monkeypatch):
    real = ops.sigmoid_backward
    monkeypatch.setattr(ops, "sigmoid_backward", lambda dy, saved: real(dy, saved) * dy.dtype.type(1.01))
    path = tmp_path / "certificate.json"
    options = ["--op", "sigmoid", "--op", "tanh", "--cases", 20, "--out", path]
    status, out, _ = call("verify", "--device", "cpu", *options)
    assert status == 1
    assert "1 of 2 ops failed (sigmoid) on numpy on cpu" in out
    assert "first case" in out
    found = json.loads(path.read_text())
    assert found["ok"] is False
    wrong = [row for row in found["results"] if not row["ok"]]
    assert [(row["op"], row["dtype"]) for row in wrong] == [("sigmoid", "float32"), ("sigmoid", "float64")]
    for row in wrong:
        assert row["largest_gradient_error"] > row["tolerance"] > row["largest_forward_error"]
        assert "sigmoid(x=array" in row["first_failure"]
        assert "the gradient of x is off by" in row["first_failure"]


def test_an_op_that_raises_leaves_a_certificate(call, tmp_path, monkeypatch):
    def broken(x):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(ops, "relu", broken)
    path = tmp_path / "certificate.json"
    assert call("verify", "--device", "cpu", "--op", "relu", "--cases", 2, "--out", path)[0] == 1
    assert "RuntimeError: no kernel image" in json.loads(path.read_text())["results"][0]["first_failure"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--op", "conv9d"], "there is no op 'conv9d'; the ops are conv1d, conv2d"),
        (["--cases", "0"], "not in the range"),
        (["--seed", "-1"], "not in the range"),
        (["--device", "gpu"], "device must be one of auto, cpu, cuda"),
        (["--out", "nowhere/certificate.json"], "No such file or directory"),
        (["--out", "."], "Is a directory"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_sentence(call, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("verify", "--device", "cpu", *options)
    assert (status, out) == (2, "")
    assert err.startswith("xpcnn: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_cuda_without_cupy(call):
    status, _, err = call("verify", "--device", "cuda")
    assert status == 2
    assert "CuPy is not installed" in err
