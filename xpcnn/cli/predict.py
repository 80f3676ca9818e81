"""``xpcnn predict``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np

from xpcnn.cli.common import device_option, open_for_use, precision_option, printable, threads_option
from xpcnn.cli.forms import Form, Result, as_csv, as_json, as_table
from xpcnn.cli.parts import Parts, check_output
from xpcnn.cli.pictures import Faults, Host, cut, pictures, read_batches
from xpcnn.cli.sharded import Prediction, identity, predict_into
from xpcnn.data.picture import POLARITIES
from xpcnn.errors import XpcnnError
from xpcnn.model import Model
from xpcnn.parallel import Group, world
from xpcnn.report.prepared import prepared

MOST_AT_ONCE = 256  # pictures, unless asked otherwise


@click.command("predict")
@click.argument("run", type=click.Path())
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("-0", "nul", is_flag=True, help="Paths on standard input end with NUL, as `find -print0` writes them.")
@click.option(
    "--polarity", type=click.Choice(POLARITIES), default="auto", show_default=True,
    help="auto inverts pictures whose edge is brighter than mid-grey: MNIST is light on black.",
)  # fmt: skip
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes to print.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Pictures at a time.  [default: as fits]")
@click.option("--explain", type=click.Path(), metavar="DIR", help="Write Grad-CAM overlays there, a new or empty one.")
@click.option("--output", type=click.Path(), metavar="FILE", help="Write a new file, named .csv or .json; see above.")
@device_option
@precision_option
@threads_option
@click.option("--json", "as_array", is_flag=True, help="Print one JSON array.")
@click.option("--csv", "as_rows", is_flag=True, help="Print a CSV table with a header.")
def predict_command(
    run: str,
    paths: tuple[str, ...],
    nul: bool,
    polarity: str,
    top: int,
    batch_size: int | None,
    explain: str | None,
    output: str | None,
    device: str,
    precision: str,
    as_array: bool,
    as_rows: bool,
) -> int:
    """Classify pictures of any size with RUN (a run's directory or a model file).

    PATH is a picture, a folder, or - for a list of them on standard input, one a line. Of a folder, all files named
    .png, .jpg, .jpeg, .jpe, .jfif, .bmp, .gif or .webp are taken, in order of their names, then those of the folders in
    it; hidden ones are left out. Any number of pictures are done in bounded memory, and each batch is printed at once.
    Files that cannot be read are named, the others done; the exit status is 2 then.

    A picture is made ready as in training. For a model of a folder of pictures, by that data set's rule. For others it
    is made grey if the model is, inverted if it is dark ink on a light ground, and brought to the model's size: for
    MNIST, cropped to its ink and centred as MNIST's digits are.

    With --output, several processes share the work: `mpiexec -n 4 xpcnn predict RUN PATH --output FILE.csv`, or srun.
    FILE.csv.parts keeps what is done; after a kill, the same command goes on, with any number of processes.
    """
    group = world()
    form = _form(as_array, as_rows, output)
    _check_output(output, explain, group)
    model = _opened(run, device, precision, group)
    overlays = _Overlays(Path(explain), model) if explain is not None else None
    faults = Faults()
    names = pictures(paths, b"\0" if nul else b"\n", faults)
    prediction = Prediction(
        read=lambda name: prepared(name, model, polarity=polarity),
        classify=lambda names, images: _classified(model, names, images, top, overlays),
        batch_size=batch_size or min(MOST_AT_ONCE, model.images_at_once),
        top=min(top, model.output_shape[0]),
    )
    if output is None:
        _print(form, names, prediction, faults)
        return 2 if faults.count else 0
    found = group.first(list(names) if group.rank == 0 else None)
    settings = {"model": identity(model), "top": prediction.top, "polarity": polarity, "precision": precision}
    unread = predict_into(Parts(output, found, settings), form, prediction, group)
    return 2 if group.any(unread + faults.count > 0) else 0


def _form(as_array: bool, as_rows: bool, output: str | None) -> Form:
    """Return the form that is asked for, by an option or by a file's name."""
    if as_array and as_rows:
        raise XpcnnError("--json and --csv exclude each other.")
    ending = Path(output).suffix.lower() if output is not None else None
    if as_array or (ending == ".json" and not as_rows):
        return as_json
    if as_rows or ending == ".csv":
        return partial(as_csv, show=printable) if output is None and sys.stdout.isatty() else as_csv
    if output is not None:
        raise XpcnnError(f"--output must be named .csv or .json, not {output}; or add --csv or --json.")
    return as_table


def _check_output(output: str | None, explain: str | None, group: Group) -> None:
    """Raise before any work if its results could not be written."""
    if output is None:
        if group.size > 1:
            raise XpcnnError(f"{group.size} processes predict into one file; name it with --output FILE.csv.")
        return
    if explain is not None:
        raise XpcnnError("--explain and --output exclude each other; explain a few pictures in a call of their own.")
    if group.rank == 0:
        check_output(output)


def _print(form: Form, names: Iterator[str], prediction: Prediction, fault: Faults) -> None:
    """Print the predictions of files that are found meanwhile."""

    def results() -> Iterator[list[Result]]:
        for batch in read_batches(cut(names, prediction.batch_size), prediction.read):
            for text in batch.faults:
                fault(text)
            if batch.names:
                yield prediction.classify(batch.names, batch.images)

    for text in form(results(), prediction.top):
        sys.stdout.write(text)  # click.echo would take what looks like a colour out of names
        sys.stdout.flush()


def _opened(run: str, device: str, precision: str, group: Group) -> Model:
    """Return a run's model on this rank's device, or raise unless it goes from images to classes."""
    own = group.device(device)
    quiet = own == "auto" and group.rank > 0  # that there is no GPU is left to rank 0 to say
    model, _ = open_for_use(run, "cpu" if quiet else own, precision)
    if len(model.input_shape) != 3 or len(model.output_shape) != 1:
        raise XpcnnError(
            f"predict needs a model from images to classes, not {model.input_shape} to {model.output_shape}."
        )
    if model.classes and len(model.classes) != model.output_shape[0]:
        raise XpcnnError(
            f"{run} names {len(model.classes)} classes, but its model has {model.output_shape[0]} outputs."
        )
    return model


def _classified(model: Model, names: list[str], images: Host, top: int, overlays: _Overlays | None) -> list[Result]:
    """Return each picture's most probable classes."""
    logits = model.predict(images).astype(np.float64)
    if not np.isfinite(logits).all():
        raise XpcnnError("the model's outputs are not numbers; its parameters are damaged.")
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    classes = model.classes or tuple(map(str, range(logits.shape[1])))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    results: list[Result] = []
    for name, row, order in zip(names, probabilities, best, strict=True):
        found = [{"class": classes[i], "probability": float(row[i])} for i in order]
        results.append({"image": name, "predictions": found})
    if overlays is not None:
        for result, path in zip(results, overlays.write(names, images, best[:, 0]), strict=True):
            result["explanation"] = path
    return results


class _Overlays:
    """Writes what the most probable class rests on into a folder, where nothing is ever overwritten."""

    def __init__(self, directory: Path, model: Model) -> None:
        from xpcnn.report.attribution import explained_layer

        explained_layer(model)  # raises before anything is made
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise XpcnnError(f"{directory} exists and is not an empty directory; choose another one for --explain.")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.model = directory, model
        self.used: dict[str, int] = {}  # how many overlays there are of pictures of a name

    def write(self, names: Sequence[str], images: Host, classes: Host) -> Iterator[str]:
        """Write the overlays of a batch as seen by the model, and yield their paths."""
        from xpcnn.report.attribution import draw_overlay, grad_cam

        for name, image, heat in zip(names, images, grad_cam(self.model, images, classes), strict=True):
            yield self._save(name, draw_overlay(image, heat))

    def _save(self, name: str, png: bytes) -> str:
        """Write a file named after a picture, with a number if there is one already."""
        stem = os.fsencode(Path(name).stem)[:200].decode(errors="ignore") or "picture"  # short enough to be a name
        while True:
            number = self.used[stem] = self.used.get(stem, 0) + 1
            path = self.directory / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
            try:
                with open(path, "xb") as file:
                    file.write(png)
            except FileExistsError:
                continue
            return str(path)
