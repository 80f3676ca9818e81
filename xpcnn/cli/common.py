"""What the commands share: options, and opening a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from xpcnn import models
from xpcnn.backend import NAMES, resolve_backend
from xpcnn.cli import team
from xpcnn.data import Source, load_dataset
from xpcnn.errors import XpcnnError
from xpcnn.kernels import threads
from xpcnn.layers.precision import PRECISIONS
from xpcnn.model import Model

MODELS = [name.replace("_", "-") for name in models.__all__]
Command = Callable[..., Any]


def device_option(command: Command) -> Command:
    """Add ``--device``."""
    text = f"Where to compute: {', '.join(NAMES)}. auto takes CUDA if it works, else the CPU."
    return click.option("--device", default="auto", show_default=True, metavar="NAME", help=text)(command)


def data_dir_option(command: Command) -> Command:
    """Add ``--data-dir``."""
    text = "Directory with the data set's files; MNIST ships with xpcnn."
    return click.option("--data-dir", type=click.Path(), help=text)(command)


def threads_option(command: Command) -> Command:
    """Add ``--threads``, which holds while the command runs; without it the environment is followed."""

    def follow(context: click.Context, _: click.Parameter, number: int | None) -> None:
        if number is None:
            threads.thread_count()  # raises what is wrong with the environment's before anything is done
        else:
            context.with_resource(threads.limited_to(number))

    text = f"CPU threads to use.  [default: {threads.VARIABLE}, else as many as there are cores to run on]"
    kind = click.IntRange(1, threads.MOST)
    return click.option("--threads", type=kind, metavar="N", callback=follow, expose_value=False, help=text)(command)


def precision_option(command: Command) -> Command:
    """Add ``--precision``."""
    text = "What to compute in; weights and losses are float32. tf32 needs CUDA; bf16 CUDA or --device torch."
    kind = click.Choice(PRECISIONS)
    return click.option("--precision", type=kind, default="float32", show_default=True, help=text)(command)


def fail(sentence: str) -> int:
    """Say what is wrong, in one line, and return 2."""
    return team.speak(f"xpcnn: error: {printable(' '.join(sentence.split()))}", 2)


def printable(text: str) -> str:
    """Return a text, such as a file's or a class's name, without what a terminal would obey or could not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_for_use(run: str, device: str, precision: str = "float32") -> tuple[Model, dict[str, Any]]:
    """Return a run's model and settings; how ``auto`` decided goes to standard error."""
    from xpcnn.training.run import open_run

    backend = resolve_backend(device)
    model, settings = open_run(run, backend, precision=precision)
    if device == "auto":
        click.echo(f"{backend.reason}.", err=True)
    return model, settings


def load_for(
    model: Model, name: str, data_dir: str | None, settings: Mapping[str, Any] | None = None
) -> tuple[Source, Source]:
    """Return a data set's two parts, or raise if the model cannot take its images or tell its classes.

    A run's settings say how its own data set is read and divided, also where it lies elsewhere now; a folder's images
    are brought to the model's size.
    """
    from xpcnn.training.settings import reading

    height, width = model.input_shape[1:] if len(model.input_shape) == 3 else (None, None)
    kinds = [text.partition(":")[0] for text in (name, (settings or {}).get("dataset", ""))]
    options = reading(settings) if settings and kinds[0] == kinds[1] else {}
    if name.startswith("folder:"):
        options |= {"image_size": (height, width), "channels": model.input_shape[0]}
    train, test = load_dataset(name, data_dir, **options)
    if train.image_shape != model.input_shape:
        raise XpcnnError(f"the model takes images {model.input_shape}, but {name} has {train.image_shape}.")
    if model.output_shape != (len(train.classes),):
        raise XpcnnError(f"the model has {model.output_shape} outputs, but {name} has {len(train.classes)} classes.")
    if model.classes and train.classes != model.classes:
        raise XpcnnError(
            f"the model's classes are not those of {name}: {_first_difference(model.classes, train.classes)}."
        )
    return train, test


def _first_difference(own: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Return where two lists of as many names differ."""
    number = next(i for i, (a, b) in enumerate(zip(own, others, strict=True)) if a != b)
    return f"number {number} is {own[number]!r} and {others[number]!r}"
