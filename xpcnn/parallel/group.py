"""Processes that work together, called ranks: what they tell each other, and which part of the work is whose."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")  # as launchers tell it


class Group:
    """One process alone; what several do is `xpcnn.parallel.mpi.MPIGroup`'s.

    Attributes
    ----------
    rank, size : int
        Which of the processes this is, from 0, and how many there are.
    local_rank, local_size : int
        The same among those of this machine.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def sum(self, array: Array) -> Array:
        """Return the sum of every rank's array, all of one shape: the same bits on each of them."""
        return array

    def joined(self, array: Array, counts: list[int]) -> Array:
        """Return every rank's rows one after another, of which rank r has ``counts[r]``."""
        return array

    def gathered(self, value: Any) -> list[Any]:
        """Return every rank's value, a Python object, in the order of ranks."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether a flag is true on any rank."""
        return flag

    def abort(self, status: int) -> None:
        """End all other ranks at once; this one goes on to its end."""


def launched() -> int:
    """Return how many processes a launcher started together with this one: 1 if there was none. MPI is not loaded."""
    for name in SIZES:
        text = os.environ.get(name, "")
        if text.isdigit():
            return max(1, int(text))
    return 1


@cache
def world() -> Group:
    """Return the group of all processes that were started together, or of this one alone.

    Raises
    ------
    XpcnnError
        When there are several, but mpi4py is not installed.
    """
    if launched() == 1:
        return Group()
    try:
        from xpcnn.parallel.mpi import MPIGroup
    except ImportError as error:
        raise XpcnnError(
            f"{launched()} processes were started together, which needs `pip install 'xpcnn[mpi]'` ({error})."
        ) from None
    return MPIGroup()


def share(count: int, rank: int, size: int) -> slice:
    """Return which of ``count`` rows are a rank's: a contiguous part, of sizes that differ by at most 1."""
    return slice(count * rank // size, count * (rank + 1) // size)
