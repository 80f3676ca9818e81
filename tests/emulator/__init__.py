"""Runs the package's CUDA kernels, and the code that launches them, on a CPU: NumPy arrays stand in for CuPy's.

Every kernel is compiled from the very text that NVRTC would be given. New memory holds NaN or nonsense, so that what
a kernel forgets to write shows; bytes before and after it are watched. Recorded work does not run until it is
replayed, as on a GPU, so that whatever a step does outside of kernels leaves nonsense behind.

What this cannot show: races between threads, CuPy's own behaviour, cuBLAS, speed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from xpcnn.kernels.cuda import runtime

EDGE = 64  # bytes watched on either side of an array
MARK = 0xCB
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\)\s*\{')
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unused-function", "-shared", "-fPIC")

_recording: list | None = None
_watched: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by the address of its first byte
launches: list[str] = []  # names of the kernels that ran, for tests that count


def compiler() -> str | None:
    """Return a C++ compiler, or None."""
    return shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def install(monkeypatch) -> None:
    """Let the package's CUDA kernels compute on NumPy arrays for the length of a test."""
    from xpcnn import kernels
    from xpcnn.kernels import cuda

    launches.clear()
    for name in ("empty", "contiguous", "upload", "launch", "matmul", "Recorder"):
        monkeypatch.setattr(runtime, name, globals()[name])
    monkeypatch.setattr(kernels, "of", lambda xp: cuda)


def empty(shape, dtype):
    """Return memory full of NaN, or of nonsense, between two watched edges."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.full(size + 2 * EDGE, MARK, np.uint8)
    array = raw[EDGE : EDGE + size].view(dtype).reshape(shape)
    array.view(np.uint8)[...] = 0xFF if dtype != np.bool_ else 1  # floats of all ones are NaN
    _watched[raw.__array_interface__["data"][0]] = raw
    return array


def contiguous(x):
    """Return x in C order; a copy is recorded, since CuPy's would be."""
    if x.flags.c_contiguous:
        return x
    out = empty(x.shape, x.dtype)
    _do(partial(np.copyto, out, x))
    return out


def upload(host):
    """Return a copy; recorded work may not copy from the host."""
    assert _recording is None, "memory was copied from the host in recorded work"
    return np.array(host)


def launch(source, name, blocks, *arguments, threads=runtime.THREADS):
    """Run a kernel, or record it."""
    for argument in arguments:
        assert argument is None or isinstance(argument, np.ndarray) or type(argument) in (int, float), argument
        assert not isinstance(argument, np.ndarray) or argument.dtype != object
    assert 0 <= blocks < 1 << 31, blocks
    assert 0 < threads <= 1024, threads
    if blocks:
        _do(partial(_launch, source, name, blocks, threads, arguments))


def matmul(a, b, out):
    """Multiply, or record it."""
    assert a.dtype == b.dtype, "one dtype for both factors"
    assert out.shape == (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])

    def work():
        wide = np.float64 if out.dtype == np.float64 else np.float32
        out[...] = np.matmul(a.astype(wide), b.astype(wide)).astype(out.dtype)

    _do(work)


class Recorder:
    """Records what is launched, without running it."""

    def __init__(self):
        self._steps = []

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def record(self, work):
        global _recording
        assert _recording is None, "recordings do not nest"
        _recording = self._steps = []
        try:
            return work()
        finally:
            _recording = None

    def replay(self):
        for step in self._steps:
            step()


def _do(work):
    if _recording is None:
        work()
    else:
        _recording.append(work)


def _launch(source, name, blocks, threads, arguments):
    launches.append(name)
    library(source)[name](
        *(_passed(argument) for argument in arguments), ctypes.c_longlong(blocks), ctypes.c_longlong(threads)
    )
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            _check_edges(argument, name)


def _passed(argument):
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.__array_interface__["data"][0])
    return ctypes.c_double(argument) if type(argument) is float else ctypes.c_longlong(argument)


def _check_edges(array, name):
    """Assert that nothing was written beside an array of `empty`'s."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    if _watched.get(base.__array_interface__["data"][0]) is base:
        assert (np.concatenate([base[:EDGE], base[-EDGE:]]) == MARK).all(), f"{name} wrote outside an array"


class _Library:
    """The kernels of one source."""

    def __init__(self, path):
        self._dll = ctypes.CDLL(str(path))

    def __getitem__(self, name):
        function = getattr(self._dll, f"emulate_{name}")
        function.restype = None
        return function


@lru_cache(None)
def library(source):
    """Compile a source (kept in a directory of the machine's temporary ones, by its digest) and load it."""
    body = (Path(__file__).parent / "shim.h").read_text(encoding="utf-8") + source
    found = KERNEL.findall(source)
    assert found, "the source has no kernel that can be found"
    assert len(found) == source.count("__global__"), "a kernel's declaration is not as the emulator reads it"
    for name, parameters in found:
        declared = [" ".join(p.split()) for p in parameters.split(",")]
        for p in declared:
            assert "*" in p or p.startswith(("count ", "long long ", "double ")), f"{name}: {p}"
        names = ", ".join(re.search(r"(\w+)$", p)[1] for p in declared)
        body += (
            f'\nextern "C" void emulate_{name}({", ".join(declared)}, count emulated_blocks, count emulated_threads)\n'
            f"{{\n    emulator::run(emulated_blocks, emulated_threads, {_waits(source, name)}, "
            f"[=] {{ {name}({names}); }});\n}}\n"
        )
    digest = hashlib.blake2b(repr((body, FLAGS)).encode(), digest_size=12).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"xpcnn-emulated-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    target = folder / f"{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            code = Path(scratch) / "kernels.cpp"
            code.write_text(body, encoding="utf-8")
            built = Path(scratch) / "kernels.so"
            done = subprocess.run([compiler(), *FLAGS, "-o", built, code], capture_output=True, text=True)
            assert not done.returncode, done.stderr
            built.replace(target)
    return _Library(target)


def _waits(source, name):
    """Whether a kernel, by its text, waits for the other threads of its block."""
    start = source.index(f" {name}(")
    end = source.find('extern "C"', start)
    body = source[start : end if end > 0 else None]
    return "true" if re.search(r"__syncthreads|block_\w+\(", body) else "false"
