"""Sums of large arrays by ranks of one machine, in memory that all of them see.

Each rank writes its array down, adds up its share of all, and reads the whole: three passes, where MPI's own way
through messages takes twice as many. The order of summation is that of the ranks, so everyone has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from xpcnn.parallel.group import share

Host = np.ndarray[Any, Any]


class SharedSum:
    """Adds up one array of ``count`` numbers of each of a machine's ranks, again and again."""

    def __init__(self, machine: MPI.Intracomm, count: int, dtype: np.dtype[Any]) -> None:
        self._machine, self._own = machine, share(count, machine.rank, machine.size)
        self._window = MPI.Win.Allocate_shared(count * dtype.itemsize, dtype.itemsize, comm=machine)
        size = 0 if machine.rank else count * dtype.itemsize
        self._result = MPI.Win.Allocate_shared(size, dtype.itemsize, comm=machine)
        self._arrays = [_seen(self._window, rank, dtype) for rank in range(machine.size)]
        self._total = _seen(self._result, 0, dtype)
        for window in (self._window, self._result):
            window.Lock_all()

    def __call__(self, parts: Sequence[Host]) -> Host:
        """Return the sum of all ranks' arrays, each given in parts; it stays until the next call, and is read only."""
        np.concatenate(parts, out=self._arrays[self._machine.rank])
        self._meet(self._window)
        first, *others = (array[self._own] for array in self._arrays)
        total = self._total[self._own]
        np.add(first, others[0], out=total)
        for other in others[1:]:
            total += other
        self._meet(self._result)
        view = self._total.view()
        view.flags.writeable = False
        return view

    def _meet(self, window: MPI.Win) -> None:
        """Wait until all ranks are here and see what the others wrote."""
        window.Sync()
        self._machine.Barrier()
        window.Sync()


def _seen(window: MPI.Win, rank: int, dtype: np.dtype[Any]) -> Host:
    """Return a rank's memory as an array."""
    memory: Any = window.Shared_query(rank)[0]
    return np.frombuffer(memory, dtype)
