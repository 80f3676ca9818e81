"""Published files, fetched whole: over https, continued where an earlier try broke off, checked by SHA-256.

A transfer goes to ``NAME.part`` beside the file and is renamed when its digest is right, so that a file of the right
name is always whole. Pooch has the cache's place and the digests; its own transfers cannot be continued.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from xpcnn.errors import DataError

Progress = Callable[[int, int | None, str], Any]

VARIABLE = "XPCNN_DATA"  # of the environment: a directory to use instead of the platform's cache
TIMEOUT = (15.0, 60.0)  # seconds to connect, and without a byte
_MOST_REDIRECTS = 5
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Remote:
    """A published file: its name, size in bytes, SHA-256, and the addresses to get it from, in order."""

    name: str
    size: int
    sha256: str
    mirrors: tuple[str, ...]


class _MirrorError(Exception):
    """What is wrong with a mirror, in words that follow its host's name."""


def cache_directory() -> Path:
    """Return where downloads are kept: ``XPCNN_DATA``, or the platform's directory for caches."""
    import pooch

    named = os.environ.get(VARIABLE, "").strip()
    return Path(named).expanduser() if named else Path(pooch.os_cache("xpcnn"))


def fetch(
    files: Sequence[Remote],
    directory: Path,
    progress: Progress | None = None,
    *,
    schemes: tuple[str, ...] = ("https",),
    timeout: tuple[float, float] = TIMEOUT,
) -> None:
    """Download what a directory lacks of these files.

    Parameters
    ----------
    files : sequence of Remote
        The files; their mirrors are tried in turn, each continuing what the one before has brought.
    directory : path
        Where to put them; it is made if need be.
    progress : callable, optional
        Called with (bytes done, bytes in all, file name) while a file comes.
    schemes : tuple of str
        Which kinds of address may be used, redirections included.
    timeout : (float, float)
        Seconds to wait for a connection and for the next byte.

    Raises
    ------
    DataError
        When a file cannot be had or written; the sentence says which files to put where by hand.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            for file in files:
                if not (directory / file.name).is_file():
                    _from_mirrors(file, directory, progress or _silent, schemes, timeout)
    except _MirrorError as error:
        missing = [file for file in files if not (directory / file.name).is_file()]
        wanted = ", ".join(f"{file.name} ({file.size:,} bytes, SHA-256 {file.sha256})" for file in missing)
        raise DataError(
            f"{missing[0].name} cannot be downloaded ({error}): put {wanted} into {directory} yourself, or into a "
            f"directory that you name with --data-dir."
        ) from None
    except OSError as error:
        raise DataError(f"{directory} cannot take the download: {error.strerror or error}.") from None


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process at a time download into a directory, where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(directory / ".lock", "wb") as lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _from_mirrors(
    file: Remote, directory: Path, progress: Progress, schemes: tuple[str, ...], timeout: tuple[float, float]
) -> None:
    """Get one file from the first mirror that has it, or raise what is wrong with each of them."""
    faults = []
    for url in file.mirrors:
        try:
            return _from_mirror(file, url, directory, progress, schemes, timeout)
        except _MirrorError as error:
            faults.append(f"{urlsplit(url).hostname} {error}")
    raise _MirrorError("; ".join(faults) or "it has no mirror")


def _from_mirror(
    file: Remote,
    url: str,
    directory: Path,
    progress: Progress,
    schemes: tuple[str, ...],
    timeout: tuple[float, float],
) -> None:
    """Get one file from one mirror; what was continued and is wrong then is fetched from its beginning, once."""
    import pooch

    part = directory / f"{file.name}.part"
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before < file.size:
            _transfer(file, url, part, progress, schemes, timeout)
        if pooch.file_hash(str(part), alg="sha256") == file.sha256:
            return os.replace(part, directory / file.name)
        part.unlink()
        if not before:
            raise _MirrorError("has other content (its SHA-256 is wrong)")


def _transfer(
    file: Remote, url: str, part: Path, progress: Progress, schemes: tuple[str, ...], timeout: tuple[float, float]
) -> None:
    """Append what is missing to a partial file, or write it anew if the server does not continue."""
    import requests
    import urllib3

    start = part.stat().st_size if part.exists() else 0
    try:
        with requests.Session() as session:
            response = _opened(session, url, start, schemes, timeout)
            if response.status_code == 416:  # the server has no such range: begin again
                response.close()
                response = _opened(session, url, 0, schemes, timeout)
            with response:
                if response.status_code not in (200, 206):
                    raise _MirrorError(f"answers with status {response.status_code}")
                continued = response.headers.get("content-range", "").startswith(f"bytes {start}-")
                if response.status_code == 206 and not continued:
                    raise _MirrorError("sends another range than it was asked for")
                _receive(response, file, part, start if response.status_code == 206 else 0, progress)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _MirrorError(_in_words(error)) from None


def _opened(session: Any, url: str, start: int, schemes: tuple[str, ...], timeout: tuple[float, float]) -> Any:
    """Ask for a file from a byte on, following redirections to the schemes that are allowed."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            if urlsplit(url).scheme not in schemes:
                raise _MirrorError(f"leads to {url[:200]!r}, which is not {' or '.join(schemes)}")
            response = session.get(url, headers=headers, stream=True, timeout=timeout, allow_redirects=False)
            if not response.is_redirect:
                return response
            url = urljoin(url, response.headers["location"])
        except ValueError:  # of urllib, which reads addresses
            raise _MirrorError("leads to something that is no address") from None
        response.close()
    raise _MirrorError(f"redirects more than {_MOST_REDIRECTS} times")


def _receive(response: Any, file: Remote, part: Path, done: int, progress: Progress) -> None:
    """Write a response's body behind the ``done`` bytes that are there; never more than the file has."""
    with open(part, "ab" if done else "wb") as output:
        progress(done, file.size, file.name)
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            if done + len(chunk) > file.size:
                output.truncate(0)
                raise _MirrorError(f"sends more than the {file.size:,} bytes it should")
            output.write(chunk)
            done += len(chunk)
            progress(done, file.size, file.name)
        output.flush()
        os.fsync(output.fileno())
    if done < file.size:
        raise _MirrorError(f"ended after {done:,} of {file.size:,} bytes")


def _in_words(error: Exception) -> str:
    """Say what went wrong in a connection, after its host's name."""
    import requests
    import urllib3

    if isinstance(error, requests.exceptions.SSLError):
        return "has no valid certificate"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "does not answer"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "broke off"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    return f"cannot be used ({type(error).__name__})"


def _silent(done: int, total: int | None, name: str) -> None:
    """Report nothing."""
