"""What a library that is called directly is told: the current device and stream, addresses, memory of its own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import BackendError

LEGACY, PER_THREAD = 1, 2  # streams that CUDA knows by a number, beside 0; the last is another one in every thread
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation

Place = tuple[int, int, int]  # device, stream, and the thread where the stream is a thread's own


def place() -> Place:
    """Return the current device and stream, which tell one handle of a library from another."""
    import cupy

    stream = int(cupy.cuda.get_current_stream().ptr)
    return cupy.cuda.runtime.getDevice(), stream, threading.get_ident() if stream == PER_THREAD else 0


def is_capturing(here: Place) -> bool:
    """Whether work sent there is recorded instead of run."""
    import cupy

    return here[1] not in (0, LEGACY) and bool(cupy.cuda.runtime.streamIsCapturing(here[1]))


def refuse_capture(here: Place, what: str) -> None:
    """Raise if work is being recorded: making ``what`` needs memory and time that recorded work must not take."""
    if is_capturing(here):
        raise BackendError(f"{what} cannot be made while work is recorded: run it once before recording it.")


def address(x: Array) -> int:
    """Return where an array's first element lies."""
    return int(x.data.ptr)


def is_on_device(x: Array) -> bool:
    """Whether a library may be given an array's address: the tests run kernels on arrays that it may not."""
    return hasattr(type(x), "__cuda_array_interface__")


def own_memory(size: int) -> Any:
    """Return device memory, with its address as ``ptr``, that belongs to no pool and lives as long as the object.

    Where there is none left, CuPy's pool is asked for what nobody uses.
    """
    import cupy

    for last in (False, True):
        try:
            return cupy.cuda.Memory(size)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status != OUT_OF_MEMORY:
                raise
        if not last:
            gc.collect()
            cupy.get_default_memory_pool().free_all_blocks()
    raise cupy.cuda.memory.OutOfMemoryError(size, cupy.get_default_memory_pool().total_bytes())


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long the device takes over some work on the current stream."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end))


def load(*names: str) -> list[str | None]:
    """Load parts of CUDA from where CuPy finds them, and return their files.

    Raises
    ------
    BackendError
        When one is not there.
    """
    try:
        from cuda import pathfinder  # a part of CuPy's own installation

        return [pathfinder.load_nvidia_dynamic_lib(name).abs_path for name in names]
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{' or '.join(names)} cannot be loaded ({str(error).splitlines()[0]}).") from error
