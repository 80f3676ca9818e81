"""Several ranks on the command line: rank 0 speaks for all, and what ends one ends all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from xpcnn.parallel import check_alike, launched, world

if TYPE_CHECKING:
    from xpcnn.parallel.watch import Watch

PARALLEL = ("train", "predict")  # the commands that several ranks can share
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")  # how launchers tell a process which one it is
WORDS = {*PARALLEL, "--resume", "--help", "-h", "--version"}  # that say what ranks do together
FIRST = 0.3  # seconds that rank 0 has to say what all would say

_watch: Watch | None = None


def join(arguments: Sequence[str]) -> None:
    """Connect this process with those that a launcher started together with it; but for rank 0, they print nothing.

    Raises
    ------
    XpcnnError
        When they were given different commands, which would wait for each other.
    """
    global _watch
    if launched() == 1:
        return
    if any(os.environ.get(name, "0") != "0" for name in RANKS):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process
    from xpcnn.parallel.watch import Watch

    _watch = Watch(world())
    _watch.start()
    check_alike(world(), {"commands": " ".join(sorted(word for word in arguments if word in WORDS))})


def check(command: str) -> None:
    """Raise a usage error for a command that several ranks cannot share."""
    if launched() > 1 and command not in PARALLEL:
        raise click.UsageError(f"{command} runs in one process; several can {' or '.join(PARALLEL)}.")


def advise(text: str) -> None:
    """Set what is said when a rank has died."""
    if _watch is not None:
        _watch.advice = text


def leave() -> None:
    """End in order."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None


def speak(sentence: str, status: int) -> int:
    """Say on standard error why it ends, and return the status; of several ranks one says it, and all end at once."""
    if _watch is not None:
        _end(_watch, sentence, status)
    click.echo(sentence, err=True)
    return status


def _end(watch: Watch, sentence: str, status: int) -> NoReturn:
    """End all ranks; what goes wrong on all is left to rank 0 to say."""
    if world().rank:
        time.sleep(FIRST)
    watch.fail(sentence, status)
