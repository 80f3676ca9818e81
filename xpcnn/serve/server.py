"""The page's server: one file, one question to the model, and a careful door.

Only this machine reaches it unless another address is asked for. As a page of another site can make a browser send
requests here, the names a browser may call this server by are checked (against DNS rebinding), and questions must come
from the page itself. Every connection is one request with a deadline, their number and what they may send are bounded,
and every answer but the page is JSON.
"""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Protocol
from urllib.parse import parse_qs

from xpcnn.errors import XpcnnError

MOST_BYTES = 8 << 20  # of a picture's file
MOST_CONNECTIONS = 16  # at a time; others wait
SECONDS = 10.0  # for a request to arrive, and for its answer to be taken
LINGER = 1.0  # seconds that what was refused unread is read and thrown away, so that the answer arrives
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
METHODS = {"/": "GET", "/model": "GET", "/look": "POST"}


class Answers(Protocol):
    """What the page asks for, see `xpcnn.serve.looking.Looking`."""

    def about(self) -> dict[str, Any]:
        """Return what there is to say about the model."""

    def look(self, content: bytes, chosen: int | None = None) -> dict[str, Any]:
        """Return what the model makes of a picture's file."""


class RefusedError(Exception):
    """A request that is not answered: a status and a sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class PageServer(ThreadingMixIn, HTTPServer):
    """Serves the page about one model; `serve_forever` runs it and `server_close` ends it.

    Parameters
    ----------
    answers : Looking
        Answers what the page asks.
    host : str
        Name or address to listen at.
    port : int
        0 for any that is free.

    Raises
    ------
    XpcnnError
        When nothing can listen there.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answers: Answers, host: str = "127.0.0.1", port: int = 8000) -> None:
        self.answers, self.host = answers, host
        self.free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            self.address_family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            super().__init__(address[:2], Handler)  # type: ignore[arg-type]
        except OSError as error:
            raise XpcnnError(_reason(error, host, port)) from None
        self.open_to_others = not ipaddress.ip_address(self.server_address[0]).is_loopback  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        """The page's address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection once fewer than `MOST_CONNECTIONS` are open."""
        self.free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection, and let another in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about connections that broke."""

    def is_called(self, name: str) -> bool:
        """Whether a browser may call this server by a name: an address cannot be rebound, other names can."""
        if name in ("localhost", self.host.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return self.open_to_others and name == socket.gethostname().lower()
        return self.open_to_others or address.is_loopback


class Handler(BaseHTTPRequestHandler):
    """One connection: one request and its answer."""

    server: PageServer
    server_version, sys_version = "xpcnn", ""
    timeout = SECONDS

    def setup(self) -> None:
        """Give the request one deadline, however slowly it arrives."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Incoming(self.connection, time.monotonic() + SECONDS))

    def handle_one_request(self) -> None:
        """Read a request line and headers, and answer; whoever is late or leaves is let go."""
        self.unread = 0
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer."""
        self._answer("GET")

    def do_HEAD(self) -> None:
        """Answer without the content."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Answer."""
        self._answer("POST")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the library refuses (malformed or too long requests, other methods) as JSON, too."""
        if code == 501:
            self._say(405, {"error": f"the method {self.command} is not allowed."}, {"Allow": "GET, HEAD, POST"})
        else:
            self._say(code, {"error": f"the request is malformed ({message or code})."})

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""

    def _answer(self, method: str) -> None:
        """Check a request and answer it; every fault is a sentence."""
        try:
            try:
                self.unread = int(self.headers.get("Content-Length", "Transfer-Encoding" in self.headers))
            except ValueError:
                raise RefusedError(400, "Content-Length must be a number.") from None
            path = self.path.partition("?")[0]
            self._check(method, path)
            if path == "/":
                self._send_page()
            else:
                self._say(200, self.server.answers.about() if path == "/model" else self._look())
        except RefusedError as refused:
            self._say(refused.status, {"error": str(refused)}, refused.headers)
        except XpcnnError as error:
            self._say(422, {"error": str(error)})
        except MemoryError:
            self._say(507, {"error": "there is not enough memory for this picture."})
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  one request's fault must not become a traceback
            sys.stderr.write(f"xpcnn: error: {type(error).__name__}: {error}\n")
            self._say(500, {"error": "something failed while answering; the terminal says what."})

    def _check(self, method: str, path: str) -> None:
        """Refuse what has a wrong name, place, method or origin."""
        host = self.headers.get("Host", "")
        if not self.server.is_called(_name_of(host)):
            raise RefusedError(403, f"this server is not called {host!r}; open the address that it printed.")
        if path not in METHODS:
            raise RefusedError(404, f"there is nothing at {path}.")
        if method != METHODS[path]:
            raise RefusedError(405, f"{path} takes {METHODS[path]}, not {self.command}.", Allow=METHODS[path])
        if method == "POST":
            origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
            if origin not in (None, f"http://{host}") or site != "same-origin":
                raise RefusedError(403, "only the page itself may ask.")

    def _look(self) -> dict[str, Any]:
        """Read a picture and return what the model makes of it."""
        kind = self.headers.get_content_type()
        if not kind.startswith("image/"):
            raise RefusedError(415, f"the content must be a picture (image/png, image/jpeg, ...), not {kind}.")
        if "Transfer-Encoding" in self.headers or "Content-Length" not in self.headers:
            raise RefusedError(411, "the content's length must be stated.")
        if not 0 < self.unread <= MOST_BYTES:
            raise RefusedError(413 if self.unread > 0 else 400, f"a picture must have 1 to {MOST_BYTES:,} bytes.")
        chosen = self._chosen()
        try:
            content = self.rfile.read(self.unread)
        except TimeoutError:
            self.unread = 0
            raise RefusedError(408, f"the picture did not arrive within {SECONDS:g} seconds.") from None
        if len(content) < self.unread:
            self.unread = 0
            raise RefusedError(400, "the picture ended before its stated length.")
        self.unread = 0
        return self.server.answers.look(content, chosen)

    def _chosen(self) -> int | None:
        """Return the class that the address asks for."""
        text = parse_qs(self.path.partition("?")[2]).get("class", [""])[0]
        if text and not (text.isdecimal() and text.isascii() and len(text) < 10):
            raise RefusedError(400, "class must be a number.")
        return int(text) if text else None

    def _send_page(self) -> None:
        """Send the page, whose own script and style are known by a number used once."""
        nonce = secrets.token_urlsafe(16)
        policy = {"Content-Security-Policy": POLICY.format(nonce)}
        self._send(200, page().replace("NONCE", nonce).encode(), "text/html; charset=utf-8", policy)

    def _say(self, status: int, content: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        """Send JSON."""
        self._send(status, json.dumps(content).encode(), "application/json", headers or {})

    def _send(self, status: int, content: bytes, kind: str, headers: Mapping[str, str]) -> None:
        """Send an answer and end the connection."""
        self.close_connection = True
        self.connection.settimeout(SECONDS)
        self.send_response(status)
        for name, value in {**HEADERS, **headers, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if getattr(self, "command", "") != "HEAD":
            self.wfile.write(content)
        if self.unread > 0:
            self._throw_away()

    def _throw_away(self) -> None:
        """Read for a moment what was refused: closing with bytes unread would destroy the answer on its way."""
        self.connection.shutdown(socket.SHUT_WR)
        end = time.monotonic() + LINGER
        while (left := end - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not self.connection.recv(1 << 16):
                break


class _Incoming(io.RawIOBase):
    """What arrives at a connection until a deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, or raise TimeoutError once the time is over."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


@cache
def page() -> str:
    """Return the page: one file, with the reports' colours in it."""
    text = files("xpcnn.serve").joinpath("page.html").read_text(encoding="utf-8")
    style = files("xpcnn.report").joinpath("style.css").read_text(encoding="utf-8")
    return text.replace("COLOURS", style.partition("}")[0] + "}", 1)  # its first rule, which names them


def _name_of(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.removeprefix("[").removesuffix("]").lower()


def _reason(error: OSError, host: str, port: int) -> str:
    """Say why nothing can listen at an address."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with --port, or 0 for any that is free."
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by you; choose one above 1023 with --port."
    return f"cannot listen at {host}, port {port} ({error.strerror or error}); choose another --host or --port."
