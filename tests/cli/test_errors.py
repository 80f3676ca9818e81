"""Every fault of a user or a file is one sentence and exit status 2."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from samples import write_dataset

import xpcnn as xc
from xpcnn.data import named


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the file of a small model of 8×8 images."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    net = xc.models.simple_convnet((1, 8, 8), 3, filters=2, kernel_size=3, hidden=4)
    xc.Model(net, "cpu", classes="abc").save(path)
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--bogus"], "No such option"),
        (["--bogus\nsecond line"], "No such option"),
        (["extra"], "unexpected extra argument"),
        (["--lr"], "requires an argument"),
        (["--lr", "nan"], "lr must be above 0, not nan"),
        (["--lr", "inf"], "lr must be above 0, not inf"),
        (["--lr", "-0.1"], "lr must be above 0, not -0.1"),
        (["--lr", "0"], "lr must be above 0, not 0.0"),
        (["--lr", "1e-400"], "lr must be above 0, not 0.0"),
        (["--lr", "fast"], "not a valid float"),
        (["--epochs", "0"], "not in the range"),
        (["--epochs", "1.5"], "not a valid integer"),
        (["--batch-size", "-1"], "not in the range"),
        (["--seed", "-1"], "not in the range"),
        (["--dtype", "float16"], "'float16' is not one of"),
        (["--model", "resnet"], "'resnet' is not one of"),
        (["--optimizer", "lion"], "'lion' is not one of"),
        (["--dataset", "cifar"], "not 'cifar'; did you mean cifar10?"),
        (["--device", "gpu"], "device must be one of auto, cpu, cuda, cuda:N"),
        (["--device", ""], "device must be one of"),
        (["--device", "cuda:-1"], "device must be one of"),
        (["--data-dir", "nowhere"], "/nowhere does not exist"),
        (["--data-dir", "x" * 5000], "File name too long"),
    ],
)
def test_wrong_options(refused, few, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused("train", "--data-dir", few, "--epochs", 1, "--out", "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Have an empty cache and no mirrors."""
    monkeypatch.setenv("XPCNN_DATA", str(tmp_path / "cache"))
    bare = {name: [replace(file, mirrors=()) for file in files] for name, files in named.FILES.items()}
    monkeypatch.setattr(named, "FILES", bare)


