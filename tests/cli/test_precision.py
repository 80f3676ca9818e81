"""``--precision`` and ``--conv-engine``: what is done, recorded and refused."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from safetensors.numpy import load_file


@pytest.fixture
def half(call, few, tmp_path):
    """Return a run trained in bfloat16."""
    pytest.importorskip("torch")
    out = tmp_path / "run"
    options = ["--data-dir", few, "--epochs", 1, "--device", "torch", "--precision", "bf16", "--out", out]
    status, printed, _ = call("train", *options)
    assert status == 0
    assert "seed 0, bf16\n" in printed
    return out


def test_a_run_is_trained_measured_and_used_in_bfloat16(call, half, few, digits):
    settings = tomllib.loads((half / "config.toml").read_text())["train"]
    assert (settings["precision"], settings["conv_engine"], settings["dtype"]) == ("bf16", "auto", "float32")
    assert {array.dtype for array in load_file(half / "model.safetensors").values()} == {np.dtype(np.float32)}
    losses = {}
    for precision, device in (("float32", "cpu"), ("float32", "torch"), ("bf16", "torch")):
        status, out, _ = call(
            "evaluate", half, "--data-dir", few, "--device", device, "--precision", precision, "--json"
        )
        assert status == 0
        losses[precision, device] = json.loads(out)["loss"]
    assert losses["float32", "torch"] == pytest.approx(losses["float32", "cpu"], rel=1e-5)
    assert losses["bf16", "torch"] == pytest.approx(losses["float32", "cpu"], rel=0.02)
    assert losses["bf16", "torch"] != pytest.approx(losses["float32", "cpu"], rel=1e-6)
    found = []
    for precision in ("float32", "bf16"):
        status, out, _ = call("predict", half, *digits[0], "--device", "torch", "--precision", precision, "--json")
        assert status == 0
        found.append([result["predictions"][0]["probability"] for result in json.loads(out)])
    np.testing.assert_allclose(found[1], found[0], atol=0.03)
    assert found[0] != found[1]


def test_bench_says_what_it_measured(call):
    pytest.importorskip("torch")
    options = ["simple-convnet", "--device", "torch", "--batch-size", 4, "--steps", 1, "--input-shape", "1x12x12"]
    status, out, _ = call("bench", *options, "--precision", "bf16")
    assert status == 0
    assert "adagrad, bf16, torch on cpu" in out
    status, out, _ = call("bench", *options, "--json")
    assert json.loads(out)["precision"] == "float32"


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_what_a_cpu_cannot_do_is_refused(refused, few, run, digits, tmp_path, precision):
    option = "--device", "cpu", "--precision", precision
    out = tmp_path / "new"
    for command in (
        ("train", "--data-dir", few, "--out", out),
        ("evaluate", run),
        ("predict", run, digits[0][0]),
        ("bench", "lenet5"),
        ("bench", run),
    ):
        assert refused(*command, *option).startswith(f"xpcnn: error: precision {precision} needs ")
    assert not out.exists()


def test_float64_is_computed_in_float64(refused, few):
    pytest.importorskip("torch")
    says = refused("train", "--data-dir", few, "--device", "torch", "--dtype", "float64", "--precision", "bf16")
    assert says == "xpcnn: error: precision bf16 is for models of dtype float32, not of float64."


def test_cudnn_is_cudas(refused, call, few, tmp_path):
    says = refused("train", "--data-dir", few, "--device", "cpu", "--conv-engine", "cudnn")
    assert says == "xpcnn: error: conv_engine cudnn needs CUDA, but the device is numpy on cpu."
    options = ["--data-dir", few, "--device", "cpu", "--epochs", 1, "--conv-engine", "im2col", "--quiet"]
    assert call("train", *options, "--out", tmp_path / "run")[0] == 0
    settings = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["train"]
    assert settings["conv_engine"] == "im2col"


@pytest.mark.parametrize("option", ["--precision", "--conv-engine"])
def test_other_words_are_refused(call, few, option):
    status, _, err = call("train", "--data-dir", few, option, "fp8")
    assert status == 2
    assert "fp8" in err
