"""``xpcnn predict --output``: parts on the disk, going on after any end, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from runs import small_model

from xpcnn.cli import parts, sharded
from xpcnn.files import held

COUNT = 130  # pictures: 43 parts of three, and one of one
BROKEN = 77  # the number of one that cannot be read


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a model, pictures, and the predictions by definition: (image, class, probability) each."""
    base = tmp_path_factory.mktemp("predict")
    model = small_model((1, 12, 12), ("a", "b,", "c"))
    model.save(base / "model")
    images = np.random.default_rng(5).integers(0, 256, (COUNT, 1, 12, 12)).astype(np.uint8)
    (base / "pictures" / "more").mkdir(parents=True)
    names = [str(base / "pictures" / ("more" if number >= 100 else "") / f"{number:03}.png") for number in range(COUNT)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image[0]).save(name)
    with open(names[BROKEN], "wb") as file:
        file.write(b"no picture")
    expected = []
    for name, image in zip(names, images, strict=True):
        powers = np.exp(model.predict(image[None])[0].astype(np.float64))
        order = np.argsort(-powers)
        expected.append([(name, model.classes[i], powers[i] / powers.sum()) for i in order])
    del expected[BROKEN]
    return base, names, expected


@pytest.fixture
def predict(call, made, tmp_path, monkeypatch):
    """Return a function that predicts the pictures into a file in an empty directory."""
    base, _, _ = made
    monkeypatch.chdir(tmp_path)

    def predict(*arguments, output="out.csv", status=2, what=(base / "pictures",)):
        found, out, err = call(
            "predict", base / "model", *what, "--output", output, "--polarity", "keep", "--device", "cpu", *arguments
        )
        assert found == status
        return out, err

    return predict


@pytest.fixture
def whole(predict, tmp_path):
    """Return the bytes of the output of a prediction that nothing has disturbed."""
    predict(output="whole.csv")
    content = (tmp_path / "whole.csv").read_bytes()
    (tmp_path / "whole.csv").unlink()
    return content


@pytest.fixture
def cut_short(predict, monkeypatch, tmp_path):
    """Return the folder of a prediction that was interrupted after 20 of its 44 parts."""
    write, count = parts.Parts.write, []

    def limited(self, *part):
        if len(count) == 20:
            raise KeyboardInterrupt
        count.append(part[0])
        write(self, *part)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", limited)
        predict(status=130)
    assert os.listdir(tmp_path) == ["out.csv.parts"]
    return tmp_path / "out.csv.parts"


@pytest.fixture
def written(monkeypatch):
    """Return a list that the numbers of written parts are put on."""
    write, numbers = parts.Parts.write, []
    monkeypatch.setattr(parts.Parts, "write", lambda self, *part: (numbers.append(part[0]), write(self, *part)))
    return numbers


