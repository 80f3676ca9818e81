"""Which classes a model tells apart: the confusion matrix, the commonest mix-ups, a table of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.metrics import Classification
from xpcnn.report.markup import Html, join, scroll, short, table, tag
from xpcnn.report.pictures import img, mask_uri

Host = np.ndarray[Any, Any]

MOST_CELLS = 25  # classes up to which the matrix has numbers
MOST_PAIRS = 12
LEVELS = 9  # shades of a cell


def confusion(found: Classification) -> Html:
    """Return the confusion matrix, and the pairs of classes that are mixed up most."""
    matrix = _numbers(found) if len(found.classes) <= MOST_CELLS else _heat(found)
    note = tag(
        "p",
        "A row holds the images of one class, its columns what they were taken for. ",
        tag("span", "", class_="swatch", data_tone="right"),
        " right, ",
        tag("span", "", class_="swatch", data_tone="wrong"),
        " wrong; the more of its class, the stronger.",
        class_="muted",
    )
    return tag("div", tag("div", note, matrix), _pairs(found), class_="beside")


def classes(found: Classification) -> Html:
    """Return each class's precision, recall and F1."""
    rows = []
    for place, name in enumerate(found.classes):
        values = (found.precision[place], found.recall[place], found.f1[place])
        rows.append([short(name), f"{found.support[place]:,}", *(f"{100 * value:.2f}" for value in values)])
    macro = [f"{100 * found.macro[key]:.2f}" for key in ("precision", "recall", "f1")]
    headings = ["class", "images", "precision", "recall", "F1"]
    note = (
        f"Means over the classes: precision {macro[0]} %, recall {macro[1]} %, F1 {macro[2]} %. "
        "Precision: of what was taken for a class, the share that is of it, in per cent. Recall: of a class, the share "
        "that was taken for it. F1: their harmonic mean."
    )
    shown = table("Precision, recall and F1 of each class", headings, rows, sortable=True)
    return join([tag("p", note, class_="muted"), shown])


def _numbers(found: Classification) -> Html:
    """Return the matrix as a table with its numbers."""
    right, wrong = _strengths(found)
    heads = [tag("th", tag("span", short(name)), scope="col") for name in found.classes]
    rows = []
    for i, name in enumerate(found.classes):
        cells = [
            tag(
                "td",
                str(count) if count else "",
                data_tone="right" if i == j else "wrong",
                data_level=round(float((right if i == j else wrong)[i, j]) * LEVELS) if count else None,
                title=f"{short(name)} taken for {short(found.classes[j])}: {count:,}",
            )
            for j, count in enumerate(found.confusion[i].tolist())
        ]
        rows.append(tag("tr", tag("th", short(name), scope="row"), *cells))
    caption = "Confusion matrix: rows are true classes, columns predicted ones"
    whole = tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", tag("tr", tag("td"), *heads)),
        tag("tbody", *rows),
        class_="matrix long" if max(map(len, found.classes)) > 3 else "matrix",
    )
    return scroll(whole, caption)


def _heat(found: Classification) -> Html:
    """Return the matrix of many classes as a picture, one pixel a cell."""
    right, wrong = _strengths(found)
    alt = f"Confusion matrix of {len(found.classes)} classes: rows are true classes, columns predicted ones"
    own = np.eye(len(found.classes), dtype=bool)
    return tag("div", img(mask_uri(np.where(own, right, wrong), ~own), alt, "heat"), class_="heatbox")


def _strengths(found: Classification) -> tuple[Host, Host]:
    """Return how strong right and wrong cells are, from 0 to 1: by their share of a class, wrong ones by its root."""
    shares = found.confusion / np.maximum(found.support, 1)[:, None]
    others = shares * (1 - np.eye(len(shares)))
    wrong = np.sqrt(others / (others.max(initial=0.0) or 1.0))
    return shares, np.where(others > 0, np.maximum(wrong, 1 / LEVELS), 0.0)


def _pairs(found: Classification) -> Html:
    """Return the commonest mix-ups."""
    counts = found.confusion * (1 - np.eye(len(found.classes), dtype=np.int64))
    order = np.argsort(-counts, axis=None, kind="stable")[:MOST_PAIRS]
    places = [np.unravel_index(place, counts.shape) for place in order if counts.flat[place]]
    if not places:
        return tag("p", "No class was taken for another.", class_="muted")
    shares = 100 * counts / np.maximum(found.support, 1)[:, None]
    names = [short(name) for name in found.classes]
    rows = [[names[i], names[j], f"{counts[i, j]:,}", f"{shares[i, j]:.1f} %"] for i, j in places]
    heading = tag("h3", "Most often mixed up")
    shown = table("The commonest mistakes", ["is", "taken for", "images", "share"], rows, words=2)
    return tag("div", heading, shown, class_="pairs")
