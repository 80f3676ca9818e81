"""``xpcnn predict``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

import xpcnn as xc


@pytest.fixture
def expected(run, digits):
    """Return the probabilities (10, 10) of the ten pictures."""
    logits = xc.Model.load(run / "model.safetensors", "cpu").predict(digits[1]).astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture
def predict(call, run):
    def predict(*arguments, status=0):
        found, out, err = call("predict", run, *arguments, "--device", "cpu")
        assert found == status
        return out, err

    return predict


def test_every_class_with_its_probability(predict, digits, expected):
    paths, _, labels = digits
    out, err = predict(*paths, "--json", "--top", 99)
    found = json.loads(out)
    assert err == ""
    assert [result["image"] for result in found] == paths
    for result, row in zip(found, expected, strict=True):
        shown = [p["probability"] for p in result["predictions"]]
        assert shown == sorted(shown, reverse=True)
        assert sum(shown) == pytest.approx(1)
        assert {int(p["class"]): p["probability"] for p in result["predictions"]} == pytest.approx(
            dict(enumerate(row)), rel=1e-3, abs=1e-9
        )
    assert sum(int(r["predictions"][0]["class"]) == t for r, t in zip(found, labels, strict=True)) >= 8


def test_the_lines_for_people(predict, digits, expected):
    out, err = predict(*digits[0], "--top", 2)
    lines = out.splitlines()
    assert err == ""
    for line, path, row in zip(lines, digits[0], expected, strict=True):
        best, second = np.argsort(-row)[:2]
        assert line.split() == [
            path,
            str(best),
            f"{100 * row[best]:.2f}",
            "%",
            str(second),
            f"{100 * row[second]:.2f}",
            "%",
        ]
    assert len(predict(digits[0][0])[0].split("%")) == 3 + 1  # three classes unless asked otherwise


def test_wrong_files_are_named_and_the_others_done(predict, digits, tmp_path):
    paths = digits[0]
    text, cut, lost = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "two\nlines"
    text.write_text("hello")
    with open(paths[0], "rb") as whole:
        cut.write_bytes(whole.read()[:200])
    good = json.loads(predict(paths[0], paths[1], "--json")[0])
    out, err = predict(paths[0], text, cut, tmp_path, lost, paths[1], "--json", status=2)
    assert json.loads(out) == good
    lines = err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("xpcnn: error: ") for line in lines)
    for name, line in zip((text, cut, tmp_path, "two lines"), lines, strict=True):
        assert str(name) in line
    assert json.loads(predict(text, "--json", status=2)[0]) == []


def test_large_dark_and_coloured_pictures(predict, digits, tmp_path):
    """What a person would draw, in the command line's own rule: cropped to the ink and centred."""
    right, paths = 0, []
    for number, image in enumerate(digits[1][:, 0]):
        sheet = Image.new("L", (500, 300), 0)
        sheet.paste(Image.fromarray(image).resize((140, 140)), (20 * number, 90))
        paths.append(tmp_path / f"drawn{number}.jpg")
        ImageOps.colorize(sheet, (255, 250, 230), (0, 0, 90)).save(paths[-1])
    for result, label in zip(json.loads(predict(*paths, "--json")[0]), digits[2], strict=True):
        right += int(result["predictions"][0]["class"]) == label
    assert right >= 8


def test_polarity_is_the_callers(predict, digits, tmp_path):
    dark = tmp_path / "dark.png"
    Image.fromarray(255 - digits[1][0, 0]).save(dark)
    light = json.loads(predict(digits[0][0], "--json")[0])[0]["predictions"]
    assert json.loads(predict(dark, "--json")[0])[0]["predictions"] == light
    assert json.loads(predict(dark, "--polarity", "invert", "--json")[0])[0]["predictions"] == light
    assert json.loads(predict(dark, "--polarity", "keep", "--json")[0])[0]["predictions"] != light


def test_classes_without_names_are_numbers_and_colour_models_take_colours(call, tmp_path):
    model = xc.Model(xc.models.simple_convnet((3, 8, 8), 4, filters=2, kernel_size=3, hidden=4), "cpu")
    model.save(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    status, out, _ = call("predict", tmp_path / "model", tmp_path / "x.png", "--json", "--top", 1)
    assert status == 0
    best = model.predict(pixels.transpose(2, 0, 1)[None]).argmax()
    assert json.loads(out)[0]["predictions"][0]["class"] == str(best)
