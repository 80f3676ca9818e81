"""A run's directory: configuration, metrics, the best model so far, and the checkpoint to go on from."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import xpcnn
from xpcnn.backend import Backend, device_name
from xpcnn.errors import DataError, XpcnnError
from xpcnn.files import held, leftovers, write_whole
from xpcnn.kernels.threads import thread_count
from xpcnn.model import Model
from xpcnn.training import checkpoint
from xpcnn.training.fitting import Epoch
from xpcnn.training.settings import Settings, duration, from_tables, to_toml
from xpcnn.training.trainer import Trainer

CONFIG, METRICS, MODEL, CURVES, TABLE = "config.toml", "metrics.jsonl", "model.safetensors", "curves.png", "epochs.csv"
CHECKPOINT = "checkpoint.safetensors"
FILES = (CONFIG, METRICS, MODEL, CURVES, TABLE, CHECKPOINT)


class Run:
    """Records a training run in a directory of its own.

    Attributes
    ----------
    path : Path
        The directory.
    losses, epochs : list
        Every update's loss and every epoch's record.
    best : Epoch or None
        The epoch with the highest test accuracy (the training accuracy without a test set).
    waited : int
        Evaluations since then.
    threads_before, ranks_before : int or None
        CPU threads of the process that saved the checkpoint it goes on from, and how many there were of those.
    """

    def __init__(self, path: Path, settings: Settings, trainer: Trainer, data: Mapping[str, str]) -> None:
        self.path = path
        self.settings = settings
        self.trainer = trainer
        self.data = dict(data)
        self.losses: list[float] = []
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None
        self.waited = 0
        self.threads_before: int | None = None
        self.ranks_before: int | None = None
        self._every = duration("checkpoint_every", settings.checkpoint_every)
        self._saved = time.monotonic()
        self._board: Any = None
        try:
            self._handle = held(path)
        except BlockingIOError:
            raise XpcnnError(f"another process is training in {path}; wait until it ends, or end it.") from None
        for left in leftovers(path, FILES):
            left.unlink(missing_ok=True)

    @classmethod
    def create(cls, path: str | Path | None, settings: Settings, trainer: Trainer, data: Mapping[str, str]) -> Run:
        """Make the directory (``runs/<time>-<model>-<dataset>`` if not given); write configuration and a checkpoint.

        ``data`` holds the fingerprints of the data sets.

        Raises
        ------
        XpcnnError
            When the directory holds something already.
        """
        if path is None:
            name = f"{settings.model}-{settings.dataset.partition(':')[0]}"
            directory = _fresh(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}")
        else:
            directory = Path(path)
            if directory.exists() and not (directory.is_dir() and _is_empty(directory)):
                raise XpcnnError(f"{directory} exists and is not an empty directory; choose another --out.")
            directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            run = stack.enter_context(closing(cls(directory, settings, trainer, data)))
            facts = environment(trainer.model.backend) | {"ranks": trainer.group.size}
            run._configure(settings.tables() | {"environment": facts})
            run.save()
            stack.pop_all()
        return run

    @classmethod
    def resume(cls, path: str | Path, settings: Settings, trainer: Trainer, data: Mapping[str, str]) -> Run:
        """Let a trainer go on from a run's checkpoint; metrics that are younger than it are cut off.

        Raises
        ------
        XpcnnError
            When there is no whole checkpoint, or it is of other data.
        """
        with ExitStack() as stack:
            run = stack.enter_context(closing(cls(Path(path), settings, trainer, data)))
            if (run.path / CHECKPOINT).exists():
                run._go_on()
            else:  # killed before the first was written, so nothing is lost
                run.save()
            stack.pop_all()
        return run

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or patience has come to its end."""
        return self.trainer.progress.epoch > self.settings.epochs or self.is_out_of_patience

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the accuracy has not become better for as many evaluations as are waited for."""
        return self.settings.patience is not None and self.waited >= self.settings.patience

    def step(self) -> None:
        """Save a checkpoint if it is time for one."""
        if time.monotonic() - self._saved >= self._every:
            self.save()

    def save(self) -> None:
        """Save a checkpoint."""
        best = None if self.best is None else self.best.epoch
        tables = self.settings.tables()
        record = {"best": best, "waited": self.waited, "threads": thread_count()}
        record["ranks"] = self.trainer.group.size
        self.trainer.save(self.path / CHECKPOINT, settings=tables, data=self.data, **record)
        self._saved = time.monotonic()

    def record(self, epoch: Epoch, losses: Sequence[float]) -> None:
        """Add an epoch to the metrics, and keep its model if it is to be kept.

        The checkpoint is saved last: what a crash leaves half done before is done again, with the same result.
        """
        first = len(self.losses) + 1
        lines = [{"update": number, "loss": loss} for number, loss in enumerate(losses, start=first)]
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in [*lines, epoch.as_dict()])
            file.flush()
            os.fsync(file.fileno())
        self.losses += losses
        self.epochs.append(epoch)
        score = _score(epoch)
        better = score is not None and (self.best is None or score > (_score(self.best) or 0.0))
        if epoch.epoch and score is not None:
            self.waited = 0 if better else self.waited + 1
        if epoch.epoch and better:
            self.best = epoch
        if epoch.epoch and (better or self.settings.keep == "last"):
            self.trainer.model.save(self.path / MODEL)
        self._table()
        self._to_board(epoch, lines)
        self.save()

    def keep_something(self) -> None:
        """Save the model as it is, if no epoch has been completed."""
        if not (self.path / MODEL).exists():
            self.trainer.model.save(self.path / MODEL)

    def close(self) -> None:
        """Let the directory go, and write what is still to be written of TensorBoard's events."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _go_on(self) -> None:
        """Take everything up from the checkpoint."""
        trainer, extra = self.trainer, checkpoint.peek(self.path / CHECKPOINT)
        for part, text in self.data.items():
            if extra.get("data", {}).get(part) != text:
                raise XpcnnError(f"the {part} data are not those that {self.path} was trained on, so it cannot go on.")
        trainer.restore(self.path / CHECKPOINT)
        known = {one.name for one in fields(Epoch)}
        losses, records = read_metrics(self.path)
        kept = [record for record in records if record["epoch"] < trainer.progress.epoch]
        try:
            self.epochs = [Epoch(**{name: value for name, value in one.items() if name in known}) for one in kept]
        except TypeError:
            raise DataError(f"{self.path / METRICS} is damaged: it has an epoch that is not whole.") from None
        self.losses = losses[: trainer.steps - trainer.progress.batch]
        self.best = next((one for one in self.epochs if one.epoch == extra["best"]), None)
        self.waited = extra["waited"]
        self.threads_before, self.ranks_before = extra.get("threads"), extra.get("ranks")
        if len(self.epochs) != trainer.progress.epoch or len(self.losses) != trainer.steps - trainer.progress.batch:
            raise DataError(
                f"{self.path / METRICS} lacks some of the epochs before the checkpoint, so the run cannot go on."
            )
        self._rewrite()
        self._follow_the_data()

    def _follow_the_data(self) -> None:
        """Name in the configuration, if it is whole, the place where the data are now."""
        try:
            tables = read_config(self.path)
        except DataError:
            return
        now = self.settings.tables()["train"]
        places = {name: now.get(name) for name in ("dataset", "data_dir")}
        if tables and any(tables["train"].get(name) != place for name, place in places.items()):
            self._configure(tables | {"train": tables["train"] | places})

    def _configure(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the configuration."""
        write_whole(self.path / CONFIG, to_toml(tables).encode(errors="replace"))

    def _rewrite(self) -> None:
        """Write the metrics anew, as they were at the checkpoint."""
        lines: list[str] = []
        done = 0
        for epoch in self.epochs:
            count = len(self.losses) * epoch.epoch // max(1, len(self.epochs) - 1)
            updates = enumerate(self.losses[done:count], start=done + 1)
            lines += [json.dumps({"update": number, "loss": loss}) for number, loss in updates]
            lines.append(json.dumps(epoch.as_dict()))
            done = count
        write_whole(self.path / METRICS, "".join(f"{line}\n" for line in lines).encode())
        self._table()

    def _table(self) -> None:
        """Write the epochs as CSV."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [one.name for one in fields(Epoch)])
        writer.writeheader()
        writer.writerows(epoch.as_dict() for epoch in self.epochs)
        write_whole(self.path / TABLE, text.getvalue().encode())

    def _to_board(self, epoch: Epoch, updates: Sequence[Mapping[str, Any]]) -> None:
        """Write TensorBoard's events, where they are asked for."""
        if not self.settings.tensorboard:
            return
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=len(self.losses) - len(updates))
        for line in updates:
            self._board.add_scalar("loss/update", line["loss"], line["update"])
        for name, value in epoch.as_dict().items():
            if name != "epoch" and value is not None:
                self._board.add_scalar(f"epoch/{name}", value, epoch.epoch)
        self._board.flush()  # which the writer's own thread does some time later


