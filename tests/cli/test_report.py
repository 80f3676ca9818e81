"""``xpcnn report``: a page of a run that was trained, of one that is cut short, and of one whose images are gone."""

from __future__ import annotations

import re
import shutil

import pytest


@pytest.fixture
def page(call, tmp_path):
    """Return a function that makes a page and returns it with what was printed."""

    def page(*arguments):
        out = tmp_path / "page.html"
        status, said, err = call("report", *arguments, "--out", out, "--device", "cpu")
        assert (status, err) == (0, "")
        assert f"{out}: " in said
        return out.read_text(encoding="utf-8"), said

    return page


@pytest.fixture
def copy(run, tmp_path):
    """Return a copy of the trained run."""
    return shutil.copytree(run, tmp_path / "copy")


def test_a_trained_run(call, page, run):
    text, said = page(run, "--images", 2, "--max-mistakes", 5)
    accuracy = re.match(r"mnist, test set: (\S+ %)", call("evaluate", run, "--device", "cpu")[1])[1]
    assert accuracy in text
    assert said.count("\n") == 1
    assert len(re.findall(r'alt="Image \d', text)) == 5
    assert text.count("<details") == 3  # two images, and every epoch
    assert "receptive field" in text
    assert len(text) < 2_000_000


def test_it_lies_in_the_run_if_nothing_else_is_said(call, copy):
    status, out, _ = call("report", copy, "--device", "cpu", "--images", 0, "--max-mistakes", 0)
    assert status == 0
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert str(copy / "report.html") in out
    assert 'id="mistakes"' not in text
    assert 'id="inside"' not in text
    assert 'id="confusion"' in text


def test_runs_side_by_side(page, run, copy):
    text, _ = page(run, "--compare", copy, "--compare", copy)
    assert "Settings that differ" in text


def test_images_that_are_gone(page, copy):
    config = copy / "config.toml"
    config.write_text(re.sub("data_dir = .*", 'data_dir = "/gone"', config.read_text()))
    text, said = page(copy)
    sentence = "There are no images, since the data set cannot be used: the data directory /gone does not exist."
    assert sentence in said
    assert sentence in text
    assert 'id="confusion"' not in text
    assert 'id="filters"' in text


def test_a_run_that_has_only_begun(page, copy):
    (copy / "model.safetensors").unlink()
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"update": 91, "lo')
    text, said = page(copy)
    assert "There is no model yet" in said
    assert "There is no model yet" in text
    assert 'id="curves"' in text


def test_a_model_alone(page, copy, tmp_path):
    (tmp_path / "alone").mkdir()
    (copy / "model.safetensors").rename(tmp_path / "alone" / "model.safetensors")
    text, _ = page(tmp_path / "alone", "--images", 1, "--max-mistakes", 1)
    assert "Nothing has been recorded yet." in text
    assert 'id="confusion"' in text


def test_what_is_refused(refused, run, copy, few, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "there is no run nowhere" in refused("report", "nowhere")
    assert "is not a run's directory" in refused("report", tmp_path / "empty")
    assert "there is no run nowhere" in refused(
        "report", run, "--compare", "nowhere", "--device", "cpu", "--out", copy / "x"
    )
    assert "No such file" in refused("report", run, "--out", tmp_path / "no" / "page.html")
    assert "Is a directory" in refused("report", run, "--out", copy)
    assert "not in the range" in refused("report", run, "--images", 13)
    (copy / "config.toml").write_text("[train\n")
    assert "is not a run's configuration" in refused("report", copy, "--device", "cpu")
    assert not (copy / "x").exists()
