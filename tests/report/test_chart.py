"""Charts: round ticks, points where they belong, thinning that loses no extreme."""

from __future__ import annotations

import json
import math
import re
import statistics
from html.parser import HTMLParser

import pytest

from xpcnn.report.chart import HEIGHT, MOST_POINTS, WIDE, Line, line_chart, nice_ticks, thinned


class Elements(HTMLParser):
    """Collects (tag, attributes) and the text of <text> elements."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag == "text"

    def handle_data(self, data):
        if self._inside:
            self.texts.append(data)

    def line(self, number=0):
        """Return the points of the line so numbered, in its drawing's coordinates."""
        paths = [a["d"] for t, a in self.elements if t == "path" and "line" in a["class"].split()]
        return [tuple(map(float, point.split())) for point in paths[number][1:].split("L")]

    def level(self, text):
        """Return how far down the grid line with that number lies."""
        ys = [float(a["y1"]) for t, a in self.elements if t == "line" and a.get("class") == "grid"]
        return ys[self.texts.index(text)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.2, 9.1, [2.5, 5, 7.5]),
        (0.981, 0.993, [0.985, 0.99]),
        (-3, 3, [-2, 0, 2]),
        (1, 2, [1, 1.25, 1.5, 1.75, 2]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_few(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_ticks_of_any_range_lie_inside_and_are_evenly_spaced(rng):
    for low, width in zip(rng.normal(size=300) * 1e3, 10.0 ** rng.uniform(-6, 6, 300), strict=True):
        ticks = nice_ticks(low, low + width)
        assert 1 <= len(ticks) <= 5
        assert low - 1e-6 * width <= min(ticks) <= max(ticks) <= low + width * (1 + 1e-6)


def test_points_lie_on_their_grid_lines():
    chart = Elements(line_chart("Accuracy", [Line("test", [(1, 0.6), (2, 0.8), (3, 1.0)])], "epoch", percent=True))
    (x1, y1), (x2, y2), (x3, y3) = chart.line()
    assert (x1, x2, x3) == (0, WIDE / 2, WIDE)
    assert y2 == pytest.approx((y1 + y3) / 2, abs=0.2)
    assert y1 == pytest.approx(chart.level("60 %"), abs=0.2)
    assert y3 == pytest.approx(chart.level("100 %"), abs=0.2)
    assert 0 <= y3 < y1 <= HEIGHT


def test_a_wide_range_of_losses_is_drawn_by_its_logarithm():
    chart = Elements(line_chart("Loss", [Line("l", [(1, 10.0), (2, 1.0), (3, 0.1)])], "update", log=True))
    ys = [y for _, y in chart.line()]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.3)
    assert ys[1] == pytest.approx(chart.level("1"), abs=0.2)
    for values in ([0.5, 0.4, 0.3], [1.0, 0.0, 0.1], [100.0, -1.0, 1.0]):  # too narrow, or not above zero
        chart = Elements(line_chart("Loss", [Line("l", list(enumerate(values)))], "update", log=True))
        first, second, third = (y for _, y in chart.line())
        drops = [(second - first) / (values[0] - values[1]), (third - second) / (values[1] - values[2])]
        assert drops[0] == pytest.approx(drops[1], rel=0.02)


@pytest.mark.parametrize("points", [[(1, 0.5)], [(0, 0.0), (1, 0.0)], [(3, -1e-30), (4, 1e30)], [(1, 1.0), (2, 1.0)]])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("percent", [False, True])
def test_charts_of_next_to_nothing(points, log, percent):
    text = line_chart("t", [Line("l", points)], "x", log=log, percent=percent)
    numbers = re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?|nan|inf", " ".join(re.findall(r' d="([^"]*)"', text)))
    assert all(math.isfinite(float(number)) for number in numbers)
    assert Elements(text).texts


def test_what_the_script_reads():
    chart = Elements(line_chart('<"T">', [Line("a</b>", [(1, 2.0), (2, 3.0)]), Line("b", [(2, 1 / 3)])], "epoch"))
    (data,) = [json.loads(attrs["data-chart"]) for _, attrs in chart.elements if "data-chart" in attrs]
    assert [series["name"] for series in data["series"]] == ["a</b>", "b"]
    assert data["series"][1]["points"] == [[2, 0.33333]]
    assert (data["x"], data["start"], data["end"]) == ("epoch", 1, 2)
    (label,) = [attrs["aria-label"] for _, attrs in chart.elements if attrs.get("role") == "img"]
    assert label == '<"T">: a</b> from 2 to 3; b from 0.3333 to 0.3333'


@pytest.mark.parametrize("count", [1, 5, MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS - 3])
def test_thinning(rng, count):
    values = rng.random(count).tolist()
    points, band = thinned(values, 20)
    assert len(points) == len(band) <= MOST_POINTS
    assert points[-1][0] == count
    for x, median in points:
        assert median == statistics.median(values[max(0, int(x) - 20) : int(x)])
    assert min(low for _, low, _ in band) == min(values)
    assert max(high for _, _, high in band) == max(values)
