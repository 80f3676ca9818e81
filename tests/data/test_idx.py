"""IDX files, right and wrong in every way."""

from __future__ import annotations

import gzip
import os
import random
import tracemalloc

import numpy as np
import pytest
from samples import idx

from xpcnn import DataError
from xpcnn.data import read_idx

IMAGES = bytes.fromhex("00 00 08 03  00000002 00000003 00000001") + b"abcdef"
LABELS = bytes.fromhex("00 00 08 01  00000004") + bytes([3, 1, 255, 0])


@pytest.fixture(params=["plain", "gzip"])
def packed(request):
    return gzip.compress if request.param == "gzip" else bytes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some-idx-ubyte"


def refusal(path, axes=3, **options):
    """Return the one sentence that a file is refused with."""
    with pytest.raises(DataError) as caught:
        read_idx(path, axes, **options)
    text = str(caught.value)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_values_are_the_files_and_cannot_be_written(path, packed):
    path.write_bytes(packed(IMAGES))
    images = read_idx(path, 3)
    assert images.dtype == np.uint8
    assert images.tolist() == [[[97], [98], [99]], [[100], [101], [102]]]
    assert not images.flags.writeable
    path.write_bytes(packed(LABELS))
    assert read_idx(str(path), 1).tolist() == [3, 1, 255, 0]


def test_a_gzip_file_of_several_members(path):
    path.write_bytes(gzip.compress(LABELS[:6]) + gzip.compress(LABELS[6:]))
    assert read_idx(path, 1).tolist() == [3, 1, 255, 0]


def test_no_images_are_an_empty_array(path, packed):
    path.write_bytes(packed(idx([], (0, 28, 28))))
    assert read_idx(path, 3).shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (idx([[[1]]], start=b"\0\1"), "not an IDX file"),
        (idx([[[1]]], kind=0x0D), "type 0x0d"),
        (idx([1, 2]), "has 1 axes, but 3 were expected"),
        (idx([[[1]]], axes=255), "has 255 axes"),
        (IMAGES[:4], "ends inside its header"),
        (IMAGES[:15], "ends inside its header"),
        (IMAGES[:16], "truncated"),
        (IMAGES[:-1], "5 of the 6 values"),
        (IMAGES + b"\0", "has bytes after the 6 values"),
        (idx([], (1 << 10, 1 << 10, (1 << 10) + 1)), "more than the 1,073,741,824 values"),
        (idx([], (2**32 - 1,) * 3), "more than the 1,073,741,824 values"),
        (idx([], (0, 2**32 - 1, 2**32 - 1)), "more than the 1,073,741,824 values"),
    ],
)
def test_every_fault_is_one_sentence(path, packed, content, says):
    path.write_bytes(packed(content))
    assert says in refusal(path)


def test_what_is_not_a_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing")
    assert "is not a file" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be read" in refusal(tmp_path / "file" / "beneath")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(path):
    path.write_bytes(IMAGES)
    path.chmod(0)
    assert "cannot be read: Permission denied" in refusal(path)


def test_the_cap_is_the_callers(path, packed):
    path.write_bytes(packed(IMAGES))
    assert read_idx(path, 3, cap=6).size == 6
    assert "more than the 5 values" in refusal(path, cap=5)


@pytest.mark.parametrize("damage", ["header", "deflate", "checksum", "length", "cut", "cut in the checksum", "tail"])
def test_damaged_gzip(path, damage):
    whole = bytearray(gzip.compress(idx(np.arange(3000) % 251, (30, 10, 10))))
    if damage == "cut":
        whole = whole[: len(whole) // 2]
    elif damage == "cut in the checksum":
        whole = whole[:-5]
    elif damage == "tail":
        whole += b"tail"
    else:
        whole[{"header": 2, "deflate": 14, "checksum": -8, "length": -1}[damage]] ^= 0xFF
    path.write_bytes(whole)
    assert "corrupt or truncated gzip" in refusal(path)


@pytest.mark.parametrize(
    ("lengths", "cap", "says"),
    [
        ((16, 1 << 10, 1 << 10), 1 << 20, "more than"),  # honest, but over the cap
        ((1, 10, 10), 1 << 20, "bytes after"),  # modest, but with 64 MiB behind it
        ((1000, 1000, 1000), 1 << 30, "truncated"),  # claims what no file of this size can hold
        ((2**32 - 1, 1, 1), 1 << 40, "truncated"),
    ],
)
def test_no_memory_is_taken_for_what_a_file_claims(path, packed, lengths, cap, says):
    content = idx([], lengths) + bytes(1 << 26 if packed is gzip.compress else 1 << 10)
    path.write_bytes(packed(content))
    tracemalloc.start()
    try:
        assert says in refusal(path, cap=cap)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("axes", [1, 3])
def test_mutated_files_are_read_or_refused(path, packed, axes):
    rng = random.Random(20_240_607)
    plain = idx(np.arange(24), (24,) if axes == 1 else (2, 3, 4))
    whole = packed(plain)
    counts = {"read": 0, "refused": 0}
    for _ in range(700):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.randrange(len(damaged))
            match rng.randrange(5):
                case 0:
                    damaged[place] ^= 1 << rng.randrange(8)
                case 1:
                    damaged[place] = rng.choice([0, 1, 127, 255])
                case 2:
                    damaged[place:place] = rng.randbytes(rng.randrange(1, 5))
                case 3 if len(damaged) > 9:
                    del damaged[place : place + rng.randrange(1, 5)]
                case _ if place > 8:
                    del damaged[place:]
        path.write_bytes(damaged)
        try:
            values = read_idx(path, axes)
        except DataError:
            counts["refused"] += 1
        else:
            content = plain if packed is gzip.compress else bytes(damaged)  # gzip's checksum lets no other pass
            lengths = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
            assert values.shape == tuple(lengths)
            assert values.tobytes() == content[4 + 4 * axes :]
            counts["read"] += 1
    assert min(counts.values()) > 20, counts
