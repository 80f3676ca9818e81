"""Protobuf's wire format, taken apart without believing it: nothing is copied, nothing allocated ahead of its bytes.

Protocol Buffers documentation, "Encoding". A file of a few megabytes can hold millions of empty messages, each of which
a general parser makes an object of; here the reader takes field by field and refuses at the first that makes no sense.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from xpcnn.errors import DataError

MOST_FIELDS = 500_000  # of a file; a network of ten thousand nodes has about half of that
WIDTHS = {1: 8, 5: 4}  # bytes of the wire's kinds of fixed width

Value = int | memoryview
Host = np.ndarray[Any, Any]


class Wire:
    """Reads messages and counts what it has read."""

    def __init__(self) -> None:
        self.left = MOST_FIELDS

    def fields(self, data: memoryview) -> Iterator[tuple[int, Value]]:
        """Yield each field's number and value: a number, or bytes of a text, a message or a packed list."""
        at = 0
        while at < len(data):
            self._count()
            key, at = _varint(data, at)
            number, kind = key >> 3, key & 7
            if kind == 0:
                value, at = _varint(data, at)
                yield number, value
                continue
            length, at = _varint(data, at) if kind == 2 else (WIDTHS.get(kind, -1), at)
            if not number or length < 0:
                raise DataError("it has bytes that are no field.")
            if length > len(data) - at:
                raise DataError("it is truncated: a field is longer than what is there.")
            yield number, data[at : at + length]
            at += length

    def numbers(self, values: Iterable[Value]) -> list[int]:
        """Return a repeated field of whole numbers, packed or not."""
        found = []
        for value in values:
            if isinstance(value, int):
                found.append(_signed(value))
                continue
            at = 0
            while at < len(value):
                self._count()
                number, at = _varint(value, at)
                found.append(_signed(number))
        return found

    def _count(self) -> None:
        """Take note of a field, or raise if there are too many."""
        self.left -= 1
        if self.left < 0:
            raise DataError(f"it has more than {MOST_FIELDS:,} fields, which no network needs.")


def number(value: Value) -> int:
    """Return a whole number."""
    if not isinstance(value, int):
        raise DataError("it has a text where a number belongs.")
    return _signed(value)


def block(value: Value) -> memoryview:
    """Return the bytes of a text, a message or a list."""
    if isinstance(value, int):
        raise DataError("it has a number where a text or a message belongs.")
    return value


def text(value: Value) -> str:
    """Return a text; bytes that are none show as such."""
    return bytes(block(value)).decode("utf-8", "backslashreplace")


def floats(values: Iterable[Value], dtype: str) -> Host:
    """Return a repeated field of floats, packed or not, as an array."""
    pieces = [block(value) for value in values]
    if any(len(piece) % np.dtype(dtype).itemsize for piece in pieces):
        raise DataError("it has a list of floats that ends in the middle of one.")
    return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), dtype)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of seven bits per byte, and where it ends."""
    result = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DataError("it is truncated in the middle of a number.")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, at
    raise DataError("it has a number of more than 64 bits.")


def _signed(value: int) -> int:
    """Return a number of 64 bits in two's complement."""
    return value - (1 << 64) if value >> 63 else value
