"""The curves of a run: loss by update, accuracy by epoch."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xpcnn.files import write_whole

MOST = 1e100  # of a loss that is drawn


def draw_curves(path: str | Path, losses: Sequence[float], epochs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw a PNG: on the left every update's loss and its running mean, on the right accuracy by epoch.

    Parameters
    ----------
    path : path
        Of the PNG, written whole or not at all.
    losses : sequence of float
        One per update.
    epochs : sequence of mappings
        Records with ``epoch``, ``train_accuracy`` and ``test_accuracy`` (or None), from epoch 0, before training.
    title : str
        Above both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)  # a path may have dollars
    left, right = figure.subplots(1, 2)

    losses = [min(loss, MOST) for loss in losses]  # matplotlib's ticks overflow far above
    updates = range(1, len(losses) + 1)
    left.plot(updates, losses, color="C0", alpha=0.3, linewidth=0.6, label="each update")
    window = max(1, min(100, len(losses) // 10))
    left.plot(updates, running_mean(losses, window), color="C0", label=f"mean of the last {window}")
    left.set(xlabel="update", ylabel="loss", title="Training loss")
    if losses and min(losses) > 0:
        left.set_yscale("log")
    left.legend(loc="upper right")

    for part, style in (("train", "o-"), ("test", "s--")):
        points = [(e["epoch"], e[f"{part}_accuracy"]) for e in epochs if e[f"{part}_accuracy"] is not None]
        if points:
            right.plot(*zip(*points, strict=True), style, label=f"{part}, last {100 * points[-1][1]:.2f} %")
    later = [e[name] for e in epochs[1:] for name in ("train_accuracy", "test_accuracy") if e[name] is not None]
    if later:  # an untrained network's accuracy would squeeze all others together
        low = min(later)
        right.set_ylim(max(0.0, low - 0.15 * (1.001 - low)), 1.0 + 0.05 * (1.001 - low))
    right.set(xlabel="epoch", ylabel="accuracy", title="Accuracy, after each epoch")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    if epochs:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of the font, for a path in another script
        figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return, at each place, the mean of the last ``window`` values (of fewer at the start)."""
    return [math.fsum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
