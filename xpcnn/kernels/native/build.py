"""Compile the C sources with the machine's own compiler, once, and keep the result in the user's cache.

Like CuPy's kernels they are made where they run, so that the compiler may use every instruction the CPU has. Without
a compiler, or where the cache cannot be written, NumPy does all the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from xpcnn.errors import XpcnnError

SOURCES = Path(__file__).parent
FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-shared", "-fPIC"]
SECONDS = 120  # that the compiler may take
CHOICES = ("auto", "native", "numpy")


def library() -> ctypes.CDLL | None:
    """Return the loaded library, compiled first if need be, or None where there is none.

    The environment variable ``XPCNN_KERNELS`` decides: ``numpy`` never uses it, ``native`` insists on it.
    """
    return _found()[0]


def description() -> str:
    """Return which kernels compute float32 on the CPU, and why."""
    return _found()[1]


def chosen() -> str:
    """Return what ``XPCNN_KERNELS`` asks for, or raise."""
    choice = os.environ.get("XPCNN_KERNELS") or "auto"
    if choice not in CHOICES:
        raise XpcnnError(f"XPCNN_KERNELS must be one of {', '.join(CHOICES)}, not {choice!r}.")
    return choice


@lru_cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    """Return the library or None, and what to tell of it."""
    if (choice := chosen()) == "numpy":
        return None, "NumPy's own (XPCNN_KERNELS=numpy)"
    try:
        return _load(), f"native, compiled by {_compiler()[0]} for this CPU"
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:  # no home, a CC of odd quotes
        if choice == "native":
            raise XpcnnError(f"XPCNN_KERNELS=native, but the native kernels cannot be had: {error}") from None
        return None, f"NumPy's own, the native ones cannot be had: {str(error).rstrip('.')}"


@lru_cache
def function(name: str, result: Any = None) -> Any:
    """Return a function of the library, whose arguments are pointers and, last, the number of threads."""
    found = getattr(library(), name)
    found.restype = result
    return found


def _load() -> ctypes.CDLL:
    """Return the library, or raise OSError; what lies in its place and is not what its name says is made anew."""
    command = _compiler()
    texts = {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))}
    identity = _identity(command, texts)
    _cache().mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_own(_cache()):
        raise OSError(f"{_cache()} belongs to another user.")
    for path in sorted(_cache().glob(f"{identity}-*")):
        with contextlib.suppress(OSError):
            if path.stem == f"{identity}-{_digest(path.read_bytes())}" and _is_own(path):
                return ctypes.CDLL(str(path))
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix="compiling-") as folder:
        made = Path(folder, "kernels.so")
        sources = [str(SOURCES / name) for name in texts if name.endswith(".c")]
        process = [*command, *FLAGS, *_machine_flags(), *sources, "-o", str(made), "-lpthread", "-lm"]
        subprocess.run(process, check=True, capture_output=True, timeout=SECONDS)
        path = _cache() / f"{identity}-{_digest(made.read_bytes())}.so"
        return ctypes.CDLL(str(made.replace(path)))  # whole or not at all, also where two processes do the same


def _is_own(path: Path) -> bool:
    """Whether nobody else can have put it there."""
    return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _compiler() -> list[str]:
    """Return the C compiler's command: what CC names, or cc."""
    words = shlex.split(os.environ.get("CC") or "cc")
    found = shutil.which(words[0]) if words else None
    if found is None or sys.platform == "win32":
        raise OSError("no C compiler was found (cc, or what CC names).")
    return [found, *words[1:]]


def _machine_flags() -> list[str]:
    """Return the flags that let the compiler use all of this CPU."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return ["-mcpu=native"]
    return ["-march=native", "-mprefer-vector-width=512"]


def _identity(command: list[str], texts: dict[str, bytes]) -> str:
    """Return a name for what is compiled, by what, for which CPU."""
    compiler = os.stat(command[0])
    parts = [*command, *FLAGS, *_machine_flags(), compiler.st_size, compiler.st_mtime_ns, platform.machine(), _cpu()]
    whole = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    for name, text in texts.items():
        whole.update(f"\0{name}\0".encode() + text)
    return f"kernels-{whole.hexdigest()}"


def _cpu() -> str:
    """Return a description of the CPU and what it can do."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 13).split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "flags", "Features"))
    )


def _cache() -> Path:
    """Return the folder for compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "xpcnn"  # as the XDG specification has it
