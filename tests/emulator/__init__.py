"""Runs the package's CUDA kernels, and the code that launches them, on a CPU: NumPy arrays stand in for CuPy's.

Every kernel is compiled from the very text that NVRTC would be given. New memory holds NaN or nonsense, so that what
a kernel forgets to write shows; bytes before and after it are watched. Recorded work does not run until it is
replayed, as on a GPU, so that whatever a step does outside of kernels leaves nonsense behind.

What this cannot show: races between threads, CuPy's own behaviour, cuBLAS, speed.
"""

from __future__ import annotations

import contextlib
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
from xpcnn.kernels.threads import single_threaded_blas

EDGE = 64  # bytes watched on either side of an array
MARK = 0xCB
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\)\s*\{')
FLAGS = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-Wall",
    "-Werror",
    "-Wno-unused-function",
    "-shared",
    "-fPIC",
    "-Wl,-Bsymbolic",
)

_recording: list | None = None
_paused = False
_watched: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by the address of its first byte
launches: list[str] = []  # names of the kernels that ran, for tests that count


@contextlib.contextmanager
def paused():
    """Let NumPy compute as it would without all this, for an independent answer."""
    global _paused
    _paused, before = True, _paused
    try:
        yield
    finally:
        _paused = before


def compiler() -> str | None:
    """Return a C++ compiler, or None."""
    return shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def install(monkeypatch) -> None:
    """Let the package's CUDA kernels compute on NumPy arrays for the length of a test."""
    from xpcnn import kernels
    from xpcnn.backend import Backend
    from xpcnn.kernels import cuda

    launches.clear()
    for name in ("empty", "contiguous", "upload", "launch", "matmul", "Recorder"):
        monkeypatch.setattr(runtime, name, globals()[name])
    own = kernels.of
    monkeypatch.setattr(kernels, "of", lambda xp: own(xp) if _paused else cuda)
    monkeypatch.setattr(cuda, "capability", lambda device: 90)
    upload = Backend.asarray

    def asarray(self, host, dtype=None):
        return host if isinstance(host, DeviceArray) and dtype is None else upload(self, host, dtype)

    monkeypatch.setattr(Backend, "asarray", asarray)


class DeviceArray(np.ndarray):
    """Memory of a kernel's; while work is recorded, NumPy must not compute with it, for that would not be replayed."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        _refuse(ufunc.__name__)
        if out is not None:
            options["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        return out[0] if out is not None and len(out) == 1 else result

    def __array_function__(self, function, types, arguments, options):
        if function.__name__ in COPIES and _recording is not None:
            return _recorded(function, arguments, options)
        if function.__name__ not in VIEWS:
            _refuse(function.__name__)
        return super().__array_function__(function, types, arguments, options)

    def astype(self, *arguments, **options):
        _refuse("astype")
        return self.view(np.ndarray).astype(*arguments, **options)

    def __float__(self):
        _refuse("float")
        return float(self.view(np.ndarray))

    def copy(self, *arguments, **options):
        _refuse("copy")
        return self.view(np.ndarray).copy(*arguments, **options)


COPIES = {"concatenate"}
VIEWS = {
    "reshape",
    "moveaxis",
    "transpose",
    "expand_dims",
    "squeeze",
    "broadcast_to",
    "may_share_memory",
    "shares_memory",
    "matrix_transpose",
}


def _plain(value):
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.view(np.ndarray) if isinstance(value, DeviceArray) else value


def _recorded(function, arguments, options):
    """Record a function of NumPy's for which CuPy launches nothing but copies."""
    found = function(*_plain(arguments), **options)
    out = empty(found.shape, found.dtype)
    _do(lambda: np.copyto(_plain(out), function(*_plain(arguments), **options)))
    return out


def _refuse(name):
    assert _recording is None, f"{name} was computed by the array library in recorded work"


def empty(shape, dtype):
    """Return memory full of NaN, or of nonsense, between two watched edges."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.full(size + 2 * EDGE, MARK, np.uint8)
    array = raw[EDGE : EDGE + size].view(dtype).reshape(shape)
    raw[EDGE : EDGE + size] = 0xFF if dtype != np.bool_ else 1  # floats of all ones are NaN
    _watched[raw.__array_interface__["data"][0]] = raw
    return array.view(DeviceArray)


def contiguous(x):
    """Return x in C order; a copy is recorded, since CuPy's would be."""
    if x.flags.c_contiguous:
        return x
    out = empty(x.shape, x.dtype)
    _do(partial(np.copyto, _plain(out), _plain(x)))
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
        with single_threaded_blas():  # so that it adds up in one order, wherever it is called
            _plain(out)[...] = np.matmul(_plain(a).astype(wide), _plain(b).astype(wide)).astype(out.dtype)

    _do(work)


class Recorder:
    """Records what is launched, without running it."""

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def record(self, work, warm_up):
        global _recording
        warm_up()
        assert _recording is None, "recordings do not nest"
        _recording = steps = []
        try:
            work()
        except Exception as error:
            raise runtime.NotRecordedError(str(error) or repr(error)) from error
        finally:
            _recording = None

        def replay():
            for step in steps:
                step()

        return replay


def _do(work):
    if _recording is None:
        work()
    else:
        _recording.append(work)


def _launch(source, name, blocks, threads, arguments):
    launches.append(name)
    takes = _parameters(source)[name]
    assert len(takes) == len(arguments), f"{name} takes {len(takes)} arguments, not {len(arguments)}"
    for parameter, argument in zip(takes, arguments, strict=True):
        given = "*" if argument is None or isinstance(argument, np.ndarray) else type(argument).__name__
        wanted = "*" if "*" in parameter else "float" if parameter.startswith("double ") else "int"
        assert given == wanted, f"{name} was given {given} for {parameter}"
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
    for name, declared in _parameters(source).items():
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


@lru_cache(None)
def _parameters(source):
    """Return each kernel's parameters as they are declared."""
    found = KERNEL.findall(source)
    assert found, "the source has no kernel that can be found"
    assert len(found) == source.count("__global__"), "a kernel's declaration is not as the emulator reads it"
    return {name: [" ".join(p.split()) for p in parameters.split(",")] for name, parameters in found}


def _waits(source, name):
    """Whether a kernel, by its text, waits for the other threads of its block."""
    start = source.index(f" {name}(")
    end = source.find('extern "C"', start)
    body = source[start : end if end > 0 else None]
    return "true" if re.search(r"__syncthreads|block_\w+\(", body) else "false"
