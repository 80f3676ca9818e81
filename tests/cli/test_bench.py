"""``xpcnn bench``."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers
from xpcnn.cli.bench import WARM, peak_memory

SMALL = ["--batch-size", 6, "--steps", 3, "--device", "cpu"]


def test_times_and_profile_as_json(call):
    status, out, _ = call("bench", "two_conv_net", *SMALL, "--profile", "--json", "--input-shape", "1x16x16")
    assert status == 0
    found = json.loads(out)
    assert found["input_shape"] == [1, 16, 16]
    assert found["device"] == "numpy on cpu"
    for name, images in (("training step", 6), ("prediction", 6), ("prediction of one image", 1)):
        times = found["times"][name]
        assert 0 < times["least_ms"] <= times["median_ms"]
        assert times["images_per_second"] == pytest.approx(1000 * images / times["median_ms"])
    assert found["peak_memory"] >= found["memory_before"] > 1e7
    profile = found["profile"]
    for rows in (profile["layers"], profile["kernels"]):
        assert sum(row["ms"] for row in rows) == pytest.approx(profile["step_ms"], rel=0.05)
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert min(row["ms"] for row in rows) >= 0
    layers = {row["layer"]: row for row in profile["layers"]}
    assert list(layers)[-3:] == ["loss", "update", "other"]
    for row in profile["layers"][:-2]:
        assert row["forward_ms"] + row["backward_ms"] == pytest.approx(row["ms"])
    assert layers["update"]["ms"] > 0 < layers["loss"]["ms"]
    assert layers["other"]["share"] < 0.5
    assert profile["kernels"][-1]["kernel"] == "other"


def test_work_is_counted_and_rates_follow_from_it(call):
    """simple_convnet's conv1 makes 30·24·24·25 products an image, twice a step; its affine layers make three times."""
    _, out, _ = call("bench", "simple-convnet", *SMALL, "--profile", "--json")
    rows = {row["layer"]: row for row in json.loads(out)["profile"]["layers"]}
    expected = {"conv1+relu1+pool1": 2 * 30 * 24 * 24 * 25, "affine1": 3 * 4320 * 100, "affine2": 3 * 1000}
    for layer, products in expected.items():
        assert rows[layer]["multiply_adds"] == 6 * products
        assert rows[layer]["gflops"] == pytest.approx(2e-6 * 6 * products / rows[layer]["ms"])
    assert rows["relu2"]["gflops"] is None


def test_tables_for_people(call):
    status, out, _ = call("bench", "simple_convnet", *SMALL, "--profile")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("simple_convnet on images 1×28×28, 433,890 parameters, adagrad, numpy on cpu")
    starts = [line.split("  ")[0] for line in lines]
    for start in (
        "training step",
        "prediction",
        "prediction of one image",
        "conv1+relu1+pool1",
        "loss",
        "update",
        "kernel",
    ):
        assert start in starts
    shares = [float(line.split(" %")[0].split()[-1]) for line in lines if " %" in line]
    assert sum(shares) == pytest.approx(200, abs=2)  # two tables


def test_small_rows_are_shown_together(call):
    _, out, _ = call("bench", "resnet20", "--batch-size", 2, "--steps", 1, "--device", "cpu", "--profile")
    layers = out.split("by layer")[1].split("by kernel")[0].splitlines()
    (more,) = [line for line in layers if " more  " in line]
    shown = len(layers) - 1 - 1 - 4 - 1  # its heading, then more, loss, update and other, and a blank
    assert int(more.split()[0]) >= 3
    assert shown + int(more.split()[0]) >= 19 + 19
    shares = [float(line.split(" %")[0].split()[-1]) for line in layers if " %" in line]
    assert sum(shares) == pytest.approx(100, abs=3)


def test_each_is_called_as_often_as_asked(call, monkeypatch):
    steps, sizes = [], []
    step, predict = xc.Trainer.step, xc.Model.predict
    monkeypatch.setattr(xc.Trainer, "step", lambda self, x, t: (steps.append(len(x)), step(self, x, t))[1])
    monkeypatch.setattr(
        xc.Model, "predict", lambda self, x, batch_size=None: (sizes.append(len(x)), predict(self, x, batch_size))[1]
    )
    assert call("bench", "lenet5", "--batch-size", 4, "--steps", 5, "--device", "cpu")[0] == 0
    assert steps == [4] * (WARM + 5)
    assert sizes == [4] * (WARM + 5) + [1] * (WARM + 5)


def test_a_saved_model(call, run, tmp_path):
    status, out, _ = call("bench", run, *SMALL)
    assert status == 0
    assert "433,890 parameters" in out
    before = (run / "model.safetensors").read_bytes()
    assert call("bench", run / "model.safetensors", *SMALL)[0] == 0
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("device", ["array_api_strict", "torch"])
def test_other_backends(call, device):
    if device == "torch":
        pytest.importorskip("torch")
    options = ["--batch-size", 2, "--steps", 1, "--device", device, "--profile", "--json", "--input-shape", "1x16x16"]
    status, out, _ = call("bench", "two-conv-net", *options)
    assert status == 0
    assert "matmul" in {row["kernel"] for row in json.loads(out)["profile"]["kernels"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lenet6"], "lenet6"),
        ([], "MODEL"),
        (["lenet5", "--steps", "0"], "--steps"),
        (["lenet5", "--steps", "many"], "--steps"),
        (["lenet5", "--batch-size", "0"], "--batch-size"),
        (["lenet5", "--device", "tpu"], "tpu"),
        (["lenet5", "--input-shape", "1x4x4"], "conv2"),
        (["lenet5", "--input-shape", "wide"], "wide"),
        (["lenet5", "--input-shape", "7"], "input_shape"),
        (["lenet5", "--optimizer", "magic"], "magic"),
        (["lenet5", "--threads", "0"], "--threads"),
    ],
)
def test_bad_input_is_one_sentence(refused, arguments, says):
    assert says in refused("bench", *arguments)


def test_a_saved_model_keeps_its_shape(refused, run):
    assert "--input-shape" in refused("bench", run, "--input-shape", "1x28x28", "--device", "cpu")


def test_a_model_without_classes_is_refused(refused, tmp_path):
    path = tmp_path / "maps.safetensors"
    xc.Model(layers.Sequential(layers.Conv2D(2, 3), input_shape=(1, 5, 5)), "cpu").save(path)
    assert "(2, 3, 3)" in refused("bench", path, "--device", "cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count in their own way")
def test_peak_memory_sees_what_was_touched():
    before = peak_memory()
    size = before + (64 << 20)  # more than was ever resident
    block = np.ones(size, np.uint8)
    assert peak_memory() >= size
    del block
    assert peak_memory() >= size
