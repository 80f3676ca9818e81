"""Processes of `bench_gpu.py`: each is given a task as JSON, answers with lines of JSON, and can be told to go on."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent


class WorkError(Exception):
    """Why a process gave no answer: what it printed, the end of what it complained of, and its status."""

    def __init__(self, reason, tail="", printed="", status=124):
        super().__init__(reason)
        self.tail, self.printed, self.status = tail, printed, status


class Worker:
    """A process that does one task; a group of its own, so that its compilers end with it."""

    def __init__(self, task, environment):
        pipe = subprocess.PIPE
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  `close` does
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "bench_gpu_work.py"), json.dumps(task)],
            env=environment, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, start_new_session=True,
        )  # fmt: skip
        self._answers = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def tell(self, word):
        """Tell the process what to do next."""
        with suppress(OSError):  # it has ended, which `answer` will say
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def answer(self, limit):
        """Return the next answer, or raise saying why there is none, having ended the process."""
        begin = time.perf_counter()
        try:
            line = self._answers.get(timeout=max(0.1, limit))
        except queue.Empty:
            raise WorkError(f"stopped after {time.perf_counter() - begin:.0f} s", self.close()[-2000:]) from None
        if line is None:
            complaint = self.close()
            raise WorkError(last_line(complaint), complaint[-2000:])
        return json.loads(line)

    def close(self):
        """End the process and those that it started, once; return what it wrote to its standard error."""
        if self._errors.closed:
            return ""
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        with self._errors:
            self._errors.seek(0)
            return self._errors.read()


def run(command, environment, limit, cwd=None):
    """Run a command to its end; return its output and how long it took, or raise saying why it failed."""
    begin, pipe = time.perf_counter(), subprocess.PIPE
    options = {"env": environment, "cwd": cwd, "text": True, "errors": "replace", "start_new_session": True}
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, **options)
    try:
        printed, complaint = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, complaint = process.communicate()
        raise WorkError(f"stopped after {limit:.0f} s", complaint[-2000:], printed) from None
    if process.returncode:
        raise WorkError(last_line(complaint), complaint[-2000:], printed, process.returncode)
    return {"stdout": printed, "seconds": time.perf_counter() - begin}


def last_line(text):
    """Return the last line of what a process complained of."""
    return (text.strip().splitlines() or ["it ended without a word"])[-1]
