"""``xpcnn features``."""

from __future__ import annotations

import click

from xpcnn.cli.common import device_option, open_for_use
from xpcnn.data.picture import POLARITIES
from xpcnn.errors import XpcnnError
from xpcnn.files import check_writable
from xpcnn.report.prepared import prepared


@click.command("features")
@click.argument("run", type=click.Path())
@click.argument("picture", metavar="IMAGE", type=click.Path())
@click.option("--out", type=click.Path(), default="features.png", show_default=True, metavar="FILE.png")
@click.option("--layer", "layers", multiple=True, metavar="NAME", help="Again for more.  [default: all convolutions]")
@click.option("--polarity", type=click.Choice(POLARITIES), default="auto", show_default=True, help="As in predict.")
@device_option
def features_command(run: str, picture: str, out: str, layers: tuple[str, ...], polarity: str, device: str) -> None:
    """Draw the feature maps that RUN (a run's directory or a model file) makes of a picture."""
    from xpcnn.report.feature_maps import convolutions, draw_feature_maps

    check_writable(out)
    model, _ = open_for_use(run, device)
    if len(model.input_shape) != 3:
        raise XpcnnError(f"features needs a model of images (C, H, W), not of {model.input_shape}.")
    image = prepared(picture, model, polarity=polarity)
    drawn = draw_feature_maps(out, model, image, layers)
    for said in drawn:
        click.echo(said)
    convs = convolutions(model)
    if not layers and len(convs) > len(drawn):
        click.echo(f"{len(convs) - len(drawn)} more convolutions are left out; name layers with --layer.")
    click.echo(f"drawn in {out}")
