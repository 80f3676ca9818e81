"""``xpcnn import``."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la

pytest.importorskip("onnx")


@pytest.fixture
def model():
    body = la.Residual(la.Conv2D(3, 3, padding=1))
    return xc.Model(la.Sequential(body, la.ReLU(), la.Affine(2), input_shape=(3, 8, 6)), "cpu", 1)


@pytest.fixture
def file(model, tmp_path):
    model.to_onnx(tmp_path / "m.onnx", check=False)
    return tmp_path / "m.onnx"


def test_a_file_becomes_a_model(call, file, model, tmp_path):
    out, names = tmp_path / "m.safetensors", tmp_path / "names.txt"
    names.write_text("köttur\ndog\n", encoding="utf-8")
    status, said, err = call("import", file, "--out", out, "--input-shape", "3,8,6", "--classes", names)
    assert (status, err) == (0, "")
    assert said.splitlines() == [
        "4 layers (1 Conv2D, 1 Join, 1 ReLU, 1 Affine) with 374 parameters",
        "takes images (3, 8, 6) and returns (2,), in float32",
        "uint8 images are normalised: (pixel / 255 - 0) / 1",
        f"written to {out}",
    ]
    again = xc.Model.load(out, "cpu")
    assert again.classes == ("köttur", "dog")
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_it_ends_at_a_tensor(call, file, tmp_path):
    status, said, _ = call("import", file, "--out", tmp_path / "b.safetensors", "--output", "residual1.body")
    assert status == 0
    assert said.startswith("1 layers (1 Conv2D) with 84 parameters\ntakes images (3, 8, 6) and returns (3, 8, 6)")


def test_nothing_is_overwritten(refused, file, tmp_path):
    out = tmp_path / "m.safetensors"
    out.write_bytes(b"mine")
    assert refused("import", file, "--out", out) == f"xpcnn: error: {out} exists; choose another --out."
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input-shape", "3,8"], "its input input takes (N, 3, 8, 6), not the input_shape (3, 8)."),
        (["--input-shape", "3,8,-6"], "--input-shape must be sizes such as 3,48,192, not '3,8,-6'."),
        (["--input-shape", "3,8,99999999999999999999"], "--input-shape must be sizes such as 3,48,192"),
        (["--output", "nothing"], "no node makes the output 'nothing'; its own outputs are output."),
        (["--classes", "there-is-none"], "there-is-none does not exist."),
        (["--classes", "three.txt"], "three.txt names 3 classes, but the model has the outputs (2,)."),
        (["--classes", "bytes.txt"], "bytes.txt is no text in UTF-8."),
    ],
)
def test_what_does_not_fit_is_refused(options, message, refused, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\n\xfe\n")
    assert message in refused("import", file, "--out", "out.safetensors", *options)
    assert not (tmp_path / "out.safetensors").exists()


def test_files_that_are_none_are_refused(refused, tmp_path):
    out = tmp_path / "out.safetensors"
    assert refused("import", tmp_path / "none.onnx", "--out", out).endswith(
        "none.onnx cannot be read as an ONNX file: it does not exist."
    )
    assert refused("import", tmp_path, "--out", out).endswith("cannot be read as an ONNX file: it is a directory.")
    (tmp_path / "text.onnx").write_text("not a network")
    assert "text.onnx cannot be read as an ONNX file: it " in refused("import", tmp_path / "text.onnx", "--out", out)
    assert refused("import", tmp_path / "text.onnx", "--out", tmp_path / "no" / "m").endswith(
        "No such file or directory."
    )
