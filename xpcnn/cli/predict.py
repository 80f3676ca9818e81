"""``xpcnn predict``."""

from __future__ import annotations

import json
from typing import Any

import click
import numpy as np

from xpcnn.cli.common import device_option, fail, open_for_use, precision_option, threads_option
from xpcnn.data import read_picture
from xpcnn.data.picture import POLARITIES
from xpcnn.errors import DataError, XpcnnError


@click.command("predict")
@click.argument("run", type=click.Path())
@click.argument("pictures", metavar="IMAGE...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--polarity", type=click.Choice(POLARITIES), default="auto", show_default=True,
    help="auto inverts pictures whose edge is brighter than mid-grey: MNIST is light on black.",
)  # fmt: skip
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes to print.")
@device_option
@precision_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def predict_command(
    run: str, pictures: tuple[str, ...], polarity: str, top: int, device: str, precision: str, as_json: bool
) -> int:
    """Classify pictures of any size with RUN (a run's directory or a model file).

    PNG, JPEG, BMP, GIF and WebP are read. A picture is made grey if the model is, inverted if it is dark ink on a
    light ground, and brought to the model's size: for MNIST, cropped to its ink and centred as MNIST's digits are.
    """
    model, _ = open_for_use(run, device, precision)
    if len(model.input_shape) != 3 or len(model.output_shape) != 1:
        raise XpcnnError(
            f"predict needs a model from images to classes, not {model.input_shape} to {model.output_shape}."
        )
    if model.classes and len(model.classes) != model.output_shape[0]:
        raise XpcnnError(
            f"{run} names {len(model.classes)} classes, but its model has {model.output_shape[0]} outputs."
        )
    images, names, faults = [], [], []
    for path in pictures:
        try:
            image = read_picture(path, model.input_shape, polarity=polarity, center=model.dataset == "mnist")
        except DataError as error:
            faults.append(str(error))
        else:
            images.append(image)
            names.append(path)
    results = _classify(model, names, np.stack(images), top) if images else []
    if as_json:
        click.echo(json.dumps(results))
    else:
        width = max(map(len, names), default=0)
        for result in results:
            best = "   ".join(f"{p['class']} {100 * p['probability']:6.2f} %" for p in result["predictions"])
            click.echo(f"{result['image']:<{width}}   {best}")
    for fault in faults:
        fail(fault)
    return 2 if faults else 0


def _classify(model: Any, names: list[str], images: np.ndarray[Any, Any], top: int) -> list[dict[str, Any]]:
    """Return each picture's most probable classes."""
    logits = model.predict(images).astype(np.float64)
    if not np.isfinite(logits).all():
        raise XpcnnError("the model's outputs are not numbers; its parameters are damaged.")
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    classes = model.classes or tuple(map(str, range(logits.shape[1])))
    results = []
    for name, row in zip(names, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")[:top]
        found = [{"class": classes[i], "probability": float(row[i])} for i in order]
        results.append({"image": name, "predictions": found})
    return results
