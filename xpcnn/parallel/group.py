"""Processes that work together, called ranks: what they tell each other, and which part of the work is whose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from xpcnn.backend import Array, Backend, cuda_devices
from xpcnn.errors import BackendError, XpcnnError

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # how launchers tell the number of processes
CUDA = ("auto", "cuda", "cupy")  # devices that are one GPU per rank


class Group:
    """One process alone; several are an `xpcnn.parallel.mpi.MPIGroup`. Every method is called by all ranks alike.

    Attributes
    ----------
    rank, size : int
        Which of the processes this is, from 0, and how many there are.
    local_rank, local_size : int
        The same among those of this machine.
    is_watched : bool
        Whether a `xpcnn.parallel.watch.Watch` ends all ranks when one has died.
    note : str
        What a person should know of how sums are made, once there has been one.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    is_watched = False
    note = ""

    def sum(self, array: Array, backend: Backend | None = None) -> Array:
        """Return the sum of every rank's array, all of one shape; every rank gets the same bits.

        Parameters
        ----------
        array : array
            Of the backend, or a NumPy array.
        """
        return array

    def flat_sum(self, arrays: Sequence[Array], backend: Backend) -> Array:
        """Return the sum of every rank's arrays, one after another as one flat array of one dtype.

        It may be memory that the next call writes to: copy what is to last.
        """
        xp = backend.xp
        return self.sum(xp.concat([xp.reshape(array, (-1,)) for array in arrays]), backend)

    def joined(self, array: Array, counts: Sequence[int], backend: Backend | None = None) -> Array:
        """Return every rank's rows one after another, of which rank r has ``counts[r]``."""
        return array

    def gathered(self, value: Any) -> list[Any]:
        """Return every rank's value in the order of ranks: numbers, texts, None, lists and dicts of them."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether a flag is true on any rank."""
        return flag

    def first(self, value: Any) -> Any:
        """Return rank 0's value, of those that `gathered` takes."""
        return self.gathered(value if self.rank == 0 else None)[0]

    def device(self, name: str) -> str:
        """Return the name of the device that is this rank's: with several ranks on a machine, a GPU each.

        Raises
        ------
        BackendError
            When CUDA is asked for and there are fewer GPUs than ranks.
        """
        return name


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

    With several on a machine, each computes with its share of the cores, unless ``XPCNN_NUM_THREADS`` says otherwise.

    Raises
    ------
    XpcnnError
        When there are several, but mpi4py is not installed or knows another MPI than the launcher's.
    """
    if launched() == 1:
        return Group()
    try:
        from xpcnn.parallel.mpi import MPIGroup

        return MPIGroup(launched())
    except (ImportError, RuntimeError) as error:
        raise XpcnnError(
            f"{launched()} processes were started together, which needs MPI: `pip install 'xpcnn[mpi]'` and the "
            f"launcher's library, such as `pip install mpich` ({error})."
        ) from None


def check_alike(group: Group, facts: dict[str, str]) -> None:
    """Raise, on all ranks, naming the first fact that is not the same on every one.

    Parameters
    ----------
    facts : dict
        By what it is, such as ``"settings"``, a text that must be the same.
    """
    told = group.gathered(facts)
    for name in facts:
        for rank, other in enumerate(told):
            if other.get(name) != told[0][name]:
                raise XpcnnError(
                    f"the ranks do not belong together: the {name} of rank {rank} differ from those of rank 0; start "
                    "all of them with the same program, data and settings."
                )


def share(count: int, rank: int, size: int) -> slice:
    """Return which of ``count`` rows are a rank's: a contiguous part, of sizes that differ by at most 1."""
    return slice(count * rank // size, count * (rank + 1) // size)


def own_gpu(name: str, rank: int, visible: Sequence[str | None]) -> str:
    """Return a rank's device among those of its machine, of which each sees the GPUs that its environment names.

    Where a launcher shows every rank GPUs of its own, that is the first of those; else the GPU of the rank's number.
    """
    if name not in CUDA:
        return name
    count, missing = cuda_devices()
    if not count:
        if name == "auto":
            return name
        raise BackendError(f"{name} was asked for, but {missing}.")
    index = 0 if visible.count(visible[rank]) == 1 else rank
    if index >= count:
        raise BackendError(
            f"there are {len(visible)} ranks on a machine with {count} GPUs; start as many ranks as GPUs."
        )
    return f"cuda:{index}"
