"""``xpcnn import``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

import click

from xpcnn.cli.common import printable
from xpcnn.errors import DataError, XpcnnError
from xpcnn.files import check_writable
from xpcnn.layers import leaves
from xpcnn.model import Model


@click.command("import")
@click.argument("file", metavar="FILE.onnx", type=click.Path())
@click.option("--out", required=True, type=click.Path(), metavar="FILE.safetensors", help="The model file to write.")
@click.option("--input-shape", metavar="C,H,W", help="One image's shape, where the file leaves sizes open.")
@click.option(
    "--output", metavar="TENSOR", help="The tensor to end at, such as a backbone's.  [default: the only output]"
)
@click.option("--classes", type=click.Path(), metavar="FILE.txt", help="The classes' names, one per line.")
def import_command(file: str, out: str, input_shape: str | None, output: str | None, classes: str | None) -> None:
    """Make a trainable model of an ONNX file; what has no counterpart is listed, and nothing is written then."""
    if Path(out).exists():
        raise XpcnnError(f"{out} exists; choose another --out.")
    check_writable(out)
    model = Model.from_onnx(file, "cpu", input_shape=_shape(input_shape), output=output)
    if classes is not None:
        model.classes = _names(Path(classes), model.output_shape)
    for line in _lines(model):
        click.echo(line)
    model.save(out)
    click.echo(f"written to {printable(out)}")


def _shape(text: str | None) -> tuple[int, ...] | None:
    """Return one image's shape from its sizes, separated by commas."""
    if text is None:
        return None
    sizes = [size.strip() for size in text.replace("x", ",").split(",")]  # gradcheck's way, too
    if not all(size.isascii() and size.isdigit() and len(size) < 10 and int(size) for size in sizes):
        raise XpcnnError(f"--input-shape must be sizes such as 3,48,192, not {text!r}.")
    return tuple(map(int, sizes))


def _names(path: Path, output_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the classes' names from a file, one for each of the model's outputs."""
    if not path.is_file():
        raise DataError(f"{path} {'is a directory' if path.is_dir() else 'does not exist'}.")
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8.") from None
    if output_shape != (len(names),):
        raise XpcnnError(f"{path} names {len(names)} classes, but the model has the outputs {output_shape}.")
    return tuple(names)


def _lines(model: Model) -> Iterator[str]:
    """Yield what the model is made of, and what it takes and returns."""
    kinds = Counter(type(placed.layer).__name__ for placed in leaves(model.net, model.input_shape))
    numbers = sum(prod(array.shape) for array in model.parameters().values())
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    yield f"{sum(kinds.values())} layers ({listed}) with {numbers:,} parameters"
    yield f"takes images {model.input_shape} and returns {model.output_shape}, in {model.dtype}"
    mean, std = model.normalise.mean, model.normalise.std
    yield f"uint8 images are normalised: (pixel / 255 - {mean:g}) / {std:g}"
