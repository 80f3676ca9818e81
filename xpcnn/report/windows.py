"""The windows of a convolution or max pooling, drawn: one small picture of the input for every output element."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.errors import XpcnnError
from xpcnn.files import write_whole
from xpcnn.kernels import Window
from xpcnn.report.explain import Explanation, Ints
from xpcnn.report.explain_text import at, by, name_of, options_of

WIDEST, HIGHEST = 13.0, 13.0  # inches
CELL, LEAST = 0.38, 0.3  # inches of an input element's side, and the least that its label needs
MOST_WINDOWS = (12, 5)  # along an axis, for inputs of one axis and of two
MOST_CELLS = (24, 14)  # of an input that is drawn whole, padding included; of a larger one the first part is drawn
LARGEST = 24  # elements that a window may span

COLOURS = {
    "input": "#e6e6e6",
    "padding": "#ffffff",
    "window": "#a9cdf0",
    "window in the padding": "#e3eefa",
    "kernel's center": "#f7b267",
    "maximum": "#f7b267",
}


def draw_windows(path: str | Path, told: Explanation) -> str:
    """Draw a PNG of the windows and return how many are in it, such as ``20 of 784 windows``.

    Parameters
    ----------
    path : path
        Of the PNG, written whole or not at all.
    told : Explanation
        Of an input with one or two axes.

    Raises
    ------
    XpcnnError
        For three axes, or a kernel too large to be drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    part = _part(told.win)
    rows, columns = part.windows if len(part.windows) == 2 else (part.windows[0], 1)
    high, wide = part.cells if len(part.cells) == 2 else (1, part.cells[0])
    cell = min(CELL, WIDEST / (columns * (wide + 1)), HIGHEST / (rows * (high + 2)))
    size = (max(7.5, columns * (wide + 1) * cell + 0.5), rows * (high * cell + 0.55) + 1.2)
    figure = Figure(figsize=size, dpi=120, layout=ConstrainedLayoutEngine(h_pad=0.08))
    FigureCanvasAgg(figure)
    drawn, count = prod(part.windows), prod(told.win.out)
    said = f"{count} window{'s' * (count > 1)}" if drawn == count else f"{drawn} of {count:,} windows"
    sizes = f"input {by(told.win.size)}, kernel {by(told.win.kernel)}, output {by(told.win.out)}"
    figure.suptitle(
        f"{name_of(told)}: {sizes}\n{options_of(told)}" + (f"; {said}" if drawn < count else ""), fontsize=9
    )

    grid = figure.subplots(rows, columns, squeeze=False)
    for place, output in zip(np.ndindex(rows, columns), product(*map(range, part.windows)), strict=True):
        _draw_panel(grid[place], told, output, part, cell)
    used = ["input", "window", "maximum" if told.values is not None else "kernel's center"]
    used += ["padding", "window in the padding"] if told.win.is_padded else []
    if told.values is None and told.center is None:
        used.remove("kernel's center")
    handles = [Patch(facecolor=COLOURS[name], edgecolor="#999999", label=name) for name in used]
    label = "numbers: the input's values" if told.values is not None else "numbers: the kernel element that meets it"
    handles.append(Patch(facecolor="none", edgecolor="none", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
    return said


@dataclass(frozen=True)
class _Part:
    """What is drawn, per axis: the first windows, and the input elements from ``low`` on."""

    windows: Ints
    low: Ints
    cells: Ints


def _part(win: Window) -> _Part:
    """Return how many windows are drawn, and of which part of the input, so that everything can be read."""
    axes = len(win.size)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(win.dilation, win.kernel, strict=True))
    if axes > 2:
        raise XpcnnError(f"windows are drawn over 1 or 2 axes, not {axes}; leave --draw away to have them listed.")
    if max(spans) > LARGEST:
        raise XpcnnError(f"a window spans {by(spans)} elements, but at most {LARGEST} along an axis can be drawn.")
    windows, cells = [], []
    for n, s, b, out, extent, span in zip(win.size, win.stride, win.before, win.out, win.extent, spans, strict=True):
        most, whole = MOST_WINDOWS[axes - 1], max(n + b, extent)
        if whole > MOST_CELLS[axes - 1]:  # as many windows as fit
            most = max(1, min(most, (MOST_CELLS[axes - 1] - span) // s + 1))
            whole = (min(most, out) - 1) * s + span
        windows.append(min(most, out))
        cells.append(whole)
    if axes == 2:
        windows[1] = max(1, min(windows[1], int(WIDEST / LEAST / (cells[1] + 1))))
        windows[0] = max(1, min(windows[0], int(HIGHEST / LEAST / (cells[0] + 2))))
    return _Part(tuple(windows), tuple(-b for b in win.before), tuple(cells))


def _draw_panel(axes: Any, told: Explanation, output: Ints, part: _Part, cell: float) -> None:
    """Draw the input with one output element's window on it."""
    from matplotlib.colors import to_rgb

    high, wide = (1, *part.cells)[-2:]
    colours = np.ones((high, wide, 3))
    labels: dict[Ints, tuple[str, str]] = {}
    for index in np.ndindex(*part.cells):
        place = tuple(i + low for i, low in zip(index, part.low, strict=True))
        inside = all(0 <= p < n for p, n in zip(place, told.win.size, strict=True))
        colours[(0, *index)[-2:]] = to_rgb(COLOURS["input" if inside else "padding"])
        if inside and told.values is not None:
            labels[index] = f"{told.values[place]:.3g}", "#777777"
    title = at("y", output)
    best = None
    if told.values is not None:
        value, best = told.maximum(output)
        title += f" = {value:.3g}" + (f", at {at('x', best)}" if best else "")
    for element, place, inside in told.meetings(output):
        index = tuple(p - low for p, low in zip(place, part.low, strict=True))
        special = place == best if told.values is not None else element == told.center
        name = "window" if inside else "window in the padding"
        if special:
            name = "maximum" if told.values is not None else "kernel's center"
        colours[(0, *index)[-2:]] = to_rgb(COLOURS[name])
        if told.values is None:
            labels[index] = ",".join(map(str, element)), "#000000" if inside else "#888888"
        elif inside:
            labels[index] = labels[index][0], "#000000"
    axes.imshow(colours, interpolation="nearest")
    _label(axes, labels, cell)
    _frame(axes, part, high, wide, title, cell)


def _label(axes: Any, labels: dict[Ints, tuple[str, str]], cell: float) -> None:
    """Write into the cells, as large as fits, or not at all."""
    longest = max((len(text) for text, _ in labels.values()), default=1)
    size = min(9.0, cell * 72 * 0.9 / (0.6 * max(longest, 2)))  # points; a digit is 0.6 of its size wide
    if size < 4:
        return
    for index, (text, colour) in labels.items():
        row, column = (0, *index)[-2:]
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _frame(axes: Any, part: _Part, high: int, wide: int, title: str, cell: float) -> None:
    """Draw the lines between cells, the input's indices and the title."""
    axes.set_title(title, fontsize=9, pad=3)
    axes.set_xticks(np.arange(wide + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(high + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#999999", linewidth=0.5)
    axes.set(xlim=(-0.53, wide - 0.47), ylim=(high - 0.47, -0.53))  # the outermost lines, too
    axes.tick_params(which="both", length=0, labelsize=6, labelcolor="#777777", pad=1)
    every = 1 if cell >= 0.2 else 5
    axes.set_xticks(range(0, wide, every), [str(c + part.low[-1]) for c in range(0, wide, every)])
    axes.set_yticks([])
    if len(part.low) == 2:
        axes.set_yticks(range(0, high, every), [str(r + part.low[0]) for r in range(0, high, every)])
    for side in axes.spines.values():
        side.set_visible(False)
