"""Line charts as SVG: readable as they are; a script shows values under the pointer from ``data-chart``."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from xpcnn.report.markup import Html, tag

Point = tuple[float, float]

HEIGHT, WIDE = 220, 1000  # of the drawing; it is stretched to the width there is
BELOW = 42  # for the numbers under it
MOST_POINTS = 400  # of a line; longer ones are thinned
COLOURS = 6  # that the style sheet has; further lines are dashed
DOTS = 40  # up to so many points are marked


@dataclass(frozen=True)
class Line:
    """A named line of (x, y), perhaps in a band of (x, low, high), in the colour of a number."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class _Axes:
    """The ranges of both axes, and where values lie on them; on a logarithmic one, low and high are exponents."""

    start: float
    end: float
    low: float
    high: float
    log: bool

    def across(self, x: float, width: float = WIDE) -> float:
        return (x - self.start) / ((self.end - self.start) or 1.0) * width

    def down(self, y: float) -> float:
        if self.log:
            y = math.log10(y) if y > 0 else -math.inf
        return (self.high - max(y, self.low)) / (self.high - self.low) * HEIGHT

    def place(self, x: float, y: float) -> str:
        return f"{self.across(x):.4g} {self.down(y):.4g}"


def line_chart(title: str, lines: Sequence[Line], x_name: str, *, percent: bool = False, log: bool = False) -> Html:
    """Return a chart with its legend.

    Parameters
    ----------
    title : str
        Above it.
    lines : sequence of Line
        All in one pair of axes, each with one point at least.
    x_name : str
        What x counts, such as ``epoch``.
    percent : bool
        Values are fractions and shown as per cent.
    log : bool
        Use a logarithmic scale if all values are above zero and far apart.
    """
    axes = _axes(lines, 1.0 if percent else math.inf, log)
    ticks = _log_ticks(axes.low, axes.high) if axes.log else nice_ticks(axes.low, axes.high)
    levels = [(axes.down(tick), _shown(tick, percent)) for tick in ticks]
    label = f"{title}: " + "; ".join(
        f"{line.name} from {_shown(line.points[0][1], percent, True)} to {_shown(line.points[-1][1], percent, True)}"
        for line in lines
    )
    legend = _legend(lines) if [line.name for line in lines] != [title] else ""
    tip = tag("output", class_="tip", hidden=True)
    return tag(
        "figure",
        tag("figcaption", tag("h3", title), legend),
        tag("div", _scale(levels), _drawing(lines, axes, levels, x_name, label), tip, class_="frame"),
        class_="chart",
        data_chart=_data(lines, x_name, axes, percent),
    )


def _axes(lines: Sequence[Line], most: float, log: bool) -> _Axes:
    """Return the axes that lines fit in, with some air above and below, but little above ``most``."""
    kept = [y for line in lines for _, y in line.points] + [y for line in lines for y in _usual(line.band)]
    low, high = min(kept), max(kept)
    log = log and low > 0 and high / low > 20
    if log:
        low, high = math.log10(low), math.log10(high)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    start, end = min(line.points[0][0] for line in lines), max(line.points[-1][0] for line in lines)
    return _Axes(start, end, low - air, high + (0.3 * air if high + air > most else air), log)


def _scale(levels: Sequence[tuple[float, str]]) -> Html:
    """Return the numbers at the left."""
    texts = [tag("text", text, x="100%", y=f"{y + 4:.1f}", text_anchor="end") for y, text in levels]
    return tag("svg", *texts, class_="levels", aria_hidden="true", height=HEIGHT + BELOW)


