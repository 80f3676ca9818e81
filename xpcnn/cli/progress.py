"""How training shows its progress: a live bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol

import click

EVERY = 10  # updates between two movements of the progress bar


class View(Protocol):
    """How progress is shown."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...

    def say(self, text: str) -> None:
        """Print a line."""

    def move(self, epoch: int, images: int) -> None:
        """Show that so many images of an epoch are done."""


def view(quiet: bool, epochs: int, images: int) -> View:
    """Return the view that fits standard output."""
    return (Silent if quiet else Bar if sys.stdout and sys.stdout.isatty() else Lines)(epochs, images)


class Lines:
    """Plain lines, for files and pipes."""

    def __init__(self, epochs: int, images: int) -> None:
        pass

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Print a line."""
        try:
            click.echo(text)  # which flushes
        except BrokenPipeError:  # the reader went away (`| head`), but the training shall go on
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def move(self, epoch: int, images: int) -> None:
        """Show nothing."""


class Silent(Lines):
    """Nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""


class Bar:
    """A live progress bar, for terminals."""

    def __init__(self, epochs: int, images: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, transient=True, refresh_per_second=5)
        self._images, self._epochs, self._count = images, epochs, 0
        self._task = self._progress.add_task("measuring the untrained network", total=epochs * images)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def move(self, epoch: int, images: int) -> None:
        """Move the bar."""
        self._count += 1
        if images == self._images or self._count % EVERY == 0:
            text = "measuring accuracy" if images == self._images else f"epoch {epoch}/{self._epochs}"
            self._progress.update(self._task, completed=(epoch - 1) * self._images + images, description=text)
