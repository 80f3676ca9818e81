"""A rank that dies ends the run: on all ranks, within a second or so, with one sentence."""

from __future__ import annotations

import atexit
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from xpcnn.parallel import watcher
from xpcnn.parallel.group import Group
from xpcnn.parallel.watcher import DIED, PATIENCE, Line, Message

REACH = 5.0  # seconds that a rank tries each of the names of the watcher's machine
ANSWER = 0.2  # seconds that the launcher has for its answer


class Watch:
    """What ends this rank when another has died, and the others when this one has.

    MPI alone lets ranks wait for a dead one for ever, unless their launcher ends them. Each rank therefore holds a
    connection to a small process on rank 0's machine (`xpcnn.parallel.watcher`), and a thread waits for its word. A
    rank that is stopped or slow is not dead; one that ends without `close` is, an error that nobody caught included.

    Ranks that end because another died have exit status 1.

    Attributes
    ----------
    advice : str
        What to do then, to be said after a semicolon. Any rank may set it at any time; the last one counts.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._advice = ""
        self._line: Line | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._first_host, self._speaker = "", 0
        self._launcher = -1  # the connection to hydra, the launcher of MPICH

    def start(self) -> Watch:
        """Connect all ranks, which all call this; does nothing for one process alone, and where there is no fork.

        Ranks that cannot reach the watcher go on without; rank 0 says so.
        """
        group = self._group
        if group.size == 1 or not hasattr(os, "fork"):
            return self
        self._launcher = _launcher()  # before the watcher: what is opened last, Linux closes first when a process dies
        own, found = _hire(group) if group.rank == 0 else (None, None)
        found = group.first(found)
        self._line = own or _connected(group, found)
        told = group.gathered([self._line is not None, socket.gethostname()])
        hosts = [host for _, host in told]
        self._first_host = hosts[0]
        self._speaker = next((rank for rank, host in enumerate(hosts) if host != hosts[0]), 0)
        unseen = [str(rank) for rank, (is_there, _) in enumerate(told) if not is_there]
        if unseen and group.rank == 0:
            which = f"rank {unseen[0]}" if len(unseen) == 1 else f"ranks {', '.join(unseen)}"
            _say(f"xpcnn: {which} cannot be watched from {hosts[0]}: if one dies, the launcher has to end the others.")
        if self._line is not None:
            self._listen(self._line)
        return self

    @property
    def advice(self) -> str:
        """Return what was set."""
        return self._advice

    @advice.setter
    def advice(self, text: str) -> None:
        self._advice = text
        if self._line is not None:
            self._line.send({"advice": text})

    def close(self) -> None:
        """Say that this rank ends in order; the order of ranks does not matter."""
        if self._thread is None or self._line is None:
            return
        self._is_closing = True
        self._group.is_watched = False
        self._line.send({"goodbye": True})
        self._line.finish()
        self._thread.join(PATIENCE)  # until the watcher has closed its end, so that it has read the word
        self._line.close()
        self._line = self._thread = None
        atexit.unregister(self._end_unclosed)
        if self._launcher >= 0:
            os.close(self._launcher)
            self._launcher = -1

    def fail(self, sentence: str, status: int) -> NoReturn:
        """End all ranks with a status, because this one has an error of its own.

        Parameters
        ----------
        sentence : str
            What is said, as it is; of several ranks' that fail together, the first one's alone.
        status : int
            The exit status.
        """
        _flush()
        if self._thread is not None and self._line is not None:
            self._line.send({"fail": sentence, "status": status})
            self._thread.join(PATIENCE)  # which ends this process
        _say(sentence)
        self._leave(status)

    def _listen(self, line: Line) -> None:
        """Begin to wait for the watcher's word."""
        if self._group.rank == 0:
            line.send({"complete": True})
        if self._advice:
            line.send({"advice": self._advice})
        self._group.is_watched = True
        self._thread = threading.Thread(target=self._wait, args=(line,), name="xpcnn-watch", daemon=True)
        self._thread.start()
        atexit.register(self._end_unclosed)

    def _wait(self, line: Line) -> None:
        """Wait for the watcher's word, and end with the status that it says."""
        while (messages := line.receive()) is not None:
            for message in messages:
                if "end" in message:
                    self._leave(message["end"])
        if not self._is_closing:
            if self._group.rank == self._speaker:
                _say(f"xpcnn: what watches the ranks, on {self._first_host}, cannot be reached, so all ranks end.")
            self._leave(DIED)

    def _end_unclosed(self) -> None:
        """End at once when Python ends without `close`, since MPI would wait for the others at its own end."""
        _flush()
        self._is_closing = True
        if self._thread is not None and self._line is not None:
            self._line.finish()
            self._thread.join(PATIENCE)  # until the watcher has said it
        self._leave(DIED)

    def _leave(self, status: int) -> NoReturn:
        """End this process from any thread; the launcher is told as at an orderly end, lest it speaks of a crash."""
        with suppress(OSError, ValueError):
            os.write(self._launcher, b"cmd=finalize\n")
            select.select([self._launcher], [], [], ANSWER)
        _forget_shared_memory()
        os._exit(status)


def _hire(group: Group) -> tuple[Line | None, Message | None]:
    """Start the watcher; return the connection to it, and what other ranks need to know to find it."""
    token, host, local = secrets.token_hex(16), socket.gethostname(), group.local_size == group.size
    own, its = socket.socketpair()
    line = Line(own)
    line.send({"token": token, "size": group.size, "host": host, "local": local})
    command = [sys.executable, "-I", "-S", watcher.__file__]
    with its, suppress(OSError, subprocess.SubprocessError):
        nothing = subprocess.DEVNULL
        subprocess.run(command, stdin=its.fileno(), stdout=nothing, stderr=_stderr(), start_new_session=True)
    answer = line.receive()
    if not answer:
        line.close()
        return None, None
    names = ["127.0.0.1"] if local else [host, *_addresses()]
    return line, {"names": names, "port": answer[0]["port"], "token": token}


def _addresses() -> list[str]:
    """Return what may be this machine's address for others: that of its way out, if it has one; nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # an address of nobody, for documentation (RFC 5737)
        return [way.getsockname()[0]]
    return []


def _connected(group: Group, found: Message | None) -> Line | None:
    """Return this rank's connection to the watcher, or None."""
    if found is None:
        return None
    for name in found["names"]:
        with suppress(OSError):
            connection = socket.create_connection((name, found["port"]), REACH)
            watcher.keep_alive(connection)
            line = Line(connection)
            line.send({"token": found["token"], "rank": group.rank, "host": socket.gethostname()})
            if line.receive():  # its welcome
                connection.settimeout(None)
                return line
            connection.close()
    return None


def _launcher() -> int:
    """Return a copy of this rank's connection to hydra, the launcher of MPICH, which speaks PMI 1; else -1."""
    if "MPI_LOCALNRANKS" in os.environ:  # which hydra sets
        with suppress(KeyError, OSError, ValueError):
            return os.dup(int(os.environ["PMI_FD"]))
    return -1


def _stderr() -> int:
    """Return the number of standard error, or of nothing."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed, or is not a file
        return subprocess.DEVNULL


def _forget_shared_memory() -> None:
    """Take away the names of MPICH's shared memory, which it does itself only at an orderly end."""
    with suppress(OSError), open("/proc/self/maps") as maps:
        for name in {line.split(maxsplit=5)[5].strip() for line in maps if "/dev/shm/mpich" in line}:
            with suppress(OSError):
                os.unlink(name)


def _say(text: str) -> None:
    """Write a line to standard error, if there is one."""
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _flush() -> None:
    """Write what is still to be written to standard output and error."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