def test_fashion_mnist_must_be_fetched(refused, offline):
    assert "--data-dir" in refused("train", "--dataset", "fashion-mnist")


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
@pytest.mark.parametrize("device", ["cuda", "cupy", "cuda:0", "cuda:99999999999999999999"])
def test_cuda_without_cupy(refused, run, device):
    for command in (["train"], ["evaluate", run], ["predict", run, "x.png"]):
        says = refused(*command, "--device", device)
        assert "CuPy is not installed; install it with pip install 'xpcnn[cuda13]'" in says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["evaluate"], "Missing argument 'RUN'"),
        (["predict"], "Missing argument 'RUN'"),
        (["predict", "run"], "Missing argument 'PATH...'"),
        (["predict", "run", "x.png", "--top", "0"], "not in the range"),
        (["predict", "run", "x.png", "--polarity", "both"], "'both' is not one of"),
        (["evaluate", "run", "--split", "all"], "'all' is not one of"),
        (["evaluate", "nowhere"], "there is no run nowhere"),
        (["predict", "nowhere", "x.png"], "there is no run nowhere"),
        (["evaluate", "x" * 5000], "File name too long"),
        (["info", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_commands(refused, arguments, says):
    assert says in refused(*arguments)


def test_out_that_cannot_be_made(refused, few, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out, says in (
        (tmp_path / "file", "is not an empty directory"),
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        assert says in refused("train", "--data-dir", few, "--epochs", 1, "--device", "cpu", "--out", out)
    assert (tmp_path / "file").read_text() == "kept"


def test_what_is_no_run(refused, tmp_path):
    (tmp_path / "text").write_text("hello")
    for path, says in (
        (tmp_path, "has no model.safetensors"),
        (tmp_path / "text", "not a whole safetensors file"),
        ("/dev/null", "has no model.safetensors"),
    ):
        assert says in refused("evaluate", path, "--device", "cpu")
        assert says in refused("predict", path, "x.png", "--device", "cpu")


def test_a_run_whose_data_are_gone(refused, run, few, tmp_path, offline):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = moved / "config.toml"
    config.write_text(config.read_text().replace("data_dir = ", 'data_dir = "/gone"\nwas = '))
    assert "the data directory /gone does not exist" in refused("evaluate", moved, "--device", "cpu")
    assert "--data-dir" in refused("evaluate", run, "--dataset", "fashion-mnist", "--device", "cpu")
    config.write_text("[train\n")
    assert "is not a run's configuration" in refused("evaluate", moved, "--device", "cpu")


def test_a_model_for_other_data(refused, tiny, few, tmp_path):
    named = ("--dataset", "mnist", "--data-dir", few, "--device", "cpu")
    assert "the model takes images (1, 8, 8), but mnist has (1, 28, 28)" in refused("evaluate", tiny, *named)
    xc.Model(xc.models.simple_convnet(classes=4), "cpu").save(tmp_path / "four")
    assert "the model has (4,) outputs, but mnist has 10 classes" in refused("evaluate", tmp_path / "four", *named)
    xc.Model(xc.models.simple_convnet((2, 8, 8), 3), "cpu").save(tmp_path / "two")
    assert "the model takes 2" in refused("predict", tmp_path / "two", "x.png", "--device", "cpu")


def test_images_too_small_for_the_network(refused, tmp_path):
    part = np.zeros((3, 4, 4)), np.zeros(3)
    data = write_dataset(tmp_path / "small", part, part)
    says = refused("train", "--data-dir", data, "--device", "cpu", "--out", tmp_path / "out")
    assert "(4, 4)" in says
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_cut_short(refused, digits, tiny, tmp_path):
    whole, path = tiny.read_bytes(), tmp_path / "cut"
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in refused("predict", path, digits[0][0], "--device", "cpu")
    path.write_bytes(whole + b"x")
    assert str(path) in refused("predict", path, digits[0][0], "--device", "cpu")


def test_a_model_with_flipped_bits(call, digits, tiny, tmp_path):
    """A flip in the description is refused, or is a name or a number that the description may have."""
    whole, path, rng = tiny.read_bytes(), tmp_path / "flipped", random.Random(20_240_607)
    end = 8 + int.from_bytes(whole[:8], "little")
    refusals = 0
    for number in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(8 if number < 20 else end)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        status, out, err = call("predict", path, digits[0][0], "--device", "cpu")
        assert status in (0, 2)
        assert err.count("\n") == bool(status)
        refusals += status == 2 and err.startswith("xpcnn: error: ") and out == ""
    assert refusals > 250


def test_parameters_that_are_no_numbers(refused, digits, run, few, tmp_path):
    path = tmp_path / "model.safetensors"
    with safe_open(run / "model.safetensors", framework="numpy") as file:
        description = json.loads(file.metadata()["xpcnn"])
    metadata = {"xpcnn": json.dumps({k: v for k, v in description.items() if k not in ("blake2b", "arrays")})}
    for value in (np.nan, 3e38):
        arrays = load_file(run / "model.safetensors")
        arrays["conv1/weight"][:] = value
        save_file(arrays, path, metadata)
        assert "not numbers" in refused("predict", path, digits[0][0], "--device", "cpu", "--json")
        named = ("--dataset", "mnist", "--data-dir", few, "--device", "cpu", "--json")
        assert "not a number" in refused("evaluate", path, *named)


def test_a_model_that_names_too_few_classes(refused, digits, tmp_path):
    xc.Model(xc.models.simple_convnet(), "cpu", classes=["one", "two"]).save(tmp_path / "model")
    assert "2 classes" in refused("predict", tmp_path / "model", digits[0][0], "--device", "cpu")


def test_too_little_memory(refused, few, tmp_path, monkeypatch):
    def exhausted(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(xc.Trainer, "fit", exhausted)
    says = refused("train", "--data-dir", few, "--device", "cpu", "--quiet", "--out", tmp_path / "out")
    assert "not enough memory; a smaller --batch-size needs less" in says


def test_unknown_kernels_are_refused_before_anything_is_done(call, monkeypatch, tmp_path):
    monkeypatch.setenv("XPCNN_KERNELS", "fast")
    monkeypatch.chdir(tmp_path)
    status, out, err = call("train")
    assert (status, out) == (2, "")
    assert err == "xpcnn: error: XPCNN_KERNELS must be one of auto, native, numpy, not 'fast'.\n"
    assert not list(tmp_path.iterdir())