def _drawing(lines: Sequence[Line], axes: _Axes, levels: Sequence[tuple[float, str]], x_name: str, label: str) -> Html:
    """Return the lines on their grid; only they are stretched, not the numbers below."""
    grid = [tag("line", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid") for y, _ in levels]
    stretched = tag(
        "svg", *[path for line in lines for path in _paths(line, axes)], viewBox=f"0 0 {WIDE} {HEIGHT}",
        preserveAspectRatio="none", width="100%", height=HEIGHT,
        class_="clipped" if any(line.band for line in lines) else None,
    )  # fmt: skip
    cursor = tag("line", x1="0", x2="0", y1="0", y2=HEIGHT, class_="cursor")
    return tag(
        "svg", *grid, stretched, *_x_labels(axes, x_name), cursor, class_="plot", role="img", aria_label=label,
        tabindex="0", height=HEIGHT + BELOW,
    )  # fmt: skip


def thinned(values: Sequence[float], window: int) -> tuple[list[Point], list[tuple[float, float, float]]]:
    """Return the running median of updates' values and the band they lie in, both at `MOST_POINTS` places at most.

    The median at an update is of the last ``window`` values, of fewer at the start. A mean would be ruled by the first
    updates' losses long after them.
    """
    size = max(1, -(-len(values) // MOST_POINTS))
    points, band = [], []
    for begin in range(0, len(values), size):
        end = min(begin + size, len(values))
        last = values[max(0, end - window) : end]
        points.append((float(end), statistics.median(last)))
        band.append((float(end), min(values[begin:end]), max(values[begin:end])))
    return points, band


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from low to high, at most so many, 1, 2, 2.5 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * times for times in (1, 2, 2.5, 5, 10, 20) if (high - low) / (unit * times) <= most - 1 + 1e-9)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _usual(band: Sequence[tuple[float, float, float]]) -> list[float]:
    """Return how low and how high most of a band goes; a few single updates would squeeze all else together."""
    if not band:
        return []
    lows, highs = sorted(low for _, low, _ in band), sorted(high for _, _, high in band)
    return [lows[len(lows) // 10], highs[-1 - len(highs) // 20]]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two exponents, thinned to a handful."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if tick > 0 and low - 1e-9 <= math.log10(tick) <= high + 1e-9]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: -(-len(ticks) // 6)]


def _paths(line: Line, axes: _Axes) -> list[Html]:
    """Return a line's band, stroke and dots."""
    classes = f"c{line.colour % COLOURS}"
    paths = []
    if line.band:
        upper = [axes.place(x, high) for x, _, high in line.band]
        lower = [axes.place(x, low) for x, low, _ in reversed(line.band)]
        paths.append(tag("path", d=f"M{'L'.join(upper + lower)}Z", class_=f"band {classes}"))
    drawn = [axes.place(x, y) for x, y in line.points]
    dashed = " dashed" if line.dashed or line.colour >= COLOURS else ""
    paths.append(tag("path", d=f"M{'L'.join(drawn)}", class_=f"line {classes}{dashed}"))
    if len(drawn) <= DOTS:
        paths.append(tag("path", d="".join(f"M{dot}h0" for dot in drawn), class_=f"dots {classes}"))
    return paths


def _x_labels(axes: _Axes, name: str) -> list[Html]:
    """Return the numbers under the chart and what they count."""
    ticks = [tick for tick in nice_ticks(axes.start, axes.end, 6) if tick == int(tick)]
    places = [(axes.across(tick, 100.0), f"{tick:,.0f}") for tick in ticks]
    labels = [tag("text", text, x=f"{x:.2f}%", y=HEIGHT + 18, text_anchor=_anchor(x)) for x, text in places]
    return [*labels, tag("text", name, x="50%", y=HEIGHT + 37, text_anchor="middle")]


def _anchor(place: float) -> str:
    """Return how a label at a place (per cent) is anchored, so that none sticks out."""
    return "start" if place < 2 else "end" if place > 98 else "middle"


def _legend(lines: Sequence[Line]) -> Html:
    """Return the lines' names beside samples of their strokes."""
    items = []
    for line in lines:
        dashed = " dashed" if line.dashed or line.colour >= COLOURS else ""
        stroke = tag("line", x1="1", x2="21", y1="5", y2="5", class_=f"line c{line.colour % COLOURS}{dashed}")
        items.append(tag("li", tag("svg", stroke, width="22", height="10", aria_hidden="true"), line.name))
    return tag("ul", *items, class_="legend")


def _data(lines: Sequence[Line], x_name: str, axes: _Axes, percent: bool) -> str:
    """Return what the script needs, as JSON."""
    series = [
        {"name": line.name, "colour": line.colour % COLOURS, "points": [[x, float(f"{y:.5g}")] for x, y in line.points]}
        for line in lines
    ]
    data = {"x": x_name, "start": axes.start, "end": axes.end, "percent": percent, "series": series}
    return json.dumps(data, separators=(",", ":"))


def _shown(value: float, percent: bool, exact: bool = False) -> str:
    """Return a number for people."""
    if percent:
        return f"{100 * value:.2f} %" if exact else f"{100 * value:.4g} %"
    return f"{value:.4g}"
