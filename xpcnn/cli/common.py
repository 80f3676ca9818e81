"""What the commands share: options, and opening a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from xpcnn import models
from xpcnn.backend import NAMES, resolve_backend
from xpcnn.data import Dataset, load_dataset
from xpcnn.errors import XpcnnError
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


def fail(sentence: str) -> int:
    """Say what is wrong, in one line, and return 2."""
    click.echo(f"xpcnn: error: {' '.join(sentence.split())}", err=True)
    return 2


def open_for_use(run: str, device: str) -> tuple[Model, dict[str, Any]]:
    """Return a run's model and settings; how ``auto`` decided goes to standard error."""
    from xpcnn.training.run import open_run

    backend = resolve_backend(device)
    model, settings = open_run(run, backend)
    if device == "auto":
        click.echo(f"{backend.reason}.", err=True)
    return model, settings


def load_for(model: Model, name: str, data_dir: str | None) -> tuple[Dataset, Dataset]:
    """Return a data set's two parts, or raise if the model cannot take its images or tell its classes."""
    train, test = load_dataset(name, data_dir)
    if train.images.shape[1:] != model.input_shape:
        raise XpcnnError(f"the model takes images {model.input_shape}, but {name} has {train.images.shape[1:]}.")
    if model.output_shape != (len(train.classes),):
        raise XpcnnError(f"the model has {model.output_shape} outputs, but {name} has {len(train.classes)} classes.")
    return train, test
