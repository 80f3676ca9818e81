"""The page of a run: one HTML file that holds everything and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import xpcnn
from xpcnn.data import Source
from xpcnn.files import write_whole
from xpcnn.model import Model
from xpcnn.report.class_section import classes, confusion
from xpcnn.report.curve_section import curves
from xpcnn.report.facts import Facts, read_facts
from xpcnn.report.image_section import examples, filters, mistakes
from xpcnn.report.markup import Html, join, short, tag
from xpcnn.report.measure import Measured, measure
from xpcnn.report.run_section import comparison, headline, settings, state

Section = tuple[str, str, Html]  # id, title, content


def write_report(
    out: str | Path,
    run: str | Path,
    *,
    compare: Sequence[str | Path] = (),
    model: Model | None = None,
    data: Source | None = None,
    images: int = 4,
    most_mistakes: int = 24,
    notes: Sequence[str] = (),
) -> None:
    """Write a page about a run: what it reached, its curves, its mistakes, and what its network sees.

    Parameters
    ----------
    out : path
        Of the HTML file, written whole or not at all.
    run : path
        The run's directory, finished or not.
    compare : sequence of paths
        Other runs, set beside it.
    model : Model, optional
        The run's model; without it, what needs one is left out.
    data : Source, optional
        Labelled images to try the model on; without them, what needs images is left out.
    images : int
        How many of them to look into, layer by layer.
    most_mistakes : int
        How many mistakes to show.
    notes : sequence of str
        Sentences for the top of the page, such as why there are no images.

    Raises
    ------
    DataError
        When a path is no run, or what it recorded is damaged.
    XpcnnError
        When model and data do not fit.
    """
    facts = [read_facts(path) for path in (run, *compare)]
    if len({one.name for one in facts}) < len(facts):
        facts = [replace(one, name=str(one.path)) for one in facts]
    text = make_page(facts, model, data, images, most_mistakes, notes)
    write_whole(out, text.encode(errors="replace"))


def make_page(
    runs: Sequence[Facts],
    model: Model | None,
    data: Source | None,
    images: int = 4,
    most_mistakes: int = 24,
    notes: Sequence[str] = (),
) -> str:
    """Return the page of the first run, the others set beside it; see `write_report`."""
    run = runs[0]
    measured = measure(model, data) if model is not None and data is not None else None
    sections: list[Section] = [("compared", "Runs compared", comparison(runs))] if len(runs) > 1 else []
    sections.append(("curves", "Curves", curves(runs)))
    if model is not None and data is not None and measured is not None:
        sections += _classes(measured) + _images(model, data, measured, images, most_mistakes)
    if model is not None and (kernels := filters(model)) is not None:
        sections.append(("filters", "First filters", kernels))
    sections.append(("settings", "Settings and network", settings(run, model)))
    content = [
        _header(run),
        tag("div", *[tag("p", note) for note in notes], class_="notes", role="note") if notes else "",
        headline(run, model, measured),
        _contents(sections),
        *[tag("section", tag("h2", title), inside, id=name) for name, title, inside in sections],
    ]
    return _document(f"{run.name}: {_title(run)}", tag("main", *content))


def _classes(measured: Measured) -> list[Section]:
    """Return the sections on classes."""
    return [
        ("confusion", "Confusion matrix", confusion(measured.found)),
        ("classes", "Classes", classes(measured.found)),
    ]


def _images(model: Model, data: Source, measured: Measured, images: int, most: int) -> list[Section]:
    """Return the sections with images, if the model takes some."""
    if len(model.input_shape) != 3:
        return []
    names = measured.found.classes
    sections: list[Section] = []
    if most:
        sections.append(("mistakes", "Worst mistakes", mistakes(data, measured, names, most)))
    if images:
        sections.append(("inside", "Inside the network", examples(model, data, measured, names, images)))
    return sections


def _title(run: Facts) -> str:
    """Return what was trained on what."""
    named = [str(run.settings[key]) for key in ("model", "dataset") if key in run.settings]
    return " on ".join(short(name) for name in named) or "a model without settings"


def _header(run: Facts) -> Html:
    """Return the page's head, with the switch between light and dark that the script brings to life."""
    started = str(run.config.get("environment", {}).get("started", ""))[:16].replace("T", " ")
    facts = [str(run.path), state(run), *([f"started {started}"] if started else [])]
    switch = tag("button", "Dark", type="button", id="theme", hidden=True, aria_pressed="false")
    titles = tag("div", tag("p", "Training report", class_="kicker"), tag("h1", _title(run)))
    return tag("header", titles, switch, tag("p", join(facts, " · "), class_="muted wide"))


def _contents(sections: Sequence[Section]) -> Html:
    """Return links to the sections."""
    return tag("nav", *[tag("a", title, href=f"#{name}") for name, title, _ in sections], aria_label="Sections")


def _document(title: str, content: Html) -> str:
    """Return the whole file; its policy lets a browser load nothing and run nothing but what is in it."""
    style, script = (files("xpcnn.report").joinpath(name).read_text("utf-8") for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"xpcnn {xpcnn.__version__}"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(style)),
    ]
    body = tag("body", content, tag("script", Html(script)))
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), body, lang='en')}\n"


def _hash(text: str) -> str:
    """Return how a content security policy names an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
