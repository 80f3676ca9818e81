"""The sum of arrays over several processes with a GPU each, by NVIDIA's NCCL.

CuPy's wheels are built for NCCL but do not bring it: ``pip install nvidia-nccl-cu12`` (or ``-cu13``) does, and CuPy
finds it there. Without it, or where two processes share a GPU, sums have to go through the host.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import BackendError
from xpcnn.kernels.cuda import runtime, stream

Sum = Callable[[Array], Array]
Gathered = Callable[[Any], list[Any]]

TYPES = {"int32": 2, "int64": 4, "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9}  # ncclDataType_t of nccl.h
ADD = 0  # ncclSum, an ncclRedOp_t
INSTALL = "pip install 'nvidia-nccl-cu12>=2.27.7,<3' (or -cu13), for the CUDA that CuPy is for"


def connect(rank: int, device: int, gathered: Gathered) -> tuple[Sum | None, str]:
    """Connect the ranks' GPUs; all ranks call this together, and all get a sum or none does.

    Parameters
    ----------
    rank : int
        Which of the processes this is.
    device : int
        Its GPU.
    gathered : callable
        Returns every rank's value, made of what JSON knows, in the order of ranks.

    Returns
    -------
    sum : callable or None
        Takes an array of one shape and dtype on every rank, of any real floating dtype or int32 or int64, and returns
        their sum as a new array, the same bits on every rank. The work is sent to the current stream.
    reason : str
        Why there is no sum, or nothing.
    """
    why = missing()
    told = gathered([why, "" if why else _gpu(device), "" if why or rank else _nccl().get_unique_id().hex()])
    faults = [f"rank {number} has no NCCL: {fault}" for number, (fault, _, _) in enumerate(told) if fault]
    faults = faults or _shared([gpu for _, gpu, _ in told])
    if faults:
        return None, faults[0]
    communicator, why = _communicator(len(told), bytes.fromhex(told[0][2]), rank, device)
    faults = [f"rank {number}: {fault}" for number, fault in enumerate(gathered(why)) if fault]
    if faults:
        return None, faults[0]
    return partial(_sum, communicator), ""


@cache
def missing() -> str:
    """Return why there is no NCCL, or nothing."""
    try:
        nccl = _nccl()
        if not nccl.available:
            return f"it is not installed: {INSTALL}"
        nccl.get_version()
    except (ImportError, OSError, RuntimeError) as error:
        return f"its library cannot be used ({_first_line(error)}): {INSTALL}"
    return ""


def _nccl() -> Any:
    """Return CuPy's module, which warns of a library that is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cupy.cuda import nccl

    return nccl


def _gpu(device: int) -> str:
    """Return the name of a GPU that no other has."""
    import cupy

    return f"{socket.gethostname()} {cupy.cuda.Device(device).pci_bus_id}"


def _on(device: int) -> Any:
    """Return a context in which a GPU is the current one."""
    import cupy

    return cupy.cuda.Device(device)


def _shared(gpus: list[str]) -> list[str]:
    """Return what is wrong where two ranks have one GPU, which NCCL refuses."""
    first = {gpu: gpus.index(gpu) for gpu in gpus}
    pairs = [(first[gpu], rank) for rank, gpu in enumerate(gpus) if first[gpu] != rank]
    return [f"ranks {a} and {b} share the GPU {gpus[a].split()[-1]}, but NCCL needs one for each" for a, b in pairs]


def _communicator(size: int, name: bytes, rank: int, device: int) -> tuple[Any, str]:
    """Return the connection to the other ranks' GPUs, or why there is none."""
    stream.refuse_capture(stream.place(), "a connection of GPUs")
    try:
        with _on(device):
            return _nccl().NcclCommunicator(size, name, rank), ""
    except RuntimeError as error:  # which CuPy's NcclError is
        return None, f"NCCL cannot connect the GPUs ({_first_line(error)})"


def _sum(communicator: Any, x: Array) -> Array:
    """Return the sum over all ranks."""
    if str(x.dtype) not in TYPES:
        raise BackendError(f"NCCL adds up arrays of {', '.join(TYPES)}, not of {x.dtype}.")
    x = runtime.contiguous(x)
    total = runtime.empty(x.shape, x.dtype)
    addresses = stream.address(x), stream.address(total)
    try:
        communicator.allReduce(*addresses, x.size, TYPES[str(x.dtype)], ADD, stream.place()[1])
    except RuntimeError as error:
        raise BackendError(
            f"NCCL could not add up over the ranks' GPUs ({_first_line(error)}); NCCL_DEBUG=WARN has it say more."
        ) from error
    return total


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
