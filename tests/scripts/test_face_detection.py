"""Face or background: what is held out is told right, and only what can be learnt is found."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "face_detection.py"
FEW = SimpleNamespace(folds=4, epochs=6, device="cpu")

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of this tree")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("face_detection", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accuracy(found):
    right, images = np.sum(found, axis=0)
    return right / images


def test_digits_are_told_from_the_gaps_between_them(script):
    images, targets = script.digits(60)
    assert images.shape == (120, 1, 28, 28)
    found = script.cross_validate(images, targets, FEW, seed=0)
    assert [count for _, count in found] == [30, 30, 30, 30]
    assert accuracy(found) >= 0.9


def test_targets_drawn_by_lot_cannot_be_told(script, rng):
    images, _ = script.digits(60)
    found = script.cross_validate(images, rng.permutation(np.repeat([1.0, -1.0], 60)), FEW, seed=0)
    assert 0.3 <= accuracy(found) <= 0.7


@pytest.mark.slow
def test_faces_are_told_from_background(script):
    if importlib.util.find_spec("skimage") is None:
        pytest.skip("needs scikit-image")
    images, targets = script.faces()
    assert images.shape == (200, 1, 25, 25)
    found = script.cross_validate(images, targets, SimpleNamespace(folds=5, epochs=30, device="cpu"), seed=0)
    assert sum(count for _, count in found) == 200
    assert accuracy(found) >= 0.95


def test_images_are_standardised_one_by_one(script, rng):
    x = script.standardised(rng.random((3, 5, 6)) * [[[1]], [[100]], [[0.01]]])
    assert x.shape == (3, 1, 5, 6)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=(1, 2, 3)), 1, atol=1e-5)


def test_without_scikit_image_the_digits_are_named(script, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["face_detection.py"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert "--data digits needs nothing" in capsys.readouterr().err


def test_folds_out_of_range_are_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--data", "digits", "--folds", "1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--folds must be from 2 to 200, not 1" in done.stderr
