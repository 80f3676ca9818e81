"""The page of a run: everything that is known is on it, whatever is missing, and no name becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from runs import small_model, write_run

import xpcnn as xc
from xpcnn import layers
from xpcnn.data import Dataset
from xpcnn.report.facts import read_facts
from xpcnn.report.image_section import chosen
from xpcnn.report.measure import measure
from xpcnn.report.page import write_report

VOID = {"img", "link", "meta"}
HOSTILE = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(2)>", "</style>&amp;" + "z" * 5000)


class Page(HTMLParser):
    """What a page consists of; its elements must be nested properly."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.elements, self.words = text, [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, **attributes):
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]

    @property
    def sections(self):
        return [a["id"] for a in self.all("section")]


def page_of(tmp_path, run, **options):
    write_report(tmp_path / "page.html", run, **options)
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_a_whole_page(make_run, tmp_path):
    made = make_run()
    page = page_of(tmp_path, made.path, model=made.model, data=made.data)
    assert page.sections == ["curves", "confusion", "classes", "mistakes", "inside", "filters", "settings"]
    measured = measure(made.model, made.data)
    assert f"{100 * measured.found.top1:.2f} %" in page.said
    assert f"{len(measured.mistakes)} of 60 images wrong" in page.said
    for text in (
        "simple-convnet on mnist",
        "3 epochs",
        "2026-01-02 03:04",
        "conv1 5 maps of 12×12",
        "pool1 5 maps of 6×6",
    ):
        assert text in page.said
    for row in made.model.summary().splitlines():
        assert row.strip() in page.text.replace("&#x27;", "'")
    headings = [int(t[1]) for t, _ in page.elements if re.fullmatch("h[1-6]", t)]
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_pictures_are_the_images(make_run, tmp_path):
    made = make_run()
    page = page_of(tmp_path, made.path, model=made.model, data=made.data, most_mistakes=5)
    worst = measure(made.model, made.data).mistakes[:5]
    found = [a for a in page.all("img") if a["alt"].startswith("Image ")]
    assert [int(re.match(r"Image (\d+): ", a["alt"])[1]) for a in found] == worst.tolist()
    for attributes, row in zip(found, worst, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2])))
        assert (np.asarray(picture) == made.data.images[row, 0]).all()
        names = made.data.classes
        said = f"{names[made.data.labels[row]]}, taken for {names[made.model.predict(made.data.images[row : row + 1]).argmax()]}"
        assert attributes["alt"].endswith(said)
    assert all("alt" in a and a["src"].startswith("data:image/png;base64,") for a in page.all("img"))


def test_it_allows_itself_nothing_else(make_run, tmp_path):
    made = make_run()
    page = page_of(tmp_path, made.path, model=made.model, data=made.data)
    (policy,) = [a["content"] for a in page.all("meta", **{"http-equiv": "Content-Security-Policy"})]
    for name in ("script", "style"):
        (inside,) = re.findall(f"<{name}>(.*?)</{name}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    addresses = [a[key] for _, a in page.elements for key in ("src", "href") if key in a]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not [a for _, a in page.elements if "style" in a or any(key.startswith("on") for key in a)]
    assert not re.search(r"https?:|url\(|@import", page.text)


def test_no_name_becomes_markup(make_run, tmp_path):
    made = make_run("<b>run", names=HOSTILE, dataset="<svg onload=alert(3)>", odd="</td><script>", **{"model": "<i>"})
    other = write_run(tmp_path / "<u>other", model="<em>")
    page = page_of(tmp_path, made.path, compare=[other], model=made.model, data=made.data, notes=["<hr>"])
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"b>run", "i", "u", "em", "hr", "input"}
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    for text in ("<script>alert(1)</script>", "<svg onload=alert(3)>", "</td><script>", "<hr>", "<u>other"):
        assert text in page.said
    assert len(page.text) < 500_000  # a name of 5,000 letters is cut


@pytest.mark.parametrize("count", [2, 5, 6, 25, 26, 100, 1000])
def test_any_number_of_classes(tmp_path, rng, count):
    channels = 3 if count in (2, 26) else 1
    names = [f"class {n}" for n in range(count)]
    model = small_model((channels, 8, 8), names)
    data = Dataset(
        rng.integers(0, 256, (300, channels, 8, 8)).astype(np.uint8), rng.integers(0, count, 300), tuple(names)
    )
    run = write_run(tmp_path / "run")
    page = page_of(tmp_path, run, model=model, data=data)
    assert ("Top-5" in page.said or "top-5 accuracy" in page.said) == (count > 5)
    cells = len([a for t, a in page.elements if t == "td" and "data-tone" in a])
    assert cells == (count**2 if count <= 25 else 0)
    assert len(page.all("img", class_="heat")) == (count > 25)
    assert len(page.text) < 2_000_000


