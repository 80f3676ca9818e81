"""The README's Python examples run as they stand, on fewer images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import xpcnn as xc

README = Path(__file__).resolve().parents[2] / "README.md"
FEW = 400


def test_the_examples_run(monkeypatch, tmp_path):
    real = xc.load_dataset

    def few(*arguments):
        return tuple(xc.Dataset(part.images[:FEW], part.labels[:FEW], part.classes) for part in real(*arguments))

    monkeypatch.setattr(xc, "load_dataset", few)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["logits"].shape == (5, 10)
    np.testing.assert_array_equal(names["again"].predict(names["test"].images[:5]), names["logits"])
    pixels = names["test"].images[:5]
    np.testing.assert_allclose(
        names["imported"].predict(pixels / np.float32(255)), names["lenet"].predict(pixels), atol=1e-5
    )
    assert names["dx"].shape == names["x"].shape
    assert names["model"].net.layers[1][1] == names["Gain"]()


def test_the_layer_of_ones_own_takes_twenty_lines():
    block = re.search(r"^@dataclass.*?(?=^\S(?!lass))", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert 10 < len(block.group().strip().splitlines()) <= 22
