"""The forms that predictions are printed in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from xpcnn.cli.common import printable

Result = dict[str, Any]  # "image", "predictions" (each "class", "probability"), and "explanation" with --explain
Form = Callable[
    [Iterable[list[Result]], int], Iterator[str]
]  # batches of results and how many classes of each, to text


def as_table(batches: Iterable[list[Result]], _: int) -> Iterator[str]:
    """Return lines for people, aligned within each batch and never narrower than before."""
    width = 0
    for results in batches:
        names = [printable(result["image"]) for result in results]
        width = max([width, *map(len, names)])
        for name, result in zip(names, results, strict=True):
            best = "   ".join(f"{printable(p['class'])} {100 * p['probability']:6.2f} %" for p in result["predictions"])
            yield f"{name:<{width}}   {best}\n"


def as_json(batches: Iterable[list[Result]], _: int) -> Iterator[str]:
    """Return one array, a picture a line."""
    before = "["
    for results in batches:
        for result in results:
            yield f"{before}{json.dumps(result)}"
            before = ",\n "
    yield "[]\n" if before == "[" else "]\n"


def as_csv(batches: Iterable[list[Result]], top: int, show: Callable[[str], str] = str) -> Iterator[str]:
    """Return a table with the columns image, class1, probability1, class2, ..., and explanation if there is one.

    ``show`` makes names fit for where they go.
    """
    header = ["image", *(f"{word}{number}" for number in range(1, top + 1) for word in ("class", "probability"))]
    first = True
    for results in filter(None, batches):
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        if first:
            table.writerow([*header, *(key for key in ("explanation",) if key in results[0])])
            first = False
        for result in results:
            pairs = [(show(p["class"]), p["probability"]) for p in result["predictions"]]
            more = [result[key] for key in ("explanation",) if key in result]
            table.writerow([show(result["image"]), *(value for pair in pairs for value in pair), *more])
        yield text.getvalue()
    if first:
        yield ",".join(header) + "\n"
