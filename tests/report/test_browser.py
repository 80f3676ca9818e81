"""The page in a real browser: nothing is asked for, nothing complains, everything fits, and what is alive works."""

from __future__ import annotations

import browser
import numpy as np
import pytest
from runs import make_run, write_run

from xpcnn.report.page import write_report

pytestmark = pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed")

WIDTHS = (390, 1440)
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
BROKEN = "[...document.images].filter((image) => !(image.complete && image.naturalWidth > 0)).length"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
NEXT_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
OUTSIDE = """
[...document.querySelectorAll("main *")].filter((element) => {
  const box = element.getBoundingClientRect();
  const hidden = element.closest(".unseen, .scroll, .tip, .clipped, details:not([open])");
  return !hidden && box.width > 0 && (box.left < -1 || box.right > innerWidth + 1);
}).map((element) => element.outerHTML.slice(0, 80))
"""
CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r / 255, g / 255, b / 255, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const ground = (element) => {
    const own = parse(getComputedStyle(element).backgroundColor);
    if (own[3] === 1 || !element.parentElement) return own.slice(0, 3);
    return over(own, ground(element.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const faint = [];
  for (const element of document.querySelectorAll("main *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest(".unseen")) continue;
    const style = getComputedStyle(element);
    const under = ground(element);
    const colour = over(parse(element.closest("svg") ? style.fill : style.color), under);
    const found = ratio(light(colour), light(under));
    if (found < 4.5) faint.push([element.outerHTML.slice(0, 80), found]);
  }
  return faint;
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the address of a page with everything on it, of classes with long names, in colour."""
    names = ["T-shirt/top", "Donaudampfschifffahrtsgesellschaftskapitän", "<b>", *(f"class {n}" for n in range(9))]
    tmp_path, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    made = make_run(tmp_path, rng, image_shape=(3, 12, 12), names=names, count=200, updates=900, epochs=12)
    others = [write_run(tmp_path / name, lr=0.1) for name in ("second", "a-run-with-quite-a-long-name-for-a-directory")]
    write_report(tmp_path / "page.html", made.path, compare=others, model=made.model, data=made.data, notes=["A note."])
    return (tmp_path / "page.html").as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_and_fits(chromium, page, width, dark):
    chromium.open(page, width, dark=dark)
    chromium.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert chromium.run("document.images.length") > 50
    assert chromium.run(BROKEN) == 0
    assert chromium.run(OVERFLOW) <= 0
    assert chromium.run(OUTSIDE) == []
    assert chromium.run(CONTRAST) == []
    assert chromium.complaints() == []
    assert chromium.requests() == [page]


def test_dark_and_light(chromium, page):
    colours = {}
    for dark in (False, True):
        chromium.open(page, dark=dark)
        colours[dark] = chromium.run(BACKGROUND)
        assert chromium.run("document.querySelector('#theme').textContent") == ("Light theme" if dark else "Dark theme")
    assert colours[False] != colours[True]
    chromium.run("document.querySelector('#theme').focus()")  # the system is dark now
    chromium.press("Enter")
    assert chromium.run(BACKGROUND) == colours[False]
    chromium.press("Enter")
    assert chromium.run(BACKGROUND) == colours[True]
    assert chromium.run("document.querySelector('#theme').getAttribute('aria-pressed')") == "true"
    assert chromium.complaints() == []


def test_values_under_the_pointer_and_by_keyboard(chromium, page):
    chromium.open(page)
    tip = "document.querySelectorAll('.tip')[1]"
    assert chromium.run(f"{tip}.hidden")
    chromium.run("document.querySelectorAll('.plot')[1].focus()")
    assert chromium.run(f"{tip}.innerText").splitlines() == [
        "epoch 12", "run (test): 92.00 %",  # the others ended before
    ]  # fmt: skip
    chromium.press("Home")
    assert chromium.run(f"{tip}.innerText").splitlines() == [
        "epoch 1", "run (test): 81.00 %", "second (test): 81.00 %",
        "a-run-with-quite-a-long-name-for-a-directory (test): 81.00 %",
    ]  # fmt: skip
    chromium.press("ArrowRight")
    assert chromium.run(f"{tip}.innerText").startswith("epoch 2\n")
    chromium.press("Escape")
    assert chromium.run(f"{tip}.hidden")
    chromium.run("document.querySelectorAll('.plot')[1].scrollIntoView({ behavior: 'instant', block: 'start' })")
    box = chromium.run("document.querySelectorAll('.plot')[1].getBoundingClientRect().toJSON()")
    x = box["left"] + box["width"] * (5 - 1) / (12 - 1)
    chromium.run(NEXT_FRAMES)  # after which the pointer is compared with what was scrolled
    chromium.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=box["top"] + 50)
    chromium.run(NEXT_FRAMES)
    assert chromium.run(f"{tip}.innerText").startswith("epoch 5\n")
    assert chromium.complaints() == []


def test_classes_are_sorted_by_a_click(chromium, page):
    chromium.open(page)
    column = "[...document.querySelectorAll('#classes tbody tr')].map((row) => Number(row.cells[1].textContent))"
    before = chromium.run(column)
    for expected in (sorted(before), sorted(before, reverse=True)):
        chromium.run("document.querySelectorAll('#classes thead button')[1].click()")
        assert chromium.run(column) == expected
    assert before != sorted(before)


def test_without_a_script_it_can_be_read(chromium, page):
    chromium.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(page, 390)
    finally:
        chromium.send("Emulation.setScriptExecutionDisabled", value=False)
    assert chromium.run("document.querySelector('#theme').hidden")
    assert chromium.run("document.querySelectorAll('.plot path.line').length") >= 6
    assert "Worst mistakes" in chromium.run("document.body.innerText")
    assert chromium.run(OVERFLOW) <= 0
