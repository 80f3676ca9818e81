"""What kernels need of CuPy: memory, launching a kernel of CUDA C++, products of matrices, recording work as a graph.

Everything else in this package goes through these few functions, so that the tests can run the same kernels and the
code that launches them on a CPU. Kernels take pointers, ``long long`` and ``double`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from xpcnn.backend import Array
from xpcnn.kernels.cuda.stream import own_memory

THREADS = 256  # of a block, unless a kernel says otherwise
MOST_BLOCKS = 1 << 16  # of a launch whose threads step through what is to be done
OPTIONS = ("-std=c++17", "--fmad=true")
NAMES = {"float32": "float", "float64": "double", "bfloat16": "bf16"}


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return new memory in C order."""
    import cupy

    return cupy.empty(shape, dtype)


def contiguous(x: Array) -> Array:
    """Return x in C order: as it is, or copied."""
    import cupy

    return cupy.ascontiguousarray(x)


def upload(host: Any) -> Array:
    """Return a NumPy array's copy on the device."""
    import cupy

    return cupy.asarray(host)


def launch(source: str, name: str, blocks: int, *arguments: Any, threads: int = THREADS) -> None:
    """Run a kernel; arrays are given by their address, None as a null pointer, whole and real numbers in 64 bits."""
    if blocks:
        _kernel(source, name)((blocks,), (threads,), tuple(map(_argument, arguments)))


def matmul(a: Array, b: Array, out: Array) -> None:
    """Write a·b to out: matrices, or stacks of them of which one may be used for all (a stride of 0)."""
    from xpcnn.kernels.cuda import blas

    blas.matmul(a, b, out)


class NotRecordedError(RuntimeError):
    """Why some work could not be recorded."""


class Recorder:
    """A stream of its own, in which work is recorded as CUDA graphs and replayed, on the device that is current.

    Everything happens inside ``with recorder:``, which waits for what came before and, at its end, for the work.
    What is recorded has memory of its own as long as this, or what replays it, lives: what it lets go of may be used
    again by what else is recorded here, and by nothing outside, since each replay writes there anew.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._pool: Any = None

    def __enter__(self) -> Recorder:
        import cupy

        if self._stream is None:
            self._pool = cupy.cuda.MemoryPool(_own_pointer)
            self._pool.set_limit(size=0)  # at one, the pool would give back what recordings write to
            self._stream = _idle_stream()
            finalize(self, _give_back, self._pool, self._stream).atexit = False
        cupy.cuda.get_current_stream().synchronize()
        self._stream.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stream.__exit__(*raised)
        self._stream.synchronize()

    def record(self, work: Callable[[], object], warm_up: Callable[[], object]) -> Callable[[], None]:
        """Run the warm-up, record what ``work`` launches without running it, and return a function that runs it.

        Raises
        ------
        NotRecordedError
            When ``work`` does what cannot be recorded, such as copying from the host or waiting for the device.
        """
        import cupy

        with cupy.cuda.using_allocator(self._pool.malloc):
            warm_up()
            self._stream.begin_capture()
            try:
                work()
                graph = self._stream.end_capture()
            except Exception as error:
                with suppress(Exception):  # CUDA reports the failure once more, which says nothing new
                    self._stream.end_capture()
                raise NotRecordedError(str(error) or repr(error)) from error
        return partial(self._replay, graph)

    def _replay(self, graph: Any) -> None:
        """Run what was recorded."""
        graph.launch(self._stream)


_idle: list[Any] = []  # recorders' streams: libraries have handles and workspaces for each, so the next takes them over


def _idle_stream() -> Any:
    """Return a stream of the current device that no recorder has."""
    import cupy

    device = cupy.cuda.runtime.getDevice()
    for stream in list(_idle):
        if stream.device_id == device:
            with suppress(ValueError):  # another thread was faster
                _idle.remove(stream)
                return stream
    return cupy.cuda.Stream(non_blocking=True)


def _give_back(pool: Any, stream: Any) -> None:
    """Let go of a recorder's memory, which CuPy's pools do not do by themselves, and leave its stream to the next."""
    import cupy

    with cupy.cuda.Device(stream.device_id):
        pool.free_all_blocks()
    _idle.append(stream)


def _own_pointer(size: int) -> Any:
    """Allocate for a recorder's pool, which on CuPy's own error would give back what recordings write to."""
    import cupy

    return cupy.cuda.MemoryPointer(own_memory(size), 0)


def text(file: str, **macros: str) -> str:
    """Return the source of a file of this package, after the common one, with macros defined."""
    return _text(file, tuple(sorted(macros.items())))


def types(x: Array) -> dict[str, str]:
    """Return the macros REAL, what x's elements are stored as, and NUMBER, what they are computed in."""
    real = NAMES[str(x.dtype)]
    return {"REAL": real, "NUMBER": "double" if real == "double" else "float"}


def index(*arrays: Array) -> str:
    """Return the type that counts all elements of any of the arrays."""
    return "int" if max(array.size for array in arrays) < 1 << 31 else "count"


def blocks_for(elements: int, threads: int = THREADS) -> int:
    """Return how many blocks give every element a thread, up to a limit beyond which threads take several."""
    return min(MOST_BLOCKS, -(-elements // threads))


@lru_cache(1024)
def _text(file: str, macros: tuple[tuple[str, str], ...]) -> str:
    here = Path(__file__).parent
    lines = [f"#define {name} {value}" for name, value in macros]
    return "\n".join([*lines, *((here / part).read_text(encoding="utf-8") for part in ("common.cuh", file))])


@lru_cache(4096)
def _kernel(source: str, name: str) -> Any:
    """Return a kernel of a source."""
    return _module(source).get_function(name)


@lru_cache(1024)
def _module(source: str) -> Any:
    """Compile a source; CuPy keeps the binary on disk and loads it once per device."""
    import cupy

    return cupy.RawModule(code=source, options=OPTIONS)


def _argument(value: Any) -> Any:
    """Return what CuPy passes on, numbers with the width that kernels take them in."""
    if value is None:
        return np.int64(0)
    if isinstance(value, int):
        return np.int64(value)
    return np.float64(value) if isinstance(value, float) else value
