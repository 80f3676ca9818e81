"""``xpcnn predict``."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from xpcnn.cli.common import device_option, fail, open_for_use, precision_option, printable, threads_option
from xpcnn.data.listing import SUFFIXES
from xpcnn.data.picture import POLARITIES
from xpcnn.errors import DataError, XpcnnError
from xpcnn.kernels.threads import thread_count
from xpcnn.model import Model
from xpcnn.report.prepared import prepared

Host = np.ndarray[Any, Any]
Result = dict[str, Any]  # "image", "predictions" (each "class", "probability"), and "explanation" with --explain
Form = Callable[
    [Iterable[list[Result]], int], Iterator[str]
]  # batches of results and how many classes of each, to text

MOST_AT_ONCE = 256  # pictures, unless asked otherwise
LONGEST = 1 << 16  # bytes of a path on standard input


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
@device_option
@precision_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a CSV table with a header.")
def predict_command(
    run: str,
    paths: tuple[str, ...],
    nul: bool,
    polarity: str,
    top: int,
    batch_size: int | None,
    explain: str | None,
    device: str,
    precision: str,
    as_json: bool,
    as_csv: bool,
) -> int:
    """Classify pictures of any size with RUN (a run's directory or a model file).

    PATH is a picture, a folder, or - for a list of them on standard input, one a line. Of a folder, all files named
    .png, .jpg, .jpeg, .jpe, .jfif, .bmp, .gif or .webp are taken, in order of their names, then those of the folders in
    it; hidden ones are left out. Any number of pictures are done in bounded memory, and each batch is printed at once.
    Files that cannot be read are named, the others done; the exit status is 2 then.

    A picture is made ready as in training. For a model of a folder of pictures, by that data set's rule. For others it
    is made grey if the model is, inverted if it is dark ink on a light ground, and brought to the model's size: for
    MNIST, cropped to its ink and centred as MNIST's digits are.
    """
    if as_json and as_csv:
        raise XpcnnError("--json and --csv exclude each other.")
    model, _ = open_for_use(run, device, precision)
    _check(model, run)
    overlays = _Overlays(Path(explain), model) if explain is not None else None
    faults = _Faults()
    names = _pictures(paths, b"\0" if nul else b"\n", faults)
    size = batch_size or min(MOST_AT_ONCE, model.images_at_once)
    batches = _read(names, size, lambda name: prepared(name, model, polarity=polarity), faults)
    results = (_classified(model, *batch, top, overlays) for batch in batches)
    form: Form = _as_json if as_json else _as_csv if as_csv else _as_table
    for text in form(results, min(top, model.output_shape[0])):
        sys.stdout.write(text)  # click.echo would take what looks like a colour out of names
        sys.stdout.flush()
    return 2 if faults.count else 0


class _Faults:
    """Says what is wrong with single files at once, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, fault: str) -> None:
        self.count += 1
        fail(fault)


def _check(model: Model, run: str) -> None:
    """Raise unless a model goes from images to classes that have names or none."""
    if len(model.input_shape) != 3 or len(model.output_shape) != 1:
        raise XpcnnError(
            f"predict needs a model from images to classes, not {model.input_shape} to {model.output_shape}."
        )
    if model.classes and len(model.classes) != model.output_shape[0]:
        raise XpcnnError(
            f"{run} names {len(model.classes)} classes, but its model has {model.output_shape[0]} outputs."
        )


def _pictures(paths: Iterable[str], end: bytes, fault: _Faults) -> Iterator[str]:
    """Yield the files to classify, found as they are asked for."""
    for path in paths:
        if path == "-":
            yield from _pictures(_listed(sys.stdin.buffer if sys.stdin else io.BytesIO(), end), end, fault)
        elif os.path.isdir(path):
            yield from _within(path, fault)
        else:
            yield path


def _listed(stream: Any, end: bytes) -> Iterator[str]:
    """Yield the paths of a list, as they come; empty lines are none."""
    rest = b""
    while piece := stream.read1(LONGEST):
        *whole, rest = (rest + piece).split(end)
        if len(rest) > LONGEST:
            raise XpcnnError(f"standard input has a line of more than {LONGEST:,} bytes, which is no path.")
        yield from _decoded(whole, end)
    yield from _decoded([rest], end)


def _decoded(lines: Iterable[bytes], end: bytes) -> Iterator[str]:
    """Return lines as paths; a dash is a file here."""
    for line in lines:
        path = os.fsdecode(line if end == b"\0" else line.removesuffix(b"\r"))
        if path:
            yield f".{os.sep}-" if path == "-" else path


def _within(folder: str, fault: _Faults) -> Iterator[str]:
    """Yield a folder's pictures, sorted, and then those of the folders in it; links to folders are not followed."""
    found = False

    def unreadable(error: OSError) -> None:
        fault(f"{error.filename}: {error.strerror}.")

    for directory, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                found = True
                yield os.path.join(directory, name)
    if not found:
        fault(f"there are no pictures in {folder} (files named {', '.join(SUFFIXES)}).")


def _read(
    names: Iterator[str], size: int, read: Callable[[str], Host], fault: _Faults
) -> Iterator[tuple[list[str], Host]]:
    """Yield batches of pictures with their names, the next one being read meanwhile; what cannot be read is named."""
    with ThreadPoolExecutor(thread_count()) as pool:
        try:
            coming: list[tuple[str, Future[Host]]] = []
            more = True
            while more or coming:
                batch, coming = coming, [(name, pool.submit(read, name)) for name in islice(names, size)]
                more = bool(coming)
                good = [pair for pair in batch if not _named(pair[1].exception(), fault)]
                if good:
                    yield [name for name, _ in good], np.stack([future.result() for _, future in good])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _named(error: BaseException | None, fault: _Faults) -> bool:
    """Say what is wrong with a file; anything else is raised."""
    if isinstance(error, DataError):
        fault(str(error))
    elif error is not None:
        raise error
    return error is not None


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


def _as_table(batches: Iterable[list[Result]], _: int) -> Iterator[str]:
    """Return lines for people, aligned within each batch and never narrower than before."""
    width = 0
    for results in batches:
        names = [printable(result["image"]) for result in results]
        width = max(width, *map(len, names))
        for name, result in zip(names, results, strict=True):
            best = "   ".join(f"{printable(p['class'])} {100 * p['probability']:6.2f} %" for p in result["predictions"])
            yield f"{name:<{width}}   {best}\n"


def _as_json(batches: Iterable[list[Result]], _: int) -> Iterator[str]:
    """Return one array, a picture a line."""
    before = "["
    for results in batches:
        for result in results:
            yield f"{before}{json.dumps(result)}"
            before = ",\n "
    yield "[]\n" if before == "[" else "]\n"


def _as_csv(batches: Iterable[list[Result]], top: int) -> Iterator[str]:
    """Return a table with the columns image, class1, probability1, class2, ..., and explanation if there is one."""
    show = printable if sys.stdout.isatty() else str
    header = ["image", *(f"{word}{number}" for number in range(1, top + 1) for word in ("class", "probability"))]
    first = True
    for results in batches:
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
