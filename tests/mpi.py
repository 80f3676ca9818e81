"""Start several processes with MPI's launcher, for real; nothing can hang for longer than a limit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

LIMIT = 120  # seconds after which ranks that are still there are killed


@cache
def launcher():
    """Return the path of the mpiexec beside this Python or else of the PATH's; None if there is none or no mpi4py."""
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    return (beside or shutil.which("mpiexec")) if importlib.util.find_spec("mpi4py") else None


def available():
    """Whether tests with several ranks can run here."""
    return launcher() is not None


@cache
def _extra():
    """Return what Open MPI must be told to start more ranks than there are cores; MPICH needs no word."""
    said = subprocess.run([launcher(), "--version"], capture_output=True, text=True, timeout=30).stdout
    return ["--oversubscribe"] if "open" in said.lower() else []


def command(n, arguments):
    """Return the command that starts n ranks: of a Python file or ``-c``, else of the command line's subcommand."""
    first, *_ = arguments = [str(argument) for argument in arguments]
    own = [] if first.startswith("-") or first.endswith(".py") else ["-m", "xpcnn"]
    return [launcher(), "-n", str(n), *_extra(), sys.executable, *own, *arguments]


def start(n, arguments, **options):
    """Start n ranks of one thread each in a session of their own; return the launcher's process (`Popen`)."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    usual["env"] = os.environ | {"XPCNN_NUM_THREADS": "1"} | root | (options.pop("env", None) or {})
    return subprocess.Popen(command(n, arguments), **usual | options, start_new_session=True)


def run(n, arguments, timeout=LIMIT, check=False, **options):
    """Run n ranks to their end, as `subprocess.run` does with ``capture_output`` and ``text``.

    ``env`` is added to the environment. Ranks that are not done in time are killed, and TimeoutExpired is raised with
    what they had printed.
    """
    process = start(n, arguments, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = end(process)
        raise subprocess.TimeoutExpired(process.args, timeout, out, err) from None
    except BaseException:
        end(process)
        raise
    if check:
        assert process.returncode == 0, f"exit status {process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end(process):
    """Kill a launcher and its ranks; return what they had printed."""
    process.terminate()  # which the launcher hands on
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=5)
    except subprocess.TimeoutExpired:  # a rank in a session of its own still holds the pipe
        return None, None


def ranks(process):
    """Return the process ids of a launcher's ranks, of those that are there by now."""
    found, coming = [], [process.pid]
    while coming:
        pid = coming.pop()
        with contextlib.suppress(OSError):
            coming += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if Path(f"/proc/{pid}/exe").resolve() == Path(sys.executable).resolve():
                found.append(pid)
    return sorted(found)
