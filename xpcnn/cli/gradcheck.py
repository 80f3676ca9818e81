"""``xpcnn gradcheck``."""

from __future__ import annotations

import inspect

import click

from xpcnn import models
from xpcnn.backend import resolve_backend
from xpcnn.cli.common import MODELS, device_option
from xpcnn.errors import XpcnnError
from xpcnn.layers import Sequential
from xpcnn.verify.gradients import check_layers, gradcheck

FEW = 32  # pixels: larger images are checked at this size


@click.command("gradcheck")
@click.argument("model", type=click.Choice(MODELS))
@click.option("--input-shape", metavar="CxHxW", help="One image's shape.  [default: the model's, at most 32×32]")
@click.option("--classes", type=click.IntRange(1), default=10, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, images and directions.")
@device_option
def gradcheck_command(
    model: str, input_shape: str | None, classes: int, batch_size: int, seed: int, device: str
) -> int:
    """Compare a model's gradients, layer by layer, with central differences in float64.

    Exits with 1 if a gradient is wrong. The last line is the network as a whole.
    """
    backend = resolve_backend(device)
    build = getattr(models, model.replace("-", "_"))
    shape = _shape(input_shape) if input_shape else _usual(build)
    net: Sequential = build(shape, classes)
    net.output_shape(shape)
    click.echo(f"{model} on images {shape}, batch {batch_size}, float64, {backend.label}")
    click.echo(f"{'layer':<36}{'type':<16}{'gradient of':<14}{'error':>8}")
    wrong = 0
    reports = check_layers(net, shape, backend, seed, batch_size)
    for path, layer, report in reports:
        for check in report.checks:
            wrong += not check.ok
            click.echo(f"{path:<36}{type(layer).__name__:<16}{check}")
    whole = gradcheck(net, shape, device=backend, seed=seed, batch=batch_size, together=True)
    wrong += not whole
    click.echo(f"{'all layers together':<36}{type(net).__name__:<16}{whole}")
    click.echo(f"{wrong} gradients are wrong." if wrong else "All gradients are right.")
    return 1 if wrong else 0


def _shape(text: str) -> tuple[int, ...]:
    """Return (C, H, W) from a text such as 3x32x32."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise XpcnnError(f"--input-shape must be three numbers above 0 such as 3x32x32, not {text!r}.")
    return tuple(map(int, parts))


def _usual(build: object) -> tuple[int, ...]:
    """Return a model's own input shape, no larger than it needs to be for a check."""
    channels, *size = inspect.signature(build).parameters["input_shape"].default  # type: ignore[arg-type]
    return (channels, *(min(n, FEW) for n in size))
