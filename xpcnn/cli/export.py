"""``xpcnn export``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from xpcnn.cli.common import open_for_use, printable, threads_option

if TYPE_CHECKING:
    from xpcnn.data.normalise import Normalise


@click.command("export")
@click.argument("run", type=click.Path())
@click.argument("file", metavar="FILE.onnx", type=click.Path())
@click.option("--opset", type=int, metavar="N", help="Of ONNX's operators.  [default: the lowest with all, 17 or more]")
@click.option("--normalise", is_flag=True, help="Let the file take uint8 images and normalise them as in training.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare outputs before the file is written.")
@threads_option
def export_command(run: str, file: str, opset: int | None, normalise: bool, check: bool) -> None:
    """Write the model of RUN (a run's directory or a model file) as ONNX; an older file is replaced.

    ONNX's reference evaluator and, where it is installed, onnxruntime are given a few random images. If their outputs
    are not the model's, nothing is written; else how far they differ is kept beside the file, in FILE.onnx.json.
    """
    model, _ = open_for_use(run, "cpu")
    facts = model.to_onnx(file, opset=opset, normalise=normalise, check=check)
    for line in _lines(facts, None if normalise else model.normalise):
        click.echo(line)
    click.echo(f"written to {printable(file)}; what was measured to {printable(file)}.json")


def _lines(facts: dict[str, Any], first: Normalise | None) -> Iterator[str]:
    """Yield what the file is, what it takes and how far its outputs are from the model's."""
    nodes = sum(facts["nodes"].values())
    yield f"opset {facts['opset']}, IR version {facts['ir_version']}, {nodes} nodes, {facts['bytes']:,} bytes"
    for verb, tensor in (("takes", facts["input"]), ("returns", facts["output"])):
        yield f"{verb} {tensor['name']} ({', '.join(map(str, tensor['shape']))}) {tensor['dtype']}"
    if first is not None:
        yield f"images are to be normalised first: (pixel / 255 - {first.mean:g}) / {first.std:g}"
    if "compared" in facts:
        yield "its outputs were not compared with the model's"
    for key, name in (("reference", "ONNX's reference evaluator"), ("onnxruntime", "onnxruntime")):
        found = facts.get(key, {})
        if "left_out" in found:
            yield f"{name} was left out: {printable(found['left_out'])}"
        elif found:
            share = f"{found['relative']:.1e} of the largest output"
            yield f"{name} differs by at most {found['absolute']:.1e}, {share}, in {facts['images']} images"