def test_every_file_is_in_the_output_once(predict, made, tmp_path):
    _, names, expected = made
    out, err = predict()
    assert out == "out.csv: 130 pictures, of which 1 could not be read\n"
    assert err == f"xpcnn: error: {names[BROKEN]} is not a picture in one of the formats PNG, JPEG, BMP, GIF, WEBP.\n"
    with open("out.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "class1", "probability1", "class2", "probability2", "class3", "probability3"]
    for (name, *row), right in zip(rows, expected, strict=True):
        assert (name, row[::2]) == (right[0][0], [word for _, word, _ in right])
        assert list(map(float, row[1::2])) == pytest.approx([share for _, _, share in right], rel=1e-4)
    assert os.listdir(tmp_path) == ["out.csv"]


def test_the_forms_are_those_of_standard_output(predict, call, made):
    base, names, _ = made
    what, odd = names[:3], os.fsdecode(b'\xff "\n.png')
    os.link(names[5], odd)
    plain = "predict", base / "model", *what, odd, "--polarity", "keep", "--device", "cpu"
    assert len(parts.Parts("x", [*what, odd], {})) == 4
    for form, output in (("csv", "out.CSV"), ("json", "x.json"), ("csv", "out.json"), ("json", "rows")):
        _, printed, _ = call(*plain, f"--{form}", "--batch-size", 1)  # as the parts have them
        predict(*([f"--{form}"] if output in ("out.json", "rows") else []), output=output, what=(*what, odd), status=0)
        with open(output, "rb") as file:
            assert file.read() == printed.encode(errors="backslashreplace"), output


def test_no_pictures_are_an_empty_output(predict, monkeypatch):
    for output, content in (("x.json", "[]\n"), ("x.csv", "image,class1,probability1\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        assert predict("--top", 1, output=output, what=("-",), status=0) == (f"{output}: 0 pictures\n", "")
        with open(output) as file:
            assert file.read() == content
    os.mkdir("empty")
    out, err = predict(output="y.json", what=("empty",))
    assert out == "y.json: 0 pictures\n"
    assert "there are no pictures in empty" in err


def test_what_is_done_is_not_done_again(predict, cut_short, written, whole):
    written.clear()
    out, err = predict()
    assert written == list(range(20, 44))
    assert err.splitlines()[0] == "going on: 60 of 130 pictures are done."
    with open("out.csv", "rb") as file:
        assert file.read() == whole
    assert "1 could not be read" in out


def test_another_number_of_pictures_at_a_time_may_go_on(predict, cut_short, written):
    predict("--batch-size", 1, "--json")
    assert written == list(range(20, 44))
    with open("out.csv") as file:
        assert len(json.load(file)) == COUNT - 1


def test_damaged_parts_are_made_again(predict, cut_short, written, whole):
    files = sorted(path for path in cut_short.iterdir() if path.name.startswith("part-"))
    assert len(files) == 20
    content = bytearray(files[3].read_bytes())
    content[-40] ^= 1
    files[3].write_bytes(content)
    files[5].write_bytes(files[5].read_bytes()[:-1])
    files[7].write_bytes(b"")
    files[9].write_bytes(files[10].read_bytes())  # whole, but another one's
    files[11].write_bytes(files[11].read_bytes().replace(b"\n", b"", 1))
    files[12].unlink()
    written.clear()
    predict()
    assert written == [3, 5, 7, 9, 11, 12, *range(20, 44)]
    with open("out.csv", "rb") as file:
        assert file.read() == whole


def test_faults_are_known_after_a_restart(predict, made, monkeypatch):
    """The file that cannot be read is in a part that was made before."""
    _, names, _ = made
    write = parts.Parts.write

    def limited(self, number, *rest):
        if number == 30:
            raise KeyboardInterrupt
        write(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", limited)
        _, err = predict(status=130)
    assert err.strip() == "xpcnn: interrupted."
    out, err = predict(status=2)
    assert f"xpcnn: error: {names[BROKEN]} is not a picture" in err
    assert "of which 1 could not be read" in out


def test_another_work_is_refused(predict, made, cut_short, tmp_path):
    base, names, _ = made
    before = {path: path.read_bytes() for path in cut_short.iterdir()}
    other = small_model((1, 12, 12), ("a", "b,", "c"), seed=1)
    other.save(tmp_path / "other")
    for word, arguments, what in (
        ("--top", ["--top", 2], (base / "pictures",)),
        ("--polarity", ["--polarity", "invert"], (base / "pictures",)),
        ("list of pictures", [], (base / "pictures" / "more", *names[:100])),
        ("list of pictures", [], names[:-1]),
    ):
        out, err = predict(*arguments, what=what)
        assert out == ""
        assert f"out.csv.parts holds the beginning of another {word}" in err
        assert err.count("\n") == 1
    os.replace(base / "model", base / "kept")
    try:
        os.replace(tmp_path / "other", base / "model")
        assert "another model: go on as it was begun" in predict()[1]
    finally:
        os.replace(base / "kept", base / "model")
    assert {path: path.read_bytes() for path in cut_short.iterdir()} == before
    predict()  # the work it was


def test_a_list_of_relative_names_means_other_files_elsewhere(made):
    names = ["a.png", "b.png"]
    here = parts.Parts("/tmp/x.csv", names, {}).work
    assert parts.Parts("/tmp/x.csv", names, {}).work == here
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    assert parts.Parts("/tmp/x.csv", names, {}).work != here


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_what_is_there_is_not_overwritten(predict, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    for command in range(2):
        if command:
            (tmp_path / "out.csv.parts").mkdir()  # as one that was killed at the very end leaves
        assert predict() == ("", "xpcnn: error: out.csv exists; choose another --output.\n")
    (tmp_path / "out.csv").unlink()
    (tmp_path / "out.csv.parts" / "thesis.tex").write_text("mine, too")
    assert "holds no work of predict's" in predict()[1]
    (tmp_path / "out.csv.parts" / "work.json").write_text("[]")
    assert "holds no work of predict's" in predict()[1]
    assert (tmp_path / "out.csv.parts" / "thesis.tex").read_text() == "mine, too"
    (tmp_path / "folder.csv").mkdir()
    assert predict(output="folder.csv")[1] == "xpcnn: error: folder.csv: Is a directory.\n"
    assert predict(output="no/x.csv")[1] == "xpcnn: error: no/x.csv: No such file or directory.\n"


def test_an_output_that_appears_meanwhile_is_not_overwritten(predict, cut_short, monkeypatch):
    write = parts.Parts.write

    def late(self, *part):
        write(self, *part)
        self.output.write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", late)
        assert "was made by something else meanwhile" in predict()[1]
    with open("out.csv") as file:
        assert file.read() == "mine"
    assert "exists" in predict()[1]
    os.unlink("out.csv")
    predict()


def test_two_processes_do_not_write_one_output(predict, cut_short):
    handle = held(cut_short)
    if handle is None:
        pytest.skip("this file system has no locks")
    assert "another process is writing out.csv" in predict()[1]
    os.close(handle)
    predict()


def test_what_an_output_cannot_be(refused, made):
    base, names, _ = made
    command = "predict", base / "model", names[0], "--device", "cpu", "--output"
    assert "must be named .csv or .json, not out.txt" in refused(*command, "out.txt")
    assert "--explain and --output exclude each other" in refused(*command, "x.csv", "--explain", "why")
    assert "exclude each other" in refused(*command, "x", "--json", "--csv")


def test_progress_goes_to_standard_error(predict, monkeypatch):
    monkeypatch.setattr(sharded, "SELDOM", 0.0)
    _, err = predict()
    lines = err.splitlines()[:-1]
    found = [re.fullmatch(r"(\d+) of 130 pictures, [\d,]+ a second", line) for line in lines]
    assert [int(match[1]) for match in found] == [*range(3, 130, 3), 130]


def test_a_terminal_shows_progress_in_place(predict, monkeypatch):
    monkeypatch.setattr(sharded, "OFTEN", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, err = predict()
    steps = err.splitlines()[0] if "\r" not in err else err.split("\n")[0].split("\r")
    assert steps[0] == ""
    assert [int(text.split()[0]) for text in steps[1:]] == [*range(3, 130, 3), 130]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 1000, 32_768, 32_769, 100_000])
def test_how_a_list_is_cut(count):
    names = list(map(str, range(count)))
    cut = parts.Parts("x.csv", names, {})
    pieces = [list(cut.names(number)) for number in range(len(cut))]
    assert [name for piece in pieces for name in piece] == names
    sizes = {len(piece) for piece in pieces[:-1]} or {1}
    assert len(sizes) == 1
    assert sizes == {512} if count > 32_768 else max(sizes) <= 512
    assert len(pieces) >= min(count, 33)


KILLER = """
import os, sys
from xpcnn.cli import main

output, command = sys.argv[1], sys.argv[2:]
left = [0]

def hook(event, arguments):
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"):
        if any(output in os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)

def call(operations):
    pid = os.fork()
    if pid == 0:
        left[0] = operations
        os.dup2(os.open("errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os._exit(main(command))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

main(command)  # which imports what the others need
os.unlink(output)
sys.addaudithook(hook)
number = 1
while call(number) == 9:
    was = sorted(os.listdir("."))
    status = call(0)
    content = open(output, "rb").read()
    os.unlink(output)
    kept = sorted(name for name in os.listdir(".") if name != "errors")
    print([status, content.decode(), open("errors").read(), kept, was], flush=True)
    number += 1
    if os.path.isdir(f"{output}.parts"):
        os.rmdir(f"{output}.parts")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_every_operation_on_files(made, predict, tmp_path):
    """Whatever the disk has when the process is killed, the same command ends with the same bytes and faults."""
    base, names, _ = made
    what = [names[4], names[BROKEN]]
    predict(what=what)
    whole = (tmp_path / "out.csv").read_text()
    (tmp_path / "out.csv").unlink()
    arguments = ["out.csv", "predict", base / "model", *what, "--output", "out.csv", "--polarity", "keep"]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *map(str, arguments), "--device", "cpu"],
        capture_output=True, text=True, timeout=120, env=os.environ | {"XPCNN_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [eval(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(found) > 30
    *others, last = found
    for number, (status, content, errors, kept, was) in enumerate(others, 1):
        assert (status, content, kept) == (2, whole, []), (number, was)
        assert f"{names[BROKEN]} is not a picture" in errors, (number, was, errors)
    status, content, errors, kept, was = last  # only the empty folder was to be removed
    assert (content, kept, was) == (whole, ["out.csv.parts"], ["errors", "out.csv", "out.csv.parts"])
    assert errors == "xpcnn: error: out.csv exists; choose another --output.\n"
