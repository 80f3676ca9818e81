"""What a run's directory says about it: settings, losses, epochs. Anything may be missing or cut off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpcnn.errors import DataError
from xpcnn.training.run import CONFIG, METRICS, MODEL, read_config, read_metrics

LARGEST = 1e300


@dataclass(frozen=True)
class Facts:
    """A run as recorded.

    Attributes
    ----------
    path : Path
        The run's directory.
    name : str
        Its last part, which the page calls it by.
    config : dict
        Tables of settings, such as ``train`` and ``environment``.
    losses : list of float
        One per update.
    epochs : list of dict
        One record per epoch, from epoch 0, before training.
    """

    path: Path
    name: str
    config: dict[str, dict[str, Any]]
    losses: list[float]
    epochs: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """The table ``train``."""
        return self.config.get("train", {})

    def course(self, key: str) -> list[tuple[float, float]]:
        """Return (epoch, value) wherever a record has a number under a key."""
        pairs = ((number(record, "epoch"), number(record, key)) for record in self.epochs)
        return [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]

    def last(self, key: str) -> float | None:
        """Return the last recorded number under a key."""
        return self.course(key)[-1][1] if self.course(key) else None

    @property
    def done(self) -> int:
        """Epochs that were completed."""
        return max([int(epoch) for epoch, _ in self.course("epoch")], default=0)

    @property
    def planned(self) -> int | None:
        """Epochs that were asked for."""
        value = number(self.settings, "epochs")
        return None if value is None else int(value)

    @property
    def measured_by(self) -> str:
        """The accuracy that counts: the test set's or, without one, the training set's."""
        return "test_accuracy" if any(epoch for epoch, _ in self.course("test_accuracy")) else "train_accuracy"

    @property
    def best(self) -> tuple[float, float] | None:
        """The epoch with the highest accuracy, and that accuracy; of equal ones the first."""
        return max((pair for pair in self.course(self.measured_by) if pair[0]), key=lambda pair: pair[1], default=None)

    @property
    def seconds(self) -> float:
        """Time spent on all epochs, evaluation included."""
        return math.fsum(value for _, value in self.course("seconds"))


def read_facts(path: str | Path) -> Facts:
    """Read what a run recorded.

    Parameters
    ----------
    path : path
        A run's directory, or its model file.

    Raises
    ------
    DataError
        When it is no run, or its configuration is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no run {path}.")
    directory = path if path.is_dir() else path.parent
    there = [name for name in (CONFIG, METRICS, MODEL) if (directory / name).is_file()]
    if not there and path.is_dir():
        raise DataError(f"{path} is not a run's directory: it has none of {CONFIG}, {METRICS} and {MODEL}.")
    config = read_config(directory) if CONFIG in there else {}
    losses, epochs = read_metrics(directory) if METRICS in there else ([], [])
    return Facts(directory, directory.resolve().name or str(directory), config, losses, epochs)


def number(record: Mapping[str, Any], key: str) -> float | None:
    """Return what a record has under a key, if that is a number that can be drawn."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and drawable(value) else None


def drawable(value: float) -> bool:
    """Whether a number is finite and so far from infinity that the difference of two is finite, too."""
    return abs(value) <= LARGEST
