"""From settings to what they describe: data, model, optimizer, loss, trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpcnn import models, ops, optim
from xpcnn.backend import Backend
from xpcnn.data import Loader, Source, load_dataset
from xpcnn.data.normalise import Normalise
from xpcnn.errors import DataError, XpcnnError
from xpcnn.kernels import native
from xpcnn.model import Model
from xpcnn.parallel import Group
from xpcnn.training.settings import Settings, nearest, reading
from xpcnn.training.shared import versions
from xpcnn.training.tiling import Loss
from xpcnn.training.trainer import Trainer

USUAL: dict[str, dict[str, Any]] = {  # what an optimizer is given unless something else is set
    "adagrad": {"lr": 0.06},
    "adam": {"lr": 0.001},
    "adamw": {"lr": 0.001},
    "muon": {"lr": 0.02},
    "rmsprop": {"lr": 0.001},
    "sgd": {"lr": 0.05, "momentum": 0.9},
}
OPTIONS = ("momentum", "nesterov", "weight_decay", "beta1", "beta2", "eps")  # settings that are an optimizer's own
AT_ONCE = 1000  # images that statistics are taken of at a time


class Job(NamedTuple):
    """What a run's settings describe."""

    settings: Settings
    train: Source
    test: Source
    trainer: Trainer
    schedule: Callable[[int], float]


def build(settings: Settings, backend: Backend, progress: Any = None, group: Group | None = None) -> Job:
    """Load the data and make the model and its trainer, alone or as one of a group.

    Raises
    ------
    XpcnnError
        When settings do not fit together, the data, or the device.
    """
    train, test = load(settings, progress)
    model = Model(
        getattr(models, settings.model.replace("-", "_"))(train.image_shape, len(train.classes)),
        backend,
        settings.seed,
        dtype=settings.dtype,
        normalise=standard(train) if settings.normalise == "standard" else None,
        classes=train.classes,
        dataset=settings.dataset,
        precision=settings.precision,
        conv_engine=settings.conv_engine,
    )
    loader = Loader(train, settings.batch_size, augment=settings.augment, drop_last=settings.drop_last)  # or raise
    schedule = schedule_of(settings, len(loader))
    trainer = Trainer(
        model,
        optimizer_of(settings, schedule),
        loss_of(settings, train, model),
        max_memory=settings.max_memory,
        capture=settings.capture,
        ema=settings.ema,
        group=group,
        sync_batchnorm=settings.sync_batchnorm,
    )
    return Job(settings, train, test, trainer, schedule)


def load(settings: Settings, progress: Any = None) -> tuple[Source, Source]:
    """Return the training and the test part of the settings' data set."""
    return load_dataset(settings.dataset, settings.data_dir, progress=progress, **reading(settings.tables()["train"]))


def schedule_of(settings: Settings, steps: int) -> Callable[[int], float]:
    """Return the learning rate by update, for epochs of so many steps."""
    lr = usual(settings)["lr"]
    total = steps * settings.epochs
    rise = round(min(settings.warmup or 0.0, settings.epochs) * steps)
    if rise >= total:
        raise XpcnnError(
            f"warmup must be shorter than the training of {settings.epochs} epochs, not {settings.warmup:g}."
        )
    if settings.schedule == "one-cycle":
        share = 0.3 if settings.warmup is None else rise / total
        return optim.one_cycle(lr, total, warmup=share, final=settings.final_lr)
    if settings.schedule == "cosine":
        chosen = optim.cosine(lr, total, settings.final_lr)
    elif settings.schedule == "step":
        every = round(min(settings.step_epochs, settings.epochs) * steps)
        chosen = optim.step_decay(lr, max(1, every), settings.step_factor)
    else:
        chosen = optim.constant(lr)
    return optim.warmup(chosen, rise) if rise else chosen


