"""``xpcnn report``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xpcnn.cli.common import data_dir_option, device_option, load_for, open_for_use, threads_option
from xpcnn.errors import XpcnnError
from xpcnn.files import check_writable

if TYPE_CHECKING:
    from xpcnn.data import Source
    from xpcnn.model import Model


@click.command("report")
@click.argument("run", type=click.Path())
@click.option("--out", type=click.Path(), metavar="FILE.html", help="The page.  [default: report.html in RUN]")
@click.option(
    "--compare", multiple=True, type=click.Path(), metavar="RUN", help="Set another run beside it; again for more."
)
@click.option("--images", type=click.IntRange(0, 12), default=4, show_default=True, help="Images to look into.")
@click.option("--max-mistakes", type=click.IntRange(0, 48), default=24, show_default=True, help="Mistakes to show.")
@click.option("--dataset", metavar="NAME", help="Where the data set is now.  [default: where the run had it]")
@data_dir_option
@device_option
@threads_option
def report_command(
    run: str,
    out: str | None,
    compare: tuple[str, ...],
    images: int,
    max_mistakes: int,
    dataset: str | None,
    data_dir: str | None,
    device: str,
) -> None:
    """Make one HTML page about RUN (a run's directory, finished or not) that needs no network.

    It shows the curves, the confusion matrix, the worst mistakes with their images, the first filters, what the layers
    make of a few images, Grad-CAM and saliency, settings and network. What is not there, such as a data set that was
    moved, is left out, and the page says so.
    """
    from xpcnn.report.facts import read_facts
    from xpcnn.report.page import write_report

    facts = read_facts(run)
    out = out or str(facts.path / "report.html")
    check_writable(out)
    model, data, notes = _opened(run, dataset, data_dir, device)
    write_report(
        out, run, compare=compare, model=model, data=data, images=images, most_mistakes=max_mistakes, notes=notes
    )
    for note in notes:
        click.echo(note)
    click.echo(f"{out}: {os.path.getsize(out) / 1e6:.1f} MB, open it in a browser.")


def _opened(
    run: str, dataset: str | None, data_dir: str | None, device: str
) -> tuple[Model | None, Source | None, list[str]]:
    """Return the run's model and its test images, or None and a sentence about why not."""
    from xpcnn.training.run import MODEL

    path = Path(run)
    if path.is_dir() and not (path / MODEL).exists():
        return None, None, ["There is no model yet, so nothing is shown that needs one."]
    model, settings = open_for_use(run, device)
    name = dataset or settings.get("dataset") or model.dataset
    if not name:
        return model, None, ["The run does not say what it was trained on, so there are no images."]
    try:
        return model, load_for(model, name, data_dir or settings.get("data_dir"), settings)[1], []
    except (XpcnnError, OSError) as error:
        return model, None, [f"There are no images, since the data set cannot be used: {error}"]
