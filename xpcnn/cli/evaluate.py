"""``xpcnn evaluate``."""

from __future__ import annotations

import json
import math

import click

from xpcnn.cli.common import (
    data_dir_option,
    device_option,
    load_for,
    open_for_use,
    precision_option,
    threads_option,
)
from xpcnn.data.dataset import CLASSES
from xpcnn.errors import XpcnnError


@click.command("evaluate")
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--dataset", type=click.Choice(list(CLASSES)), help="[default: the one the run was trained on]")
@data_dir_option
@device_option
@precision_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate_command(
    run: str, split: str, dataset: str | None, data_dir: str | None, device: str, precision: str, as_json: bool
) -> None:
    """Measure RUN (a run's directory or a model file) on its data set."""
    from xpcnn.training import evaluate

    model, settings = open_for_use(run, device, precision)
    name = dataset or model.dataset
    if not name:
        raise XpcnnError(f"{run} does not say what it was trained on; name it with --dataset.")
    if name == settings.get("dataset"):
        data_dir = data_dir or settings.get("data_dir")
    data = load_for(model, name, data_dir)[split == "test"]
    accuracy, loss = evaluate(model, data)
    if not math.isfinite(loss):
        raise XpcnnError("the model's loss is not a number; its parameters are damaged.")
    if as_json:
        result = {"dataset": name, "split": split, "images": len(data), "accuracy": accuracy, "loss": loss}
        click.echo(json.dumps(result))
    else:
        click.echo(f"{name}, {split} set: {100 * accuracy:.2f} % of {len(data):,} images right, loss {loss:.5f}")
