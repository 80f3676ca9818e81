"""Which pictures a command line means, and reading them in batches."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import click
import numpy as np

from xpcnn.cli.common import printable
from xpcnn.data.listing import SUFFIXES
from xpcnn.errors import DataError, XpcnnError
from xpcnn.kernels.threads import thread_count

Host = np.ndarray[Any, Any]

LONGEST = 1 << 16  # bytes of a path on standard input


class Faults:
    """Says what is wrong with single files at once, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, fault: str) -> None:
        """Say it."""
        self.count += 1
        complain(fault)


def complain(fault: str) -> None:
    """Say what is wrong with a file, in one line; the others are done all the same."""
    click.echo(f"xpcnn: error: {printable(' '.join(fault.split()))}", err=True)


class Batch(NamedTuple):
    """Pictures that were read, with their names, and what is wrong with those that were not."""

    names: list[str]
    images: Host  # (N, C, H, W)
    faults: list[str]


def pictures(paths: Iterable[str], end: bytes, fault: Faults) -> Iterator[str]:
    """Yield the files that paths mean, found as they are asked for.

    Parameters
    ----------
    paths : iterable of str
        Files, folders, and ``-`` for a list on standard input.
    end : bytes
        What a path of that list ends with.
    fault : Faults
        Told of folders that cannot be read or hold no pictures.
    """
    for path in paths:
        if path == "-":
            yield from pictures(_listed(sys.stdin.buffer if sys.stdin else io.BytesIO(), end), end, fault)
        elif os.path.isdir(path):
            yield from _within(path, fault)
        else:
            yield path


def _listed(stream: Any, end: bytes) -> Iterator[str]:
    """Yield the paths of a list, as they come; empty lines are none."""
    rest = b""
    while piece := stream.read1(LONGEST):
        *whole, rest = (rest + piece).split(end)
        if len(rest) > LONGEST:
            raise XpcnnError(f"standard input has a line of more than {LONGEST:,} bytes, which is no path.")
        yield from _decoded(whole, end)
    yield from _decoded([rest], end)


def _decoded(lines: Iterable[bytes], end: bytes) -> Iterator[str]:
    """Return lines as paths; a dash is a file here."""
    for line in lines:
        path = os.fsdecode(line if end == b"\0" else line.removesuffix(b"\r"))
        if path:
            yield f".{os.sep}-" if path == "-" else path


def _within(folder: str, fault: Faults) -> Iterator[str]:
    """Yield a folder's pictures, sorted, and then those of the folders in it; links to folders are not followed."""
    found = False

    def unreadable(error: OSError) -> None:
        fault(f"{error.filename}: {error.strerror}.")

    for directory, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                found = True
                yield os.path.join(directory, name)
    if not found:
        fault(f"there are no pictures in {folder} (files named {', '.join(SUFFIXES)}).")


def cut(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield names in lists of a size, the last one short."""
    coming = iter(names)
    return iter(lambda: list(islice(coming, size)), [])


def read_batches(batches: Iterator[list[str]], read: Callable[[str], Host]) -> Iterator[Batch]:
    """Read batches of files, the next one meanwhile.

    Parameters
    ----------
    batches : iterator of lists of str
        The files, asked for one list ahead.
    read : function
        Returns a file's picture (C, H, W); of what it raises, DataErrors become the batch's faults.
    """
    with ThreadPoolExecutor(thread_count()) as pool:

        def begun() -> list[tuple[str, Future[Host]]]:
            return [(name, pool.submit(read, name)) for name in next(batches, [])]

        try:
            coming = begun()
            while coming:
                batch, coming = coming, begun()
                yield _finished(batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(batch: list[tuple[str, Future[Host]]]) -> Batch:
    """Wait for a batch's pictures."""
    names, images, faults = [], [], []
    for name, future in batch:
        try:
            images.append(future.result())
            names.append(name)
        except DataError as error:
            faults.append(str(error))
    return Batch(names, np.stack(images) if images else np.empty(0), faults)