def test_the_confusion_matrix_has_its_numbers_where_they_belong(make_run, tmp_path):
    made = make_run()
    page = page_of(tmp_path, made.path, model=made.model, data=made.data)
    expected = {}
    for own, taken in zip(made.data.labels, made.model.predict(made.data.images).argmax(axis=1), strict=True):
        pair = f"{made.data.classes[own]} taken for {made.data.classes[taken]}"
        expected[pair] = expected.get(pair, 0) + 1
    titles = [a["title"].rpartition(": ") for t, a in page.elements if t == "td" and "data-tone" in a]
    assert {pair: int(number) for pair, _, number in titles if number != "0"} == expected
    assert len(titles) == 9


def test_large_networks_and_images_stay_small(tmp_path, rng):
    blocks = [layers.Conv2D(24, 3, padding=1) for _ in range(14)]
    net = layers.Sequential(*blocks, layers.GlobalAvgPool(), layers.Affine(4), input_shape=(3, 64, 64))
    model = xc.Model(net, "cpu", classes=list("abcd"))
    data = Dataset(rng.integers(0, 256, (30, 3, 64, 64)).astype(np.uint8), rng.integers(0, 4, 30), tuple("abcd"))
    page = page_of(tmp_path, write_run(tmp_path / "run", updates=5000), model=model, data=data)
    assert len(page.text) < 2_000_000
    assert "conv1 " in page.said
    assert "conv14 " in page.said


def test_without_images_or_model(make_run, tmp_path):
    made = make_run()
    page = page_of(tmp_path, made.path, model=made.model, notes=["The images are gone."])
    assert page.sections == ["curves", "filters", "settings"]
    assert "The images are gone." in page.said
    assert "83.00 %" in page.said  # the best recorded test accuracy
    page = page_of(tmp_path, made.path)
    assert page.sections == ["curves", "settings"]


def test_runs_that_are_not_finished(tmp_path):
    run = write_run(tmp_path / "run", test=False)
    page = page_of(tmp_path, run)
    assert "best train accuracy 93.00 % after epoch 3" in page.said
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("epochs = 3", "epochs = 10"))
    assert "3 of 10 epochs so far" in page_of(tmp_path, run).said
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-30])
    assert "2 of 10 epochs so far" in page_of(tmp_path, run).said
    (run / "metrics.jsonl").write_text("")
    page = page_of(tmp_path, run)
    assert "Nothing has been recorded yet." in page.said
    assert "nothing recorded yet" in page.said
    (run / "metrics.jsonl").unlink()
    assert "Nothing has been recorded yet." in page_of(tmp_path, run).said


def test_records_with_gaps_and_values_that_are_no_numbers(tmp_path):
    run = write_run(tmp_path / "run", config=False)
    odd = [
        {"epoch": 4, "loss": float("nan"), "test_accuracy": None},
        {"epoch": 5, "loss": "x", "train_accuracy": [], "seconds": True},
        {"update": 91, "loss": float("inf")},
        {"epoch": 6, "test_accuracy": 0.95},
    ]
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in odd)
    page = page_of(tmp_path, run)
    assert "95.00 % after epoch 6" in page.said
    assert "nan" not in page.said.lower()


def test_runs_compared(make_run, tmp_path):
    made = make_run(lr=0.06)
    other = write_run(tmp_path / "other", lr=0.5, epochs=2, model="lenet5")
    third = write_run(tmp_path / "deep" / "other", test=False)
    page = page_of(tmp_path, made.path, compare=[other, third], model=made.model, data=made.data)
    assert page.sections[0] == "compared"
    charts = [json.loads(a["data-chart"]) for a in page.all("figure") if "data-chart" in a]
    assert [len(chart["series"]) for chart in charts] == [3, 3]
    names = [series["name"] for series in charts[0]["series"]]
    assert names == [str(made.path), str(other), str(third)]  # two have the same last part
    assert [len(series["points"]) for series in charts[1]["series"]] == [3, 2, 3]
    differ = page.said.partition("Settings that differ")[2].partition("Curves")[0]
    assert "lr 0.06 0.5 0.06" in differ
    assert "model simple-convnet lenet5 simple-convnet" in differ
    assert "dataset" not in differ
    page = page_of(tmp_path, other, compare=[other])
    assert "All settings are the same." in page.said


