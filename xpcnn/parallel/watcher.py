"""The process that watches over all ranks: each holds a connection to it, which the kernel closes when the rank dies.

It is a process of its own because most launchers kill every rank as soon as they see one dead, so that no rank could
be sure to say what has happened. `xpcnn.parallel.watch` starts it on rank 0's machine, as a script; it ends with the
last rank.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
from contextlib import suppress
from typing import Any

DIED = 1  # the exit status of ranks that end because another has died
LONGEST = 1 << 20  # bytes of a message
PATIENCE = 2.0  # seconds that a rank may take over reading or writing one

Message = dict[str, Any]


class Line:
    """A connection on which messages travel as lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def fileno(self) -> int:
        """Return the connection's number, for selectors."""
        return self._connection.fileno()

    def send(self, message: Message) -> None:
        """Send a message; one to a connection that is broken is lost."""
        with suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """Wait for bytes and return the messages that are whole by now; None at the connection's end."""
        try:
            data = self._connection.recv(1 << 16)
            *lines, self._rest = (self._rest + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError):
            return None
        if not data or len(self._rest) > LONGEST or not all(isinstance(message, dict) for message in messages):
            return None
        return messages

    def finish(self) -> None:
        """Send nothing more: the other end reads what was sent, and then the connection's end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


class Watcher:
    """Hears from all ranks, says what has happened and tells the others to end.

    Parameters
    ----------
    first : Line
        The connection to rank 0.
    token : str
        What a rank must know.
    size : int
        The number of ranks.
    host : str
        Rank 0's machine.
    local : bool
        Whether all ranks are on it, so that nothing needs to listen on the network.
    """

    def __init__(self, first: Line, token: str, size: int, host: str, local: bool) -> None:
        self._token, self._size, self._advice = token, size, ""
        self._status: int | None = None  # that all end with
        self._ranks = {first: (0, host)}  # by connection; strangers have none
        self._done: set[Line] = set()
        self._server = _server(local, size)
        self._selector = selectors.DefaultSelector()  # epoll tells first what happened first
        for item in (first, self._server):
            self._selector.register(item, selectors.EVENT_READ)
        first.send({"port": self._server.getsockname()[1]})

    def run(self) -> None:
        """Listen until every rank is gone."""
        while self._ranks:
            ended = []
            for key, _ in self._selector.select():
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.fileobj, Line) and self._hear(key.fileobj):
                    ended.append(key.fileobj)
            for line in ended:  # after all that was said before
                self._lose(line)
        self._server.close()
        self._selector.close()

    def _accept(self) -> None:
        """Take a connection, whose first message shall say whose it is."""
        with suppress(OSError):
            connection, _ = self._server.accept()
            keep_alive(connection)
            connection.settimeout(PATIENCE)
            self._selector.register(Line(connection), selectors.EVENT_READ)

    def _hear(self, line: Line) -> bool:
        """Do what a connection's messages say, and return whether it is at its end, or a stranger's."""
        messages = line.receive()
        for message in messages or ():
            if line in self._ranks:
                self._obey(line, message)
            elif message.get("token") == self._token:
                self._ranks[line] = (int(message["rank"]), str(message["host"]))
                line.send({"welcome": True})
        return messages is None or line not in self._ranks

    def _obey(self, line: Line, message: Message) -> None:
        """Do what a rank says."""
        self._advice = message.get("advice", self._advice)
        if "complete" in message:  # nobody else will come
            self._selector.unregister(self._server)
            self._server.close()
        if "goodbye" in message:
            self._done.add(line)
        if "fail" in message:
            self._end(message["fail"], message["status"])

    def _lose(self, line: Line) -> None:
        """Let go of a connection; a rank that has not said goodbye has died."""
        self._selector.unregister(line)
        rank, host = self._ranks.pop(line, (None, ""))
        if rank is not None and line not in self._done:
            advice = f"; {self._advice}" if self._advice else ""
            self._end(f"xpcnn: rank {rank} (of {self._size}, on {host}) has died, so all ranks end{advice}.", DIED)
        line.close()

    def _end(self, sentence: str, status: int) -> None:
        """Say why all ranks end, and end them; what comes after the first reason follows from it."""
        if self._status is None:
            self._status = status
            with suppress(OSError):
                os.write(2, f"{sentence}\n".encode(errors="surrogateescape"))
            for line in self._ranks:
                line.send({"end": status})


def keep_alive(connection: socket.socket) -> None:
    """Have a connection break within about ten seconds when the other machine, or the way there, is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _server(local: bool, size: int) -> socket.socket:
    """Listen on a free port: of this machine alone, or of all its addresses."""
    if local:
        return socket.create_server(("127.0.0.1", 0), backlog=size)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=size, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=size)


def main() -> None:
    """Leave the process that started this, and watch; the connection to rank 0 is standard input."""
    if os.fork():
        os._exit(0)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # are the ranks' to heed
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    first = Line(socket.socket(fileno=0))
    messages: list[Message] | None = []
    while messages == []:
        messages = first.receive()
    if messages:
        Watcher(first, **messages[0]).run()


if __name__ == "__main__":
    main()