def check_board() -> None:
    """Raise a sentence where TensorBoard's writer is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise XpcnnError("tensorboard needs `pip install 'xpcnn[tensorboard]'`.") from None


def resumable_settings(path: str | Path) -> Settings:
    """Return the settings that a run was started with: its checkpoint's or, where there is none yet, its configuration.

    Raises
    ------
    DataError
        When there is no run, or what it goes on from is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"there is no run {path} to resume.")
    if (path / CHECKPOINT).exists():
        return from_tables(checkpoint.peek(path / CHECKPOINT).get("settings", {}))
    if (path / METRICS).exists() or not (path / CONFIG).is_file():
        raise DataError(f"{path} has no {CHECKPOINT}, so there is nothing to go on from.")
    return from_tables(read_config(path))


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the tables of a run's configuration, none if it has none.

    Raises
    ------
    DataError
        When it is damaged.
    """
    config = Path(path) / CONFIG
    if not config.is_file():
        return {}
    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8"))
        settings = tables["train"]
    except (ValueError, KeyError, RecursionError) as error:  # tomllib's and the decoder's errors are ValueErrors
        raise DataError(f"{config} is not a run's configuration ({error}).") from None
    if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise DataError(f"{config} is not a run's configuration ({wrong[0]} is not a table).")
    if not all(isinstance(settings.get(key, ""), str) for key in ("dataset", "data_dir")):
        raise DataError(f"{config} is not a run's configuration ([train] has values of the wrong type).")
    return tables


def read_metrics(path: str | Path) -> tuple[list[float], list[dict[str, Any]]]:
    """Return every update's loss and every epoch's record of a run; a last line that was cut off is left out.

    Raises
    ------
    DataError
        When a line before the last is damaged.
    """
    file = Path(path) / METRICS
    losses: list[float] = []
    epochs: list[dict[str, Any]] = []
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line else {}
            if "update" in record:
                losses.append(float(record["loss"]))
            elif record:
                epochs.append(record | {"epoch": int(record["epoch"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            if number < len(lines):
                raise DataError(f"{file} is damaged in line {number}.") from None
    return losses, epochs


def open_run(path: str | Path, backend: str | Backend, *, precision: str = "float32") -> tuple[Model, dict[str, Any]]:
    """Return a run's model and its training settings, from its directory or its model file.

    The settings are empty when there is no configuration beside the model.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no run {path}.")
    directory, file = (path, path / MODEL) if path.is_dir() else (path.parent, path)
    if not file.is_file():
        raise DataError(f"{path} has no {MODEL}; name a run's directory or a model file.")
    settings = read_config(directory).get("train", {})
    return Model.load(file, backend, precision=precision), settings


def environment(backend: Backend) -> dict[str, Any]:
    """Return what a result depends on besides the settings."""
    return {
        "xpcnn": xpcnn.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "backend": backend.name,
        "backend_version": backend.version,
        "device": device_name(backend),
        "threads": thread_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _is_empty(directory: Path) -> bool:
    """Whether nothing is in a directory but what a process left that was killed while it began there."""
    return set(directory.iterdir()) <= set(leftovers(directory, FILES))


def _score(epoch: Epoch) -> float | None:
    return epoch.train_accuracy if epoch.test_accuracy is None else epoch.test_accuracy


def _fresh(path: Path) -> Path:
    """Make a directory that did not exist, numbered if need be."""
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise XpcnnError(f"{path.parent} has too many runs of this second.")
