"""The drawn windows: as many as it says, the right cells in the right colours, never a huge picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import xpcnn as xc
from xpcnn.report.explain import explain_conv, explain_pool
from xpcnn.report.windows import COLOURS, draw_windows


def drawn(path, told):
    """Draw; return what is said and the picture's pixels (H, W, 3)."""
    said = draw_windows(path, told)
    with Image.open(path) as picture:
        return said, np.asarray(picture.convert("RGB"))


def pixels(picture, name):
    """Return (row, column) of the pixels of a colour, the legend at the bottom left out."""
    colour = [int(COLOURS[name][start : start + 2], 16) for start in (1, 3, 5)]
    found = np.argwhere((picture == colour).all(axis=2))
    return found[found[:, 0] < len(picture) - 70]


def test_cells_have_the_colours_of_what_meets(tmp_path):
    """One window at the corner: of 25 cells 1 is met by the center, 3 by others, and 5 more lie in the padding."""
    told = explain_conv((5, 5), 3, stride=6, center=(1, 1))
    said, picture = drawn(tmp_path / "one.png", told)
    assert said == "1 window"
    cell = len(pixels(picture, "input")) / 21
    for name, cells in (("window", 3), ("window in the padding", 5), ("kernel's center", 1)):
        assert len(pixels(picture, name)) / cell == pytest.approx(cells, rel=0.3), name  # less what the labels cover
    center, rest, outside = (
        pixels(picture, name).mean(axis=0) for name in ("kernel's center", "window", "window in the padding")
    )
    assert (outside < center).all()
    assert (center < rest).all()


def test_the_maximum_is_marked(tmp_path):
    values = np.zeros((3, 3))
    values[2, 0] = 5
    _, picture = drawn(tmp_path / "pool.png", explain_pool((3, 3), 3, values=values))
    (row, column), (middle, center) = pixels(picture, "maximum").mean(axis=0), pixels(picture, "window").mean(axis=0)
    assert row > middle
    assert column < center


@pytest.mark.parametrize(
    ("size", "kernel", "options", "says"),
    [
        ((9,), 3, {"padding": "same", "stride": 2}, "5 windows"),
        ((200,), 20, {}, "5 of 181 windows"),
        ((12, 5), 2, {"padding": 1}, " of 78 windows"),
        ((300, 300), 3, {"dilation": 3}, " of 86,436 windows"),
        ((30, 30), 24, {}, "1 of 49 windows"),
        ((2, 300), (2, 3), {}, " of 298 windows"),
        ((300, 2), (3, 2), {}, " of 298 windows"),
    ],
)
def test_large_ones_are_cut_and_it_is_said(size, kernel, options, says, tmp_path):
    said, picture = drawn(tmp_path / "drawn.png", explain_conv(size, kernel, **options))
    assert said.endswith(says)
    assert max(picture.shape) < 2200
    assert (tmp_path / "drawn.png").stat().st_size < 400_000


def test_refusals(tmp_path):
    with pytest.raises(xc.XpcnnError, match="drawn over 1 or 2 axes, not 3"):
        draw_windows(tmp_path / "no.png", explain_conv((3, 3, 3), 2))
    with pytest.raises(xc.XpcnnError, match="spans 25x25 elements"):
        draw_windows(tmp_path / "no.png", explain_conv((30, 30), 25))
    assert not list(tmp_path.iterdir())
