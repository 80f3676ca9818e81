"""``xpcnn evaluate`` and ``xpcnn info``."""

from __future__ import annotations

import json
import os
import platform

import numpy as np
import pytest

import xpcnn as xc
from xpcnn.backend import cuda_devices
from xpcnn.data import load_dataset
from xpcnn.kernels import native


def recorded(run):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return max((r for r in records if r.get("epoch")), key=lambda r: r["test_accuracy"])


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_best_epochs_accuracy_is_measured_again(call, run, data, split):
    status, out, err = call("evaluate", run, "--device", "cpu", "--split", split, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["accuracy"] == recorded(run)[f"{split}_accuracy"]

    part = load_dataset("mnist", data)[split == "test"]
    logits = xc.Model.load(run / "model.safetensors", "cpu").predict(part.images).astype(np.float64)
    chosen = logits[np.arange(len(part)), part.labels]
    loss = np.log(np.exp(logits - chosen[:, None]).sum(axis=1)).mean()
    expected = {
        "dataset": "mnist", "split": split, "images": len(part),
        "accuracy": (logits.argmax(axis=1) == part.labels).mean(), "loss": pytest.approx(loss, rel=1e-4),
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["top1"] == found["accuracy"]
    assert found["top5"] == np.mean([t in row.argsort()[-5:] for row, t in zip(logits, part.labels, strict=True)])
    predicted = logits.argmax(axis=1)
    assert found["confusion"][4][9] == ((part.labels == 4) & (predicted == 9)).sum()
    three = found["classes"][3]
    assert (three["class"], three["support"]) == ("3", (part.labels == 3).sum())
    assert three["recall"] == pytest.approx((predicted[part.labels == 3] == 3).mean())
    assert three["precision"] == pytest.approx((part.labels[predicted == 3] == 3).mean())


def test_the_line_for_people(call, run):
    best = recorded(run)["test_accuracy"]
    for name in (run, run / "model.safetensors"):
        status, out, _ = call("evaluate", name, "--device", "cpu")
        assert status == 0
        assert out.startswith(f"mnist, test set: {100 * best:.2f} % of 1,000 images right, loss ")
        lines = out.splitlines()
        assert lines[1].endswith("have their class among the five likeliest")
        assert lines[3].split() == ["class", "images", "precision", "recall", "F1"]
        assert [line.split()[0] for line in lines[4:]] == [*"0123456789", "mean"]
        assert sum(int(line.split()[1]) for line in lines[4:-1]) == 1000
        assert len({len(line) for line in lines[3:]}) == 1


def test_other_data_can_be_named(call, refused, run, few):
    status, out, _ = call("evaluate", run, "--data-dir", few, "--device", "cpu", "--json")
    assert status == 0
    assert json.loads(out)["images"] == 100
    says = refused("evaluate", run, "--dataset", "fashion-mnist", "--data-dir", few, "--device", "cpu")
    assert "the model's classes are not those of fashion-mnist: number 0 is '0' and 'T-shirt/top'" in says
    assert "must be one of" in refused("evaluate", run, "--dataset", "cifar", "--device", "cpu")


def test_a_model_without_a_configuration(call, refused, run, few, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((run / "model.safetensors").read_bytes())
    for options in ((), ("--dataset", "mnist")):
        status, out, _ = call("evaluate", moved, *options, "--data-dir", few, "--device", "cpu")
        assert status == 0
        assert "of 100 images" in out
    own = tmp_path / "own.safetensors"
    xc.Model(xc.models.lenet5(), "cpu").save(own)
    assert "name it with --dataset" in refused("evaluate", own, "--device", "cpu")


def test_info(call):
    status, out, err = call("info", "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["xpcnn"] == xc.__version__
    assert facts["python"] == platform.python_version()
    assert facts["backends"]["numpy"] == np.__version__
    assert 1 <= facts["threads"] <= facts["cores"] <= os.cpu_count()
    assert facts["blas"]
    assert facts["kernels"].startswith("native" if native.library() else "NumPy's own")
    assert len(facts["cuda_devices"]) == cuda_devices()[0]
    assert bool(facts["cuda_missing"]) == (not facts["cuda_devices"])

    status, out, err = call("info")
    assert (status, err) == (0, "")
    for fact in (facts["xpcnn"], facts["platform"], facts["kernels"], facts["auto"], facts["blas"][0]["name"]):
        assert fact in out


@pytest.mark.parametrize("command", [(), ("--help",), ("train", "-h"), ("predict", "--help")])
def test_help(call, command):
    status, out, err = call(*command)
    assert (status, err) == (0, "")
    assert out.startswith("Usage: xpcnn")


def test_the_version(call):
    assert call("--version") == (0, f"xpcnn, version {xc.__version__}\n", "")
