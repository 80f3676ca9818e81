"""A strict, bounded reader of the IDX format, plain or gzip-compressed.

Format: two zero bytes, one byte for the type, one for the number of axes, the axes' lengths as big-endian 32-bit
integers, then the values (http://yann.lecun.com/exdb/mnist, section "the IDX file format").
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from xpcnn.errors import DataError

UBYTE = 0x08
CAP = 1 << 30  # bytes of values
_MOST_DEFLATE = 1032  # a gzip stream expands at most this many times
_CHUNK = 1 << 20


def read_idx(path: str | Path, axes: int, *, cap: int = CAP) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an IDX file of unsigned bytes.

    Parameters
    ----------
    path : path
        The file; gzip is recognised by its first bytes.
    axes : int
        The number of axes expected: 3 for images, 1 for labels.
    cap : int
        The most bytes of values to accept.

    Returns
    -------
    numpy.ndarray
        Read-only uint8 values of the shape that the header states.

    Raises
    ------
    DataError
        When the file is missing, of another kind, corrupt, truncated, too long or too large. Nothing is allocated
        from what a header claims before the file has been found to be able to hold it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file.")
    try:
        with open(path, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _read(raw, path, axes, cap, size)
            with gzip.open(raw, "rb") as file:
                return _read(file, path, axes, cap, size * _MOST_DEFLATE)  # type: ignore[arg-type]
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is a corrupt or truncated gzip file ({error}).") from None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _read(file: IO[bytes], path: Path, axes: int, cap: int, most: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read header and values from an open file that can hold at most ``most`` bytes."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise DataError(f"{path} is not an IDX file: it starts with {head!r}, not two zero bytes, a type and a rank.")
    if head[2] != UBYTE:
        raise DataError(f"{path} holds IDX type 0x{head[2]:02x}; only unsigned bytes (0x08) are read.")
    if head[3] != axes:
        raise DataError(f"{path} has {head[3]} axes, but {axes} were expected (3 for images, 1 for labels).")
    lengths = file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"{path} ends inside its header.")
    shape = struct.unpack(f">{axes}I", lengths)
    count = prod(shape)
    if prod(max(1, length) for length in shape) > cap:  # beside a 0, too: NumPy has no such shapes
        raise DataError(f"{path} claims the shape {shape}, more than the {cap:,} values that are accepted.")
    if count > most:
        raise DataError(f"{path} is truncated: its header claims {count:,} values (shape {shape}), it is too short.")
    values = bytearray()
    while len(values) <= count:  # one byte more than claimed would be too many
        chunk = file.read(min(_CHUNK, count + 1 - len(values)))
        if not chunk:
            break
        values += chunk
    if len(values) < count:
        raise DataError(f"{path} is truncated: {len(values):,} of the {count:,} values its header claims are there.")
    if len(values) > count:
        raise DataError(f"{path} has bytes after the {count:,} values that its header claims.")
    return np.frombuffer(bytes(values), dtype=np.uint8).reshape(shape)