def optimizer_of(settings: Settings, schedule: Callable[[int], float]) -> optim.Optimizer:
    """Return the optimizer; a setting that it has not is an error."""
    make = optim.OPTIMIZERS[settings.optimizer]
    known = inspect.signature(make).parameters
    given = {name: getattr(settings, name) for name in OPTIONS if getattr(settings, name) is not None}
    if wrong := [name for name in given if name not in known]:
        own = [name for name in OPTIONS if name in known]
        raise XpcnnError(f"{settings.optimizer} has no {wrong[0]}; it has {', '.join(['lr', *own])}.")
    options = {name: value for name, value in usual(settings).items() if name != "lr"} | given
    optimizer = make(schedule, **options)
    return optimizer if settings.clip_norm is None else optim.clip_by_norm(optimizer, settings.clip_norm)


def resolved(settings: Settings) -> Settings:
    """Return settings that say what the optimizer is given where nothing was set."""
    left = {name: value for name, value in USUAL[settings.optimizer].items() if getattr(settings, name) is None}
    return replace(settings, **left)


def usual(settings: Settings) -> dict[str, Any]:
    """Return the optimizer's usual options, with the learning rate that was set."""
    return USUAL[settings.optimizer] | ({} if settings.lr is None else {"lr": settings.lr})


def loss_of(settings: Settings, train: Source, model: Model) -> str | Loss:
    """Return the loss."""
    options: dict[str, Any] = {}
    if settings.label_smoothing:
        options["label_smoothing"] = settings.label_smoothing
    if settings.class_weights == "balanced":
        counts = np.bincount(train.labels, minlength=len(train.classes))
        if not counts.all():
            raise XpcnnError(
                f"class_weights balanced needs images of every class, but {train.classes[counts.argmin()]} has none."
            )
        options["class_weights"] = model.backend.asarray(len(train) / (len(counts) * counts), model.dtype)
    if not options:
        return "softmax_cross_entropy"
    return partial(ops.softmax_cross_entropy, **options), ops.softmax_cross_entropy_backward


def standard(train: Source) -> Normalise:
    """Return the normalisation that gives a training set's pixels, of all channels, mean 0 and standard deviation 1."""
    count, total, squares = 0, 0, 0
    for start in range(0, len(train), AT_ONCE):
        pixels = train.read(np.arange(start, min(start + AT_ONCE, len(train)))).astype(np.int64)
        count, total, squares = count + pixels.size, total + int(pixels.sum()), squares + int((pixels * pixels).sum())
    mean = total / count
    deviation = max(squares / count - mean * mean, 0.0) ** 0.5
    return Normalise(mean / 255, (deviation or 255.0) / 255)


def facts(job: Job, settings: Settings, but: Sequence[str]) -> dict[str, str]:
    """Return what must be the same where processes train together: versions, devices and settings, ``but`` for some."""
    backend, tables = job.trainer.model.backend, settings.tables()
    kernels = native.description() if backend.name == "numpy" else ""
    own = {name: value for name, value in tables["train"].items() if name not in but}
    return {"versions": versions(), "devices": f"{backend.name} {kernels}", "settings": str((own, tables["augment"]))}


def read_tables(path: str | Path) -> dict[str, Any]:
    """Return a configuration file's tables.

    Raises
    ------
    DataError
        When the file is missing or not TOML.
    """
    import tomllib

    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no configuration file {path}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # tomllib's and the decoder's errors are ValueErrors
        raise DataError(f"{path} is not a configuration file ({error}).") from None


def recipes() -> dict[str, Any]:
    """Return the recipes that ship with the package: name -> file."""
    files = resources.files("xpcnn").joinpath("recipes").iterdir()
    return {
        file.name.removesuffix(".toml"): file
        for file in sorted(files, key=lambda f: f.name)
        if file.name.endswith(".toml")
    }


def recipe_tables(name: str) -> dict[str, Any]:
    """Return a recipe's tables."""
    found = recipes()
    if name not in found:
        raise XpcnnError(f"there is no recipe {name}; there are {', '.join(found)}{nearest(name, found)}")
    return read_tables(found[name])
