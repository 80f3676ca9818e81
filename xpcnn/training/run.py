"""A run's directory: configuration, metrics, the best model so far."""

from __future__ import annotations

import json
import platform
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import xpcnn
from xpcnn.backend import Backend, device_name
from xpcnn.errors import DataError, XpcnnError
from xpcnn.files import write_whole
from xpcnn.kernels.threads import thread_count
from xpcnn.model import Model
from xpcnn.training.trainer import Epoch

CONFIG, METRICS, MODEL, CURVES = "config.toml", "metrics.jsonl", "model.safetensors", "curves.png"


class Run:
    """Records a training run in a directory of its own.

    Attributes
    ----------
    path : Path
        The directory.
    best : Epoch or None
        The epoch with the highest test accuracy (the training accuracy without a test set), whose model is kept.
    """

    def __init__(self, path: Path, model: Model) -> None:
        self.path = path
        self.model = model
        self.losses: list[float] = []
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None

    @classmethod
    def create(cls, path: str | Path | None, settings: Mapping[str, Any], model: Model) -> Run:
        """Make the directory (``runs/<time>-<model>-<dataset>`` if not given) and write the configuration.

        Raises
        ------
        XpcnnError
            When the directory holds something already.
        """
        if path is None:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            directory = _fresh(Path("runs") / f"{stamp}-{settings['model']}-{settings['dataset']}")
        else:
            directory = Path(path)
            if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
                raise XpcnnError(f"{directory} exists and is not an empty directory; choose another --out.")
            directory.mkdir(parents=True, exist_ok=True)
        config = {"train": settings, "environment": environment(model.backend)}
        write_whole(directory / CONFIG, to_toml(config).encode(errors="replace"))
        return cls(directory, model)

    def record(self, epoch: Epoch, losses: Sequence[float]) -> None:
        """Append an epoch's updates and its record to the metrics, and keep the model if it is the best so far."""
        first = len(self.losses) + 1
        lines = [{"update": number, "loss": loss} for number, loss in enumerate(losses, start=first)]
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in [*lines, epoch.as_dict()])
        self.losses += losses
        self.epochs.append(epoch)
        if epoch.epoch and (self.best is None or _score(epoch) > _score(self.best)):
            self.model.save(self.path / MODEL)
            self.best = epoch

    def keep_something(self) -> None:
        """Save the model as it is, if no epoch has been completed."""
        if self.best is None:
            self.model.save(self.path / MODEL)


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
    settings: dict[str, Any] = {}
    config = directory / CONFIG
    if config.is_file():
        try:
            settings = tomllib.loads(config.read_text(encoding="utf-8"))["train"]
        except (ValueError, KeyError, RecursionError) as error:  # tomllib's and the decoder's errors are ValueErrors
            raise DataError(f"{config} is not a run's configuration ({error}).") from None
        texts = [settings.get(key, "") for key in ("dataset", "data_dir")] if isinstance(settings, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{config} is not a run's configuration ([train] has values of the wrong type).")
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


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write tables of strings, numbers and booleans as TOML; None is left out."""
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """Write one value; JSON's strings, numbers and booleans are TOML's, but for two exceptions.

    A float stays one with repr, and TOML wants DEL escaped (JSON's ASCII form has surrogates, which TOML has not).
    """
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _score(epoch: Epoch) -> float:
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
