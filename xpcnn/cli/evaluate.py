"""``xpcnn evaluate``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from xpcnn.cli.common import (
    data_dir_option,
    device_option,
    load_for,
    open_for_use,
    precision_option,
    printable,
    threads_option,
)
from xpcnn.errors import XpcnnError

if TYPE_CHECKING:
    from xpcnn.metrics import Classification


@click.command("evaluate")
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--dataset", metavar="NAME", help="As in train.  [default: the one the run was trained on]")
@data_dir_option
@device_option
@precision_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, the confusion matrix too.")
def evaluate_command(
    run: str, split: str, dataset: str | None, data_dir: str | None, device: str, precision: str, as_json: bool
) -> None:
    """Measure RUN (a run's directory or a model file) on its data set, class by class.

    Precision is, of what was taken for a class, the share that is of it; recall, of a class, the share that was taken
    for it; F1 their harmonic mean. Where nothing is to be divided by, they are 0.
    """
    from xpcnn.report.measure import measure

    model, settings = open_for_use(run, device, precision)
    name = dataset or settings.get("dataset") or model.dataset
    if not name:
        raise XpcnnError(f"{run} does not say what it was trained on; name it with --dataset.")
    if name == settings.get("dataset"):
        data_dir = data_dir or settings.get("data_dir")
    data = load_for(model, name, data_dir, settings)[split == "test"]
    measured = measure(model, data)
    found = measured.found
    if as_json:
        head = {"dataset": name, "split": split, "images": len(data), "accuracy": found.top1, "loss": measured.loss}
        click.echo(json.dumps(head | found.as_dict()))
        return
    right = f"{100 * found.top1:.2f} % of {len(data):,} images right"
    click.echo(f"{printable(name)}, {split} set: {right}, loss {measured.loss:.5f}")
    if found.top5 is not None:
        click.echo(f"{100 * found.top5:.2f} % have their class among the five likeliest")
    for line in _table(found):
        click.echo(line)


def _table(found: Classification) -> Iterator[str]:
    """Yield the lines of a table of the classes and, below, the means of those that occur."""
    names = [printable(name) for name in found.classes]
    width = max(map(len, (*names, "class")))
    yield f"\n{'class':<{width}}   images  precision   recall       F1"
    rows = zip(names, found.support, found.precision, found.recall, found.f1, strict=True)
    for name, images, *shares in rows:
        yield f"{name:<{width}} {images:>8,} {_percents(shares)}"
    yield f"{'mean':<{width}} {'':>8} {_percents(list(found.macro.values()))}"


def _percents(shares: list[float]) -> str:
    """Return precision, recall and F1 in per cent."""
    return " ".join(f"{100 * share:>{width}.2f} %" for share, width in zip(shares, (8, 6, 6), strict=True))
