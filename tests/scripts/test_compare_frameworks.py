"""The comparison of frameworks: its twins compute what the model computes, and its table says what was found."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xpcnn import Model, Normalise
from xpcnn.layers import Affine, Conv2D, Flatten, MaxPool2D, ReLU, Sequential, Sigmoid, Tanh

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_frameworks.py"
QUICK = ["--limit", "200", "--batch-size", "50", "--epochs", "2", "--threads", "1"]
ODD = Sequential(
    Conv2D(4, (3, 5), stride=2, padding=((0, 2), (3, 1))),
    Tanh(),
    Conv2D(6, 3, padding="same", groups=2, bias=False),
    Sigmoid(),
    MaxPool2D(3, stride=2),
    Conv2D(5, 2, dilation=2, padding=1),
    ReLU(),
    Flatten(),
    Affine(7, bias=False),
    ReLU(),
    Affine(10),
    input_shape=(2, 19, 21),
)

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of this tree")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("compare_frameworks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def odd(rng):
    """Return a model whose layers use every option a twin knows, biases not zero, and uint8 images for it."""
    model = Model(ODD, "cpu", normalise=Normalise(0.4, 0.3))
    model.load_parameters({path: w + 0.1 * rng.standard_normal(w.shape) for path, w in model.parameters().items()})
    return model, rng.integers(0, 256, (3, 2, 19, 21)).astype(np.uint8)


def need(*libraries):
    """Skip a test without these libraries; Keras is not imported here, where its backend is not chosen."""
    for name in libraries:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def run(*arguments):
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ)


def test_the_torch_twin_computes_what_the_model_does(script, odd):
    need("torch")
    import torch

    model, images = odd
    scale, shift = script.scaling(model)
    with torch.no_grad():
        found = script.torch_twin(model)(torch.tensor(images) * scale + shift).numpy()
    np.testing.assert_allclose(found, model.predict(images), rtol=0, atol=1e-5)


def test_the_keras_twin_computes_what_the_model_does(odd, tmp_path):
    need("keras", "torch")
    code = (  # in a process of its own, where Keras's backend can be chosen and its warnings are its own
        "import sys; sys.path.insert(0, sys.argv[1]); import compare_frameworks, numpy as np, xpcnn as xc;"
        "net = compare_frameworks.keras_twin(xc.Model.load('model.safetensors', 'cpu'));"
        "np.save('found.npy', net.predict_on_batch(np.load('images.npy')))"
    )
    model, images = odd
    model.save(tmp_path / "model.safetensors")
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-W", "ignore", "-c", code, str(SCRIPT.parent)]
    environment = os.environ | {"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), model.predict(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", ["torch", "keras"])
def test_frameworks_agree_step_for_step(other):
    need("torch", other)
    done = run(*QUICK, "--frameworks", f"xpcnn,{other}", "--json")
    assert done.returncode == 0, done.stderr
    ours, theirs = json.loads(done.stdout).values()
    assert len(ours["losses"]) == len(theirs["losses"]) == 8
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=0, atol=1e-4)
    assert len(set(ours["losses"])) == 8  # it does train
    assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.011)
    assert len(ours["seconds"]) == 2


def test_a_framework_that_is_not_installed_is_named_and_left_out(script, monkeypatch, capsys):
    monkeypatch.setitem(script.NEEDS, "keras", ("no_such_library",))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *QUICK, "--frameworks", "keras,xpcnn"])
    script.main()
    out, err = capsys.readouterr()
    assert "keras is left out: no_such_library is not installed" in err
    assert "xpcnn" in out
    assert "keras" not in out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--frameworks", "xpcnn,tensorflow"], "takes xpcnn, torch, keras, not 'tensorflow'"),
        (["--epochs", "0"], "must be at least 1, not 0"),
        (["--model", "resnet"], "invalid choice: 'resnet'"),
    ],
)
def test_wrong_options_are_refused(arguments, fault):
    done = run(*arguments)
    assert done.returncode == 2
    assert fault in done.stderr


def test_a_layer_without_a_twin_is_named(script):
    model = Model(Sequential(Conv2D(2, 3, center=(1, 1)), input_shape=(1, 5, 5)), "cpu")
    with pytest.raises(SystemExit, match=r"layer conv1.*has no twin"):
        script.described(model)


def test_the_table_has_every_kth_loss_and_the_largest_difference(script, monkeypatch):
    monkeypatch.setattr(script, "EARLY", 4)
    options = SimpleNamespace(model="lenet5", epochs=1, batch_size=10, lr=0.5, seed=0, device="cpu", threads=1, every=2)
    result = {"version": "1.0+cpu", "images": 50, "train_accuracy": 0.5, "test_accuracy": 0.25, "seconds": [1.0, 2.0]}
    losses = {"xpcnn": [5.0, 4.0, 3.0, 2.0, 1.0], "torch": [5.0, 4.0, 3.25, 2.0, 0.5]}
    lines = list(script.table(options, {name: result | {"losses": found} for name, found in losses.items()}))
    rows = {line[:18].strip(): line[18:].split() for line in lines}
    assert {key: rows[key] for key in ("1", "2", "4")} == {
        "1": ["5.00000", "5.00000"],
        "2": ["4.00000", "4.00000"],
        "4": ["2.00000", "2.00000"],
    }
    assert "3" not in rows
    assert rows["largest difference"] == ["5.0e-01"]
    assert rows["in the first 4"] == ["2.5e-01"]
    assert rows["test accuracy"] == ["25.00", "%", "25.00", "%"]
    assert rows["seconds per epoch"] == ["1.50", "1.50"]
    assert "50 training images" in lines[0]
