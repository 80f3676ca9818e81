"""Data of one's own from training to prediction, with names as users have them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import xpcnn as xc

TRAIN = ("train", "--model", "lenet5", "--epochs", 1, "--batch-size", 8, "--device", "cpu")
CLASSES = ("new\nline", "\x1b[31mred")


@pytest.fixture
def folder(tmp_path):
    """Return a folder whose name and classes are hard to print and to draw; one picture is damaged."""
    root = tmp_path / "a $x_$ 码 dir"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 20, 20), dtype=np.uint8)
    for name, images in zip(CLASSES, pixels, strict=True):
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{number}.png")
    (root / CLASSES[0] / "zz.png").touch()
    return root


def test_names_are_drawn_and_printed_whatever_is_in_them(call, folder, tmp_path):
    status, out, err = call(*TRAIN, "--dataset", f"folder:{folder}", "--skip-bad", "--out", tmp_path / "run")
    assert status == 0
    assert err == "\rpictures checked: 13 of 13\n"
    assert f"{folder}/new\\nline/zz.png" in out
    assert "left out, since they cannot be read: 1 of the images" in out
    with Image.open(tmp_path / "run" / "curves.png") as curves:
        assert curves.width > 1000

    status, out, err = call("evaluate", tmp_path / "run", "--device", "cpu")
    assert (status, err) == (0, "")
    _, _, *rows, _ = out.splitlines()
    assert [row.split(" ")[0] for row in rows] == ["class", "\\x1b[31mred", "new\\nline"]
    assert "\x1b" not in out


def test_faults_are_printed_without_what_a_terminal_obeys(refused, tmp_path):
    (tmp_path / CLASSES[1]).touch()
    assert "\\x1b[31mred is a file" in refused(*TRAIN, "--dataset", f"folder:{tmp_path / CLASSES[1]}")


def test_arrays_with_channels_that_are_told(call, refused, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 4), dtype=np.uint8)
    path = tmp_path / "four.npz"
    np.savez(path, images=images, labels=np.arange(12) % 2)
    assert "give the number with --channels." in refused(*TRAIN, "--dataset", f"npz:{path}")
    status, out, err = call(*TRAIN, "--dataset", f"npz:{path}", "--channels", 4, "--out", tmp_path / "run", "--quiet")
    assert (status, err) == (0, "")
    assert xc.Model.load(tmp_path / "run" / "model.safetensors", "cpu").input_shape == (4, 20, 20)
    status, out, err = call("evaluate", tmp_path / "run", "--device", "cpu")
    assert (status, err) == (0, "")
    assert "of 2 images right" in out


def test_predict_takes_the_names_that_training_takes(call, folder, tmp_path):
    (folder / CLASSES[0] / "zz.png").unlink()
    Image.new("L", (20, 20)).save(folder / CLASSES[0] / "7.JFIF", format="JPEG")
    Image.new("L", (20, 20)).save(folder / CLASSES[1] / "8.jpe", format="JPEG")
    status, out, _ = call(*TRAIN, "--dataset", f"folder:{folder}", "--out", tmp_path / "run")
    assert status == 0
    assert "12 training and 2 test images" in out
    status, out, _ = call("predict", tmp_path / "run", folder, "--device", "cpu")
    assert status == 0
    assert len(out.splitlines()) == 14
