"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from glob import escape
from pathlib import Path

PART = ".part"  # how temporary files end


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whatever happens meanwhile.

    The bytes go to a temporary file beside it, are flushed to the disk, and the file is renamed into place. An OSError
    names the file that was asked for.
    """
    path = Path(path)
    with _temporary(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    _flush_directory(path.parent)


def leftovers(directory: Path, names: Iterable[str]) -> list[Path]:
    """Return the temporary files that killed processes left in a directory, of files with these names."""
    return [path for name in names for path in directory.glob(f".{escape(name)}.*{PART}")]


def held(directory: Path) -> int | None:
    """Hold a directory until the returned handle is closed or the process ends, however it ends.

    Where the system or the file system has no locks, None is returned.

    Raises
    ------
    BlockingIOError
        When another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def check_writable(path: str | Path) -> None:
    """Raise the OSError that `write_whole` would, before the work whose result is to be written."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with _temporary(path):
        pass


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[str]:
    """Make a temporary file beside a path, and remove what is left of it; errors name the path."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        os.close(handle)
        yield temporary
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _flush_directory(directory: Path) -> None:
    """Make a rename last through a power cut, where the system can flush directories."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """Return the process's umask."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
