"""``xpcnn predict``."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import threading

import numpy as np
import pytest
from PIL import Image, ImageOps

import xpcnn as xc
from xpcnn.cli.pictures import cut, read_batches
from xpcnn.report.attribution import draw_overlay, grad_cam


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
    (bare := tmp_path / "bare").mkdir()
    (bare / "notes.txt").write_text("no picture")
    text.write_text("hello")
    with open(paths[0], "rb") as whole:
        cut.write_bytes(whole.read()[:200])
    good = json.loads(predict(paths[0], paths[1], "--json")[0])
    out, err = predict(paths[0], text, cut, bare, lost, paths[1], "--json", status=2)
    assert json.loads(out) == good
    lines = err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("xpcnn: error: ") for line in lines)
    for name in (text, cut, bare, "two lines"):
        assert sum(str(name) in line for line in lines) == 1
    assert json.loads(predict(text, "--json", status=2)[0]) == []
    assert predict(text, "--csv", status=2)[0] == "image,class1,probability1,class2,probability2,class3,probability3\n"
    assert predict(text, status=2)[0] == ""


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


@pytest.fixture
def listed(monkeypatch):
    """Return a function that puts bytes on standard input."""

    def listed(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return listed


def names(out):
    return [result["image"] for result in json.loads(out)]


def test_folders_are_walked_in_order(predict, digits, tmp_path):
    """Pictures by their endings, sorted, those of folders below after them; hidden ones and other files left out."""
    top = tmp_path / "top"
    wanted = ["10.PNG", "2.png", "a/x.jpeg", "a/y.bmp", "b/deep/z.gif", "c.png/w.webp"]
    for name in [*wanted, ".hidden.png", ".git/v.png", "readme.txt", "b/no", "b/.DS_Store"]:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpeg": "JPEG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP"}.get(path.suffix[1:].lower(), "PNG")
        Image.fromarray(digits[1][0, 0]).save(path, kind)
    (top / "loop").symlink_to(top)
    out, err = predict(digits[0][0], top, "--json", "--batch-size", 2)
    assert err == ""
    assert names(out) == [digits[0][0], *(str(top / name) for name in wanted)]
    (top / "gone.png").symlink_to(tmp_path / "nowhere")
    out, err = predict(top, "--json", status=2)
    assert names(out) == [str(top / name) for name in wanted]
    assert err.count("\n") == 1
    assert "gone.png does not exist" in err


def test_lists_on_standard_input(predict, digits, listed, tmp_path):
    paths = digits[0]
    odd = tmp_path / "two\nlines \u00e4 .png"
    Image.fromarray(digits[1][0, 0]).save(odd)
    listed("\n".join([*paths[:2], "", str(tmp_path / "sub")]).encode())
    (tmp_path / "sub").mkdir()
    os.link(paths[3], tmp_path / "sub" / "3.png")
    assert names(predict(paths[4], "-", paths[5], "--json")[0]) == [
        paths[4], paths[0], paths[1], str(tmp_path / "sub" / "3.png"), paths[5],
    ]  # fmt: skip
    listed(f"{paths[0]}\r\n{paths[1]}\r\n".encode())
    assert names(predict("-", "--json")[0]) == paths[:2]
    listed(b"\0".join([os.fsencode(odd), paths[0].encode(), b""]))
    assert names(predict("-", "-0", "--json")[0]) == [str(odd), paths[0]]
    listed(b"")
    assert predict("-", "--json") == ("[]\n", "")
    listed(b"no\0where\n")
    assert "does not exist" in predict("-", status=2)[1]
    listed(b"x" * 70_000)
    out, err = predict("-", status=2)
    assert out == ""
    assert "no path" in err


def test_any_bytes_in_names_and_classes_are_safe(call, tmp_path, digits):
    classes = ["a,b", 'c"d', "\x1b[31mred", "two\nlines"]
    model = xc.Model(xc.models.simple_convnet((1, 28, 28), 4, filters=2, hidden=3), "cpu", classes=classes)
    model.save(tmp_path / "model")
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/\xff\x1b[2J,"\n.png')
    os.link(digits[0][0], odd)
    command = ("predict", tmp_path / "model", odd, "--top", 4, "--device", "cpu")
    status, out, err = call(*command)
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert out[:-1].isprintable()
    assert "\\x1b[31mred" in out
    found = json.loads(call(*command, "--json")[1])
    assert found[0]["image"] == odd
    assert sorted(p["class"] for p in found[0]["predictions"]) == sorted(classes)
    rows = list(csv.reader(io.StringIO(call(*command, "--csv")[1], newline="")))
    assert rows[0] == ["image", *(f"{word}{n}" for n in range(1, 5) for word in ("class", "probability"))]
    assert len(rows) == 2
    assert sorted(rows[1][1::2]) == sorted(classes)
    assert rows[1][0].replace("\\udcff", "\udcff") == odd  # what no encoding has is escaped
    assert [float(p) for p in rows[1][2::2]] == [p["probability"] for p in found[0]["predictions"]]
    err = call("predict", tmp_path / "model", tmp_path / "\x1b[2Jlost", "--device", "cpu")[2]
    assert err[:-1].isprintable()


def test_little_is_read_ahead():
    """A hundred thousand pictures must not be held at once: what is read is at most two batches ahead."""
    alive, most, done = [0], [0], []
    guard = threading.Lock()

    class Picture(np.ndarray):
        def __del__(self):
            with guard:
                alive[0] -= 1

    def read(name):
        with guard:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return np.zeros((1, 28, 28), np.uint8).view(Picture)

    for batch, images, faults in read_batches(cut(map(str, range(1000)), 10), read):
        done += batch
        assert images.shape == (10, 1, 28, 28)
        assert faults == []
    assert done == list(map(str, range(1000)))
    assert most[0] <= 60


def test_what_reading_raises_otherwise_is_raised():
    def read(name):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(read_batches(cut("ab", 1), read))


def test_batches_do_not_change_answers(predict, digits):
    paths = digits[0]
    whole = json.loads(predict(*paths, "--json")[0])
    for size in (1, 3, 10, 99):
        found = json.loads(predict(*paths, "--json", "--batch-size", size)[0])
        assert [r["image"] for r in found] == paths
        for one, other in zip(found, whole, strict=True):
            assert [p["class"] for p in one["predictions"]] == [p["class"] for p in other["predictions"]]
            assert one["predictions"][0]["probability"] == pytest.approx(other["predictions"][0]["probability"])
    lines = predict(*paths, "--batch-size", 3)[0].splitlines()
    assert [line.split()[0] for line in lines] == paths


def test_explanations_are_named_after_the_pictures(predict, run, digits, tmp_path):
    paths, images, _ = digits
    (tmp_path / "other").mkdir()
    twins = [tmp_path / "other" / name for name in ("digit0.jpg", "digit0-2.png", "digit0.gif")]
    for twin in twins:
        Image.fromarray(images[3, 0]).save(twin)
    out = predict(paths[0], *twins, paths[1], "--json", "--top", 1, "--explain", tmp_path / "why" / "here")[0]
    found = json.loads(out)
    folder = tmp_path / "why" / "here"
    written = [result["explanation"] for result in found]
    assert len(set(written)) == 5
    assert sorted(written) == sorted(map(str, folder.iterdir()))
    assert [os.path.basename(path) for path in written] == [
        "digit0.png", "digit0-2.png", "digit0-2-2.png", "digit0-3.png", "digit1.png",
    ]  # fmt: skip
    model = xc.Model.load(run / "model.safetensors", "cpu")
    for row, result in ((0, found[0]), (1, found[4])):
        number = int(result["predictions"][0]["class"])
        expected = draw_overlay(images[row], grad_cam(model, images[row : row + 1], number)[0])
        with Image.open(result["explanation"]) as picture, Image.open(io.BytesIO(expected)) as other:
            difference = np.asarray(picture).astype(int) - np.asarray(other)
        assert np.abs(difference).max() <= 2
    table = predict(paths[0], "--csv", "--top", 1, "--explain", tmp_path / "csv")[0].splitlines()
    assert table[0] == "image,class1,probability1,explanation"
    assert table[1].endswith(str(tmp_path / "csv" / "digit0.png"))


def test_nothing_is_overwritten(predict, refused, run, digits, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for wrong in (tmp_path, digits[0][0]):
        sentence = refused("predict", run, digits[0][0], "--explain", wrong, "--device", "cpu")
        assert "not an empty directory" in sentence
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "empty").mkdir()
    predict(digits[0][0], "--explain", tmp_path / "empty")
    assert os.listdir(tmp_path / "empty") == ["digit0.png"]


def test_very_long_names_can_be_explained(predict, digits, tmp_path):
    long = tmp_path / ("\u00e4" * 125 + ".png")  # 254 bytes
    os.link(digits[0][0], long)
    predict(long, "--explain", tmp_path / "why")
    (written,) = os.listdir(tmp_path / "why")
    assert written == "\u00e4" * 100 + ".png"


def test_a_folders_model_is_given_pictures_as_they_are(call, tmp_path, digits):
    """Dark ink on white stays dark for a model that learned it so."""
    net = xc.models.simple_convnet((1, 28, 28), 3, filters=2, hidden=3)
    xc.Model(net, "cpu", seed=8, dataset=f"folder:{tmp_path}").save(tmp_path / "model")
    model = xc.Model.load(tmp_path / "model", "cpu")
    dark = np.full((40, 20), 255, np.uint8)
    dark[5:30, 5:9] = 0
    Image.fromarray(dark).save(tmp_path / "dark.png")
    image = xc.data.picture.read_fitted(tmp_path / "dark.png", (1, 28, 28))
    logits = model.predict(image[None])[0].astype(np.float64)
    found = json.loads(call("predict", tmp_path / "model", tmp_path / "dark.png", "--json", "--device", "cpu")[1])
    shown = {int(p["class"]): p["probability"] for p in found[0]["predictions"]}
    assert shown == pytest.approx(dict(enumerate(np.exp(logits) / np.exp(logits).sum())), rel=1e-4)


def test_two_forms_exclude_each_other(refused, run, digits):
    assert "exclude each other" in refused("predict", run, digits[0][0], "--json", "--csv", "--device", "cpu")
