"""Prediction into a file by one process or several, which goes on where it was killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import click

from xpcnn.cli import team
from xpcnn.cli.forms import Form, Result
from xpcnn.cli.parts import Parts
from xpcnn.cli.pictures import Host, complain, cut, read_batches
from xpcnn.data.dataset import digest
from xpcnn.errors import XpcnnError
from xpcnn.layers import to_config
from xpcnn.model import Model
from xpcnn.parallel import Group, check_alike
from xpcnn.training.shared import versions

OFTEN, SELDOM = 0.5, 10.0  # seconds between two words on progress: on a terminal, and elsewhere


@dataclass(frozen=True)
class Prediction:
    """What is done with pictures.

    Attributes
    ----------
    read : function
        Returns a file's picture (C, H, W).
    classify : function
        Returns the results of pictures' names and the pictures (N, C, H, W).
    batch_size : int
        Pictures at a time.
    top : int
        How many classes a result has.
    """

    read: Callable[[str], Host]
    classify: Callable[[list[str], Host], list[Result]]
    batch_size: int
    top: int


def predict_into(parts: Parts, form: Form, prediction: Prediction, group: Group) -> int:
    """Make what is missing of a work's parts and write the output; return how many files could not be read.

    Parameters
    ----------
    parts : Parts
        The same on every rank.
    form : Form
        From `xpcnn.cli.forms`.
    prediction : Prediction
        What is done with pictures.
    group : Group
        Who takes part. Each part is made by one rank: those that are missing are dealt like cards.

    Raises
    ------
    XpcnnError
        When ranks differ, or as `Parts` says. What was done until then is kept.
    """
    if group.size > 1:
        options = {name: value for name, value in parts.work.items() if name != "model"} | {"output": str(parts.output)}
        check_alike(group, {"versions": versions(), "models": parts.work["model"], "options": str(options)})
    with closing(parts):
        missing: list[int] = group.first(parts.begin() if group.rank == 0 else None)
        if not parts.visible():
            raise XpcnnError(f"{parts.directory} is not there on rank {group.rank}; choose an --output that all see.")
        team.advise("the same command goes on from what is done")
        _work(parts, missing[group.rank :: group.size], prediction, _Progress(parts, missing, group))
        group.any(False)  # which waits until all are done
        return int(group.first(_conclude(parts, form, prediction.top) if group.rank == 0 else None))


def _conclude(parts: Parts, form: Form, top: int) -> int:
    """Write the output, say what could not be read, and return how many files that is."""
    faults = parts.finish(form, top)
    for fault in faults:
        complain(fault)
    unread = f", of which {len(faults):,} could not be read" if faults else ""
    click.echo(f"{parts.output}: {parts.pictures:,} pictures{unread}")
    return len(faults)


def identity(model: Model) -> str:
    """Return the digest of everything that a model's results depend on."""
    host = {path: model.backend.to_numpy(array) for path, array in (model.parameters() | model.state()).items()}
    described = to_config(model.net), model.input_shape, model.dtype, model.normalise, model.classes, model.dataset
    arrays = [part for path in sorted(host) for part in (path, host[path].shape, host[path].reshape(-1))]
    return digest(*described, *arrays)


def _work(parts: Parts, numbers: Sequence[int], prediction: Prediction, progress: _Progress) -> None:
    """Make parts."""
    batches = [(number, batch) for number in numbers for batch in cut(parts.names(number), prediction.batch_size)]
    read = read_batches((batch for _, batch in batches), prediction.read)
    for number, group in groupby(zip(batches, read, strict=True), key=lambda pair: pair[0][0]):
        results: list[Result] = []
        faults: list[str] = []
        for _, batch in group:
            faults += batch.faults
            if batch.names:
                results += prediction.classify(batch.names, batch.images)
        parts.write(number, results, faults)
        progress.show()
    progress.end()


class _Progress:
    """Says on rank 0 how much all ranks have done: in place on a terminal, and now and then elsewhere."""

    def __init__(self, parts: Parts, missing: Sequence[int], group: Group) -> None:
        self._parts, self._speaks = parts, group.rank == 0 and len(missing) > 0
        self._in_place = bool(sys.stderr and sys.stderr.isatty())
        self._begun = self._shown = time.monotonic()
        self._before = parts.done() if self._speaks else 0
        if self._before:
            click.echo(f"going on: {self._before:,} of {parts.pictures:,} pictures are done.", err=True)

    def show(self) -> None:
        """Say it if it is time."""
        now = time.monotonic()
        if self._speaks and now - self._shown >= (OFTEN if self._in_place else SELDOM):
            self._shown = now
            done = self._parts.done()
            speed = (done - self._before) / (now - self._begun)
            text = f"{done:,} of {self._parts.pictures:,} pictures, {speed:,.0f} a second"
            click.echo(f"\r{text}  " if self._in_place else text, err=True, nl=not self._in_place)

    def end(self) -> None:
        """Go on to a line of its own."""
        if self._in_place and self._shown > self._begun:
            click.echo(err=True)
