"""All that training goes on from, in one file: written whole, and read only if it is what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import xpcnn
from xpcnn.backend import Array, Backend
from xpcnn.errors import DataError, NotFiniteError, XpcnnError
from xpcnn.layers import to_config
from xpcnn.layers.base import Arrays
from xpcnn.layers.stored import check_shapes, read, write

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

KIND = "checkpoint"
POSITION = ("steps", "epoch", "batch")
WEIGHTS = ("parameters/", "state/")  # how the names of arrays begin that predictions are made with


@dataclass
class Progress:
    """Where training stands: in which epoch, after how many of its batches, and what their losses were."""

    epoch: int = 0
    batch: int = 0
    losses: list[Any] = field(default_factory=list)  # numbers, and after them arrays on the device

    def read(self, backend: Backend) -> list[float]:
        """Return the losses as numbers."""
        known = [loss for loss in self.losses if isinstance(loss, float)]
        rest = self.losses[len(known) :]
        if rest:
            with backend.context():
                known += [float(loss) for loss in backend.to_numpy(backend.xp.stack(rest))]
        return known


def save(trainer: Trainer, path: str | Path, extra: Mapping[str, Any]) -> None:
    """Write a trainer's weights, state, moments, averages and position, and what else the caller must know again."""
    progress = trainer.progress
    losses = progress.read(trainer.model.backend)
    if not np.isfinite(losses).all():
        raise NotFiniteError("the loss is no longer a number, so there is nothing worth a checkpoint.")
    to_numpy = trainer.model.backend.to_numpy
    arrays = {name: to_numpy(array) for name, array in named(trainer).items()}
    if wrong := [name for name, array in arrays.items() if name.startswith(WEIGHTS) and not np.isfinite(array).all()]:
        raise NotFiniteError(f"{wrong[0]} is no longer finite, so there is nothing worth a checkpoint.")
    arrays["losses"] = np.asarray(losses, np.float64)
    description = {
        "kind": KIND,
        "xpcnn": xpcnn.__version__,
        "network": to_config(trainer.model.net),
        "optimizer": trainer.optimizer.name,
        "dtype": trainer.model.dtype,
        "seed": trainer.model.seed,
        "ema": trainer.ema,
        "steps": trainer.steps,
        "epoch": progress.epoch,
        "batch": progress.batch,
        "extra": dict(extra),
    }
    write(path, description, arrays)


def peek(path: str | Path) -> dict[str, Any]:
    """Return what else `save` was given, without reading any array.

    Raises
    ------
    DataError
        When the file is missing, not whole, or not a checkpoint.
    """
    extra: dict[str, Any] = _described(Path(path))[0]["extra"]
    return extra


def restore(trainer: Trainer, path: str | Path) -> dict[str, Any]:
    """Let a trainer go on from where another one was saved, on whatever device, and return what else was saved.

    Raises
    ------
    DataError
        When the file is missing, not whole, or not a checkpoint.
    XpcnnError
        When it is of another network, optimizer, seed or type of numbers.
    """
    description, shapes, arrays = _described(Path(path))
    model = trainer.model
    own = {
        "network": to_config(model.net), "optimizer": trainer.optimizer.name, "dtype": model.dtype, "seed": model.seed,
        "ema": trainer.ema,
    }  # fmt: skip
    for name, value in own.items():
        if description[name] != value:
            end = "." if name == "network" else f": {description[name]!r}, not {value!r}."
            raise XpcnnError(f"{path} is of another {name}{end}")
    held = named(trainer)
    shapes = dict(shapes)
    losses = shapes.pop("losses", (0,))
    check_shapes({name: _Shaped(tuple(array.shape)) for name, array in held.items()}, shapes)  # type: ignore[misc]
    if len(losses) != 1 or losses[0] != description["batch"]:
        raise DataError(f"{path} is damaged: it has {losses} losses of {description['batch']} batches.")
    found = arrays()
    give(trainer, {name: model.backend.asarray(found[name], str(np.dtype(found[name].dtype))) for name in held})
    go_to(trainer, description | {"losses": found["losses"].tolist(), "restored": True})
    extra: dict[str, Any] = description["extra"]
    return extra


def named(trainer: Trainer) -> dict[str, Array]:
    """Return every array of a trainer by a name that says what it is."""
    params, state = trainer.weights()
    parts: dict[str, Arrays] = {"parameters": params, "state": state}
    parts |= {f"moments/{moment}": arrays for moment, arrays in trainer.opt_state.items()}
    if trainer.average is not None:
        parts["average"] = trainer.average
    return {f"{part}/{path}": array for part, arrays in parts.items() for path, array in arrays.items()}


def position(trainer: Trainer) -> dict[str, Any]:
    """Return where a trainer stands, as plain values."""
    progress = trainer.progress
    losses = progress.read(trainer.model.backend)
    where = {"steps": trainer.steps, "epoch": progress.epoch, "batch": progress.batch}
    return where | {"losses": losses, "restored": trainer.restored}


def go_to(trainer: Trainer, where: Mapping[str, Any]) -> None:
    """Let a trainer stand where another one stood."""
    trainer.steps, trainer.restored = where["steps"], where["restored"]
    trainer.progress = Progress(where["epoch"], where["batch"], list(where["losses"]))


def give(trainer: Trainer, arrays: dict[str, Array]) -> None:
    """Put arrays back where `named` took them from."""

    def part(name: str, like: Arrays) -> Arrays:
        return {path: arrays[f"{name}/{path}"] for path in like}

    trainer.take_back()
    params, state = trainer.weights()
    trainer.model.replace_arrays(part("parameters", params), part("state", state))
    trainer.opt_state = {moment: part(f"moments/{moment}", like) for moment, like in trainer.opt_state.items()}
    if trainer.average is not None:
        trainer.average = part("average", trainer.average)


def _described(path: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return a checkpoint's description, the shapes of its arrays and the function that reads them."""
    description, shapes, arrays = read(path)
    whole = all(type(description.get(name)) is int and description[name] >= 0 for name in POSITION)
    whole = whole and isinstance(description.get("extra"), dict) and isinstance(description.get("arrays"), str)
    if description.get("kind") != KIND or not whole:
        raise DataError(f"{path} is not a checkpoint of xpcnn.")
    return description, shapes, arrays


@dataclass(frozen=True)
class _Shaped:
    """What `check_shapes` looks at."""

    shape: tuple[int, ...]
