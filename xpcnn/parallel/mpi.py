"""A group of processes that MPI connects, whatever launcher started them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
from mpi4py import MPI

from xpcnn.backend import Array, Backend
from xpcnn.errors import XpcnnError
from xpcnn.kernels import threads
from xpcnn.parallel.group import Group, own_gpu
from xpcnn.parallel.shared import SharedSum

Host = np.ndarray[Any, Any]
Sum = Callable[[Array], Array]

LARGE = 1 << 16  # bytes from which memory that is shared is worth its two meetings
SHARED = "/dev/shm"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class MPIGroup(Group):
    """All processes that a launcher started together, which are ``size``.

    Raises
    ------
    XpcnnError
        When MPI knows of another number: its library is not the launcher's.
    """

    def __init__(self, size: int) -> None:
        self._all = MPI.COMM_WORLD
        if self._all.size != size:
            raise XpcnnError(
                f"the launcher started {size} processes, but {_library()} sees {self._all.size}; start them with the "
                "mpiexec of that library."
            )
        self._machine: MPI.Intracomm = self._all.Split_type(MPI.COMM_TYPE_SHARED)  # type: ignore[assignment]
        self.rank, self.size = self._all.rank, self._all.size
        self.local_rank, self.local_size = self._machine.rank, self._machine.size
        self._flags = np.zeros(2, np.int8)
        self._shared: dict[tuple[int, Any], SharedSum | None] = {}
        self._nccl: dict[int, Sum | None] = {}  # by device
        if not os.environ.get(threads.VARIABLE, "").strip():
            threads.set_num_threads(self._own_cores())
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = self._end_all

    def sum(self, array: Array, backend: Backend | None = None) -> Array:
        """Add up by NCCL where it connects the ranks' GPUs, and else by MPI on the host."""
        if backend is None or backend.name == "numpy":
            return self._sum(np.asarray(array, order="C"))
        if backend.name == "cupy":
            total = self._connected(backend)
            if total is not None:
                return total(array)
        host = backend.to_numpy(array)
        return backend.asarray(self._sum(np.asarray(host, order="C")), host.dtype.name)

    def flat_sum(self, arrays: Sequence[Array], backend: Backend) -> Array:
        """Add up in memory that a machine's ranks share, where they are all on one."""
        count, dtype = sum(prod(array.shape) for array in arrays), arrays[0].dtype
        if backend.name != "numpy" or self.local_size < self.size or count * dtype.itemsize < LARGE:
            return super().flat_sum(arrays, backend)
        if (count, dtype) not in self._shared:
            is_scarce = self.any(_free_shared() < 2 * (self.size + 1) * count * dtype.itemsize)
            self._shared[count, dtype] = None if is_scarce else SharedSum(self._machine, count, dtype)
        shared = self._shared[count, dtype]
        return super().flat_sum(arrays, backend) if shared is None else shared([a.reshape(-1) for a in arrays])

    def joined(self, array: Array, counts: Sequence[int], backend: Backend | None = None) -> Array:
        """Send rows through the host: they are few, such as a batch's outputs."""
        host = np.asarray(array) if backend is None else backend.to_numpy(array)
        if host.shape[0] != counts[self.rank]:
            raise XpcnnError(f"rank {self.rank} has {host.shape[0]} rows instead of {counts[self.rank]}.")
        whole = np.empty((sum(counts), *host.shape[1:]), host.dtype)
        width = prod(host.shape[1:]) * host.itemsize
        sizes = [count * width for count in counts]
        self._all.Allgatherv(_raw(host), [_raw(whole), sizes, None, MPI.BYTE])
        return whole if backend is None or backend.name == "numpy" else backend.asarray(whole, whole.dtype.name)

    def gathered(self, value: Any) -> list[Any]:
        """Send values as JSON, so that nothing is unpickled."""
        return _gathered(self._all, value)

    def any(self, flag: bool) -> bool:
        """Take the largest flag."""
        self._flags[0] = flag
        self._all.Allreduce(self._flags[:1], self._flags[1:], MPI.MAX)
        return bool(self._flags[1])

    def device(self, name: str) -> str:
        """Return a GPU of this rank's own."""
        return own_gpu(name, self.local_rank, _gathered(self._machine, os.environ.get(VISIBLE)))

    def _sum(self, host: Host) -> Host:
        """Add up on the host."""
        total = np.empty_like(host)
        self._all.Allreduce(host, total)
        return total

    def _connected(self, backend: Backend) -> Sum | None:
        """Return NCCL's sum of arrays on this rank's device, None where there is none; connected at first use."""
        number = int(backend.device.id)
        if number not in self._nccl:
            from xpcnn.kernels.cuda import collective

            self._nccl[number], reason = collective.connect(self.rank, number, self.gathered)
            self.note = f"gradients go through the host: {reason}" if self._nccl[number] is None else ""
        return self._nccl[number]

    def _end_all(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Say what nobody caught; end all ranks, which would wait for this one, where no `Watch` is there to do so."""
        sys.__excepthook__(kind, error, trace)
        sys.stderr.flush()
        if not self.is_watched:
            self._all.Abort(1)

    def _own_cores(self) -> int:
        """Return how many cores are this rank's: all of them, where its launcher bound it to some, else a share."""
        cores = [set(found) for found in _gathered(self._machine, threads.core_numbers())]
        return max(1, min(len(cores[self.local_rank]), len(set.union(*cores)) // self.local_size))


def _gathered(comm: MPI.Comm, value: Any) -> list[Any]:
    """Return every rank's value."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.empty(comm.size, np.int64)
    comm.Allgather(np.asarray([len(text)], np.int64), sizes)
    whole = np.empty(int(sizes.sum()), np.uint8)
    comm.Allgatherv(text, [whole, sizes.tolist(), None, MPI.BYTE])
    return [json.loads(part.tobytes()) for part in np.split(whole, np.cumsum(sizes)[:-1])]


def _free_shared() -> float:
    """Return how many bytes of shared memory are free: containers have little, and writing beyond it is fatal."""
    return shutil.disk_usage(SHARED).free if os.path.isdir(SHARED) else float("inf")


def _raw(host: Host) -> Host:
    """Return an array's bytes, without a copy if they lie in order."""
    return np.ascontiguousarray(host).reshape(-1).view(np.uint8)


def _library() -> str:
    """Return the name of the MPI library in use."""
    return " ".join(MPI.Get_library_version().split()[:3]).strip(" ,:")