def test_models_that_take_no_images_or_have_no_convolution(tmp_path, rng):
    run = write_run(tmp_path / "run")
    flat = xc.Model(layers.Sequential(layers.Affine(3), input_shape=(1, 6, 6)), "cpu")
    data = Dataset(rng.integers(0, 256, (30, 1, 6, 6)).astype(np.uint8), rng.integers(0, 3, 30))
    page = page_of(tmp_path, run, model=flat, data=data)
    assert page.sections == ["curves", "confusion", "classes", "mistakes", "inside", "settings"]
    assert "Saliency" in page.said
    assert "Grad-CAM" not in page.said
    signal = xc.Model(
        layers.Sequential(layers.Conv1D(2, 3), layers.Flatten(), layers.Affine(3), input_shape=(1, 9)), "cpu"
    )
    data = Dataset(rng.random((30, 1, 9)).astype(np.float32), rng.integers(0, 3, 30))
    assert page_of(tmp_path, run, model=signal, data=data).sections == ["curves", "confusion", "classes", "settings"]


def test_a_model_without_mistakes(make_run, tmp_path):
    made = make_run()
    right = Dataset(made.data.images, made.model.predict(made.data.images).argmax(axis=1), made.data.classes)
    page = page_of(tmp_path, made.path, model=made.model, data=right)
    assert "There are none: every image was recognised." in page.said
    assert "No class was taken for another." in page.said


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_which_images_are_looked_into(make_run, count):
    made = make_run(count=100)
    measured = measure(made.model, made.data)
    rows = chosen(measured, count)
    assert len(rows) == len(set(rows)) == count
    wrong = [row for row in rows if measured.predicted[row] != measured.labels[row]]
    assert wrong == measured.mistakes[: count // 2].tolist()
    right = [row for row in rows if row not in wrong]
    there = set(measured.labels[measured.predicted == measured.labels].tolist())
    assert len({int(measured.labels[row]) for row in right}) == min(len(right), len(there))


def test_what_is_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("nowhere", "there is no run"),
        ("empty", "is not a run's directory: it has none of config.toml"),
    ):
        with pytest.raises(xc.DataError, match=says):
            read_facts(tmp_path / name)


BIG = "1" + "0" * 400  # a whole number that is no float


@pytest.mark.parametrize(
    "lines",
    [
        [f'{{"update": {n}, "loss": {loss}}}' for n, loss in enumerate(("1e308", "-1e308", "3"))],
        [f'{{"update": {n}, "loss": {10.0 ** (-10 * n)}}}' for n in range(1, 33)],
        [
            f'{{"epoch": {n}, "test_accuracy": {value}, "seconds": 1e308}}'
            for n, value in enumerate(("1e308", "-1e308"))
        ],
        [f'{{"epoch": 1, "test_accuracy": {BIG}, "loss": {BIG}}}', f'{{"epoch": {BIG}}}'],
    ],
    ids=["losses", "small losses", "figures", "whole numbers"],
)
def test_numbers_near_infinity(tmp_path, lines):
    """They are left out of the charts, or shown; the page is made."""
    write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines))
    write_report(tmp_path / "page.html", tmp_path / "run")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"\b(nan|inf|Infinity)\b", text)


@pytest.mark.parametrize("line", [f'{{"update": 1, "loss": {BIG}}}', '{"epoch": Infinity}'])
def test_numbers_that_no_run_records(tmp_path, line):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(f"{line}\n\n")
    with pytest.raises(xc.DataError, match="is damaged in line 1"):
        write_report(tmp_path / "page.html", tmp_path / "run")


@pytest.mark.parametrize("text", ["environment = 3\n[train]\n", "train = 3\n", "augment = []\n[train]\n"])
def test_a_configuration_without_tables(tmp_path, text):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text(text)
    with pytest.raises(xc.DataError, match=r"is not a run's configuration \(\w+ is not a table\)"):
        write_report(tmp_path / "page.html", tmp_path / "run")
