"""The part of HDF5 that Keras writes, read with suspicion.

HDF5's own library takes a damaged file at its word: the length of one text may make it allocate gigabytes, or compute
for minutes. Here every address and length is held against the file, and the work is bounded by its size. Read are files
of the format's first version, which h5py writes unless told otherwise: groups of hard links, arrays in one piece, texts
as attributes.

The HDF Group, "HDF5 file format specification", version 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from typing import Any, BinaryIO, NamedTuple

import numpy as np

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NEWER = (
    "it is in HDF5's newer format or has links, neither of which Keras writes; "
    "h5py.File(path, 'w', libver='earliest') writes what is read here"
)
SPACE, TYPE, FILES, LAYOUT, FILTERS, ATTRIBUTE, CONTINUED, TABLE = 0x1, 0x3, 0x7, 0x8, 0xB, 0xC, 0x10, 0x11
LINKS = (0x2, 0x6)
INTEGER, FLOAT, TEXT, OPAQUE, VARIABLE = 0, 1, 3, 5, 9  # classes of types
FLOATS = {  # bit offset, precision, place and size of exponent and mantissa, bias
    (0, 16, 10, 5, 0, 10, 15): "f2",
    (0, 32, 23, 8, 0, 23, 127): "f4",
    (0, 64, 52, 11, 0, 52, 1023): "f8",
    (0, 16, 7, 8, 0, 7, 127): "bfloat16",
}
NAMES = {INTEGER: "integers", TEXT: "text", OPAQUE: "opaque", VARIABLE: "values of variable length"}


class Array(NamedTuple):
    """Where an array lies, and its type: ``<f4``, ``<bfloat16``, or a word for what is not read."""

    shape: tuple[int, ...]
    type: str
    place: int
    size: int  # in bytes


class Reader:
    """Reads groups, arrays and texts by the addresses of their headers; raises ValueError for what is not whole."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._budget = 8 * size + (1 << 24)  # bytes that all but arrays may be read from, some of them repeatedly
        start = self._bytes(0, 96)
        if start[:8] != SIGNATURE or start[8] > 1 or start[13:15] != b"\x08\x08":
            raise ValueError(NEWER if start[:8] == SIGNATURE else "it does not begin as HDF5 does")
        first = 24 if start[8] == 0 else 28
        base, *_, self.root = struct.unpack_from("<6Q", start, first)
        if base:
            raise ValueError("its addresses do not begin at 0")

    def members(self, address: int) -> dict[str, int] | None:
        """Return a group's members, name -> address; None if what lies there is no group."""
        kinds = self._messages(address)
        if any(kind in LINKS for kind, _ in kinds):
            raise ValueError(NEWER)
        table = next((body for kind, body in kinds if kind == TABLE), None)
        if table is None:
            return None
        tree, heap = struct.unpack_from("<2Q", table)
        signature, length, _, names = struct.unpack("<4s4x3Q", self._bytes(heap, 32))
        if signature != b"HEAP":
            raise ValueError("a group has no names")
        text = self._bytes(names, length)
        found = {}
        for place, member, kind in self._entries(tree, 255):
            if kind == 2:
                raise ValueError(NEWER)
            found[text[place : text.index(b"\0", place)].decode()] = member
        return found

    def text(self, address: int, name: str) -> str | None:
        """Return an attribute if it is one text."""
        for kind, body in self._messages(address):
            if kind == ATTRIBUTE and (found := self._attribute(body))[0] == name:
                return found[1]
        return None

    def array(self, address: int) -> Array:
        """Return where an array lies."""
        found = dict(self._messages(address))
        if FILES in found or FILTERS in found or not {SPACE, TYPE, LAYOUT} <= found.keys():
            raise ValueError("an array is in pieces, compressed or in another file, unlike what Keras writes")
        shape, (kind, itemsize) = _shape(found[SPACE]), _type(found[TYPE])
        if shape is None:
            raise ValueError("an array has no shape")
        version, layout = found[LAYOUT][:2]
        if version != 3 or layout != 1:  # 1: in one piece
            raise ValueError("an array is in pieces, compressed or in another file, unlike what Keras writes")
        place, size = struct.unpack_from("<2Q", found[LAYOUT], 2)
        if kind == "opaque" and itemsize == 2 and self.text(address, "dtype") == "bfloat16":
            kind = "<bfloat16"
        if prod(shape) * itemsize != size or place + size > self._size:
            raise ValueError(f"an array of shape {shape} is larger than the file, or than what is stored of it")
        return Array(shape, kind, place, size)

    def read(self, array: Array) -> np.ndarray[Any, Any]:
        """Read an array of floats; the bits of bfloat16 as whole numbers."""
        self._file.seek(array.place)
        content = self._file.read(array.size)
        dtype = array.type.replace("bfloat16", "u2")
        return np.frombuffer(content, dtype).reshape(array.shape)

    def _bytes(self, place: int, count: int) -> bytes:
        """Return bytes of the file, if they are there and not too much has been read."""
        self._budget -= count + 64
        if place + count > self._size or self._budget < 0:
            raise ValueError("it is cut off, or goes round in circles")
        self._file.seek(place)
        return self._file.read(count)

    def _messages(self, address: int) -> list[tuple[int, bytes]]:
        """Return what an object's header says, by kind."""
        version, _, count, _, length = struct.unpack("<BBHII", self._bytes(address, 12))
        if version != 1:
            raise ValueError(NEWER)
        blocks: list[tuple[int, int]] = [(address + 16, length)]
        found: list[tuple[int, bytes]] = []
        while blocks:
            place, length = blocks.pop(0)
            block, at = self._bytes(place, length), 0
            while at + 8 <= length and len(found) < count:
                kind, size, flags = struct.unpack_from("<HHB", block, at)
                body = block[at + 8 : at + 8 + size]
                if flags & 2 or len(body) != size:
                    raise ValueError("a header is cut off, or shares what it says")
                if kind == CONTINUED:
                    blocks.append(struct.unpack_from("<2Q", body))
                found.append((kind, body))
                at += 8 + size
        return found

    def _entries(self, address: int, below: int) -> Iterator[tuple[int, int, int]]:
        """Yield a group's members below a node of its tree: where the name is, the header's address, the kind."""
        start = self._bytes(address, 8)
        if start[:4] == b"SNOD":
            count = int.from_bytes(start[6:8], "little")
            yield from struct.iter_unpack("<QQI20x", self._bytes(address + 8, 40 * count))
            return
        level, count = start[5], int.from_bytes(start[6:8], "little")
        if start[:5] != b"TREE\0" or level >= below:
            raise ValueError("a group's tree is none")
        for (child,) in struct.iter_unpack("<8xQ", self._bytes(address + 24, 16 * count)):
            yield from self._entries(child, level)

    def _attribute(self, body: bytes) -> tuple[str, str | None]:
        """Return an attribute's name, and its value if that is one text."""
        version, _, name, kind, space = struct.unpack_from("<BBHHH", body)
        at = 9 if version == 3 else 8
        starts = []
        for length in (name, kind, space):
            starts.append(at)
            at += -(-length // 8) * 8 if version == 1 else length
        called = body[starts[0] : starts[0] + name].rstrip(b"\0").decode()
        (word, size), shape = _type(body[starts[1] :]), _shape(body[starts[2] :])
        if shape != () or word not in (NAMES[TEXT], NAMES[VARIABLE]):
            return called, None
        content = body[at : at + size]
        return called, (content if word == NAMES[TEXT] else self._variable(content)).rstrip(b"\0").decode()

    def _variable(self, reference: bytes) -> bytes:
        """Return a text that lies in a heap of its own."""
        length, heap, number = struct.unpack("<IQI", reference)
        signature, size = struct.unpack("<4s4xQ", self._bytes(heap, 16))
        if signature != b"GCOL":
            raise ValueError("a text is not there")
        content, at = self._bytes(heap, size), 16
        while at + 16 <= size:
            index, stored = struct.unpack_from("<H6xQ", content, at)
            if index in (number, 0):
                break
            at += 16 + -(-stored // 8) * 8
        if at + 16 > size or index != number or length > stored:
            raise ValueError("a text is not there")
        return content[at + 16 : at + 16 + length]


def _shape(body: bytes) -> tuple[int, ...] | None:
    """Return a shape; None for no values at all."""
    version, rank, _, kind = body[:4]
    if version not in (1, 2) or (version == 2 and kind == 2):
        return None
    return struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def _type(body: bytes) -> tuple[str, int]:
    """Return a type as ``<f4``, or a word for what is no float; and its size in bytes."""
    kind, order, size = body[0] & 15, body[1] & 1, int.from_bytes(body[4:8], "little")
    if kind != FLOAT:
        return NAMES.get(kind, "no numbers"), size
    return "<>"[order] + FLOATS.get(struct.unpack_from("<HHBBBBI", body, 8), "no known floats"), size
