"""The curves of one run or of several: loss by update, accuracy and learning rate by epoch.

Epoch 0, the untrained network, stands in the table alone: in a chart it would squeeze all else together.
"""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.report.chart import Line, Point, line_chart, thinned
from xpcnn.report.facts import Facts, drawable
from xpcnn.report.markup import Html, join, table, tag

MOST_WINDOW = 50  # updates in the running median of losses
MOST_EPOCHS = 200  # rows of the table


def curves(runs: Sequence[Facts]) -> Html:
    """Return the charts of a run or, in one pair of axes, of several; then every epoch of the first as a table."""
    losses, accuracies, rates = _losses(runs), _accuracies(runs), _rates(runs)
    test_losses = _courses(runs, "test_loss", "Test loss", 0)
    drawn = [
        line_chart("Training loss", losses, "update", log=True) if losses else None,
        line_chart("Accuracy", accuracies, "epoch", percent=True) if accuracies else None,
        line_chart("Test loss", test_losses, "epoch", log=True) if test_losses else None,
        line_chart("Learning rate", rates, "epoch") if rates else None,
    ]
    drawn = [chart for chart in drawn if chart]
    if not drawn:
        return tag("p", "Nothing has been recorded yet.", class_="muted")
    return join([tag("div", *drawn, class_="charts"), _epochs(runs[0]) if runs[0].epochs else ""])


def _losses(runs: Sequence[Facts]) -> list[Line]:
    """Return the running medians of losses; of a single run with the range of the updates."""
    lines = []
    for place, run in enumerate(runs):
        values = [loss for loss in run.losses if drawable(loss)]
        window = max(1, min(MOST_WINDOW, len(values) // 25))
        points, band = thinned(values, window)
        alone = len(runs) == 1
        name = f"median of the last {window} updates, and their range" if alone else run.name
        lines.append(Line(name, points, place, band=band if alone else ()))
    return [line for line in lines if line.points]


def _accuracies(runs: Sequence[Facts]) -> list[Line]:
    """Return a run's accuracy on test and training set, or of each run the one that counts."""
    if len(runs) > 1:
        return [
            Line(f"{run.name} ({run.measured_by.partition('_')[0]})", points, place)
            for place, run in enumerate(runs)
            if (points := _trained(run, run.measured_by))
        ]
    both = (("test", 0, False), ("train", 1, True))
    lines = [Line(name, _trained(runs[0], f"{name}_accuracy"), colour, dashed) for name, colour, dashed in both]
    return [line for line in lines if line.points]


def _trained(run: Facts, key: str) -> list[Point]:
    """Return (epoch, value) of what a run recorded under a key, from the first epoch on."""
    return [(epoch, value) for epoch, value in run.course(key) if epoch]


def _courses(runs: Sequence[Facts], key: str, name: str, colour: int) -> list[Line]:
    """Return what each run recorded under a key after its epochs."""
    alone = len(runs) == 1
    lines = [Line(name if alone else run.name, _trained(run, key), colour + place) for place, run in enumerate(runs)]
    return [line for line in lines if len(line.points) > 1]


def _rates(runs: Sequence[Facts]) -> list[Line]:
    """Return the learning rates, unless they are all constant."""
    lines = _courses(runs, "lr", "Learning rate", 2 if len(runs) == 1 else 0)
    return lines if any(len({y for _, y in line.points}) > 1 for line in lines) else []


def _epochs(run: Facts) -> Html:
    """Return every epoch's figures, to be unfolded."""
    columns = {
        "loss": ("loss", "{:.5f}", 1),
        "train_accuracy": ("train accuracy", "{:.2f} %", 100),
        "test_accuracy": ("test accuracy", "{:.2f} %", 100),
        "test_loss": ("test loss", "{:.5f}", 1),
        "lr": ("learning rate", "{:.3g}", 1),
        "seconds": ("seconds", "{:,.1f}", 1),
        "images_per_second": ("images/s", "{:,.0f}", 1),
    }
    recorded = {key: dict(run.course(key)) for key in columns}
    recorded = {key: values for key, values in recorded.items() if values}
    numbers = [epoch for epoch, _ in run.course("epoch")]
    rows = [
        [f"{epoch:.0f}", *(_cell(values.get(epoch), columns[key]) for key, values in recorded.items())]
        for epoch in numbers[-MOST_EPOCHS:]
    ]
    title = "Every epoch" if len(rows) == len(numbers) else f"The last {len(rows)} epochs"
    shown = table(title, ["epoch", *(columns[key][0] for key in recorded)], rows)
    return tag("details", tag("summary", title), shown)


def _cell(value: float | None, column: tuple[str, str, int]) -> str:
    """Return a figure in its column's form."""
    return "–" if value is None else column[1].format(column[2] * value)
