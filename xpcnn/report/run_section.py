"""What a run is: its headline figures, its settings and environment, its network, and how it differs from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.model import Model
from xpcnn.report.facts import Facts
from xpcnn.report.markup import Html, join, scroll, short, table, tag
from xpcnn.report.measure import Measured


def headline(run: Facts, model: Model | None, measured: Measured | None) -> Html:
    """Return the figures that matter most; what is not known is left out."""
    cards = [*_accuracy(run, measured), *_others(run, model, measured)]
    return tag("dl", *[_card(name, value, detail) for name, value, detail in cards], class_="cards")


def state(run: Facts) -> str:
    """Return how far a run got, in a few words."""
    done, planned = run.done, run.planned
    if not run.epochs and not run.losses:
        return "nothing recorded yet"
    if planned is None or done >= planned:
        return f"{done} epochs" if done != 1 else "1 epoch"
    return f"{done} of {planned} epochs so far: going on, stopped early or interrupted"


def settings(run: Facts, model: Model | None) -> Html:
    """Return the tables of the configuration, and the network layer by layer."""
    names = {"train": "Settings", "augment": "Augmentation", "environment": "Environment"}
    parts = [
        tag("div", tag("h3", names.get(name, short(name))), _pairs(name, values))
        for name, values in run.config.items()
        if isinstance(values, dict) and values
    ]
    shown = [tag("div", *parts, class_="settings")] if parts else [tag("p", "It has no configuration.", class_="muted")]
    if model is not None:
        label = "The network, layer by layer"
        shown += [tag("h3", label), scroll(tag("pre", model.summary()), label)]
    return join(shown)


def comparison(runs: Sequence[Facts]) -> Html:
    """Return the final figures of runs, and the settings in which they differ."""
    figures = [
        [short(run.name), *_best(run), _figure(run.last("loss"), "{:.5f}"), str(run.done), _duration(run.seconds)]
        for run in runs
    ]
    headings = ["run", "best accuracy %", "of", "last loss", "epochs", "time"]
    shown = [tag("h3", "Final figures"), table("Final figures of the runs", headings, figures)]
    tables = [run.config.get(name, {}) for name in ("train", "augment") for run in runs]
    keys = dict.fromkeys(key for values in tables if isinstance(values, dict) for key in values)
    rows = [[short(key), *texts] for key in keys if len(set(texts := [_setting(run, key) for run in runs])) > 1]
    shown.append(tag("h3", "Settings that differ"))
    if not rows:
        return join([*shown, tag("p", "All settings are the same.", class_="muted")])
    names = ["setting", *(short(run.name) for run in runs)]
    return join([*shown, table("Settings that differ", names, rows, words=len(names))])


def _accuracy(run: Facts, measured: Measured | None) -> list[tuple[str, str, str]]:
    """Return the accuracies: measured now or, without images, as recorded."""
    if measured is None:
        if run.best is None:
            return []
        name = run.measured_by.partition("_")[0]
        return [(f"best {name} accuracy", f"{100 * run.best[1]:.2f} %", f"after epoch {run.best[0]:.0f}")]
    found = measured.found
    wrong = found.images - int(found.confusion.trace())
    cards = [("test accuracy", f"{100 * found.top1:.2f} %", f"{wrong:,} of {found.images:,} images wrong")]
    if found.top5 is not None:
        cards.append(("top-5 accuracy", f"{100 * found.top5:.2f} %", "the class is among the five likeliest"))
    return [*cards, ("test loss", f"{measured.loss:.4f}", "mean cross-entropy, in nats")]


def _others(run: Facts, model: Model | None, measured: Measured | None) -> list[tuple[str, str, str]]:
    """Return figures of training and of the network."""
    cards = []
    if measured is not None and (train := run.last("train_accuracy")) is not None:
        cards.append(("training accuracy", f"{100 * train:.2f} %", "after the last epoch"))
    if (loss := run.last("loss")) is not None:
        cards.append(("training loss", f"{loss:.4f}", "mean of the last epoch"))
    if model is not None:
        count = model.net.parameter_count(model.input_shape)
        image = "×".join(map(str, model.input_shape))
        cards.append(("parameters", f"{count:,}", f"for images of {image}"))
    if run.seconds:
        rate = run.last("images_per_second")
        cards.append(("time", _duration(run.seconds), f"{rate:,.0f} images/s" if rate else "training and evaluation"))
    return cards


def _card(name: str, value: str, detail: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value), tag("dd", detail, class_="detail"))


def _pairs(name: str, values: dict[str, Any]) -> Html:
    """Return a table of names and values."""
    rows = [[short(key), _text(value)] for key, value in values.items()]
    return table(name, ["setting", "value"], rows, words=2, head=False)


def _text(value: Any) -> str:
    """Return a setting for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 300 else f"{text[:299]}…"


def _setting(run: Facts, key: str) -> str:
    """Return a run's setting, wherever it stands."""
    for name in ("train", "augment"):
        values = run.config.get(name, {})
        if isinstance(values, dict) and key in values:
            return _text(values[key])
    return "–"


def _best(run: Facts) -> tuple[str, str]:
    """Return the best accuracy in per cent, and of what it is."""
    return (f"{100 * run.best[1]:.2f}", run.measured_by.partition("_")[0]) if run.best else ("–", "–")


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _duration(seconds: float) -> str:
    """Return a time such as ``1 h 02 min``, ``3 min 20 s`` or ``4.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
