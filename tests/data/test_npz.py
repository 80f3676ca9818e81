"""Data sets in .npz files: every layout, and what is refused before memory is taken for it."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from xpcnn import DataError, XpcnnError, load_dataset
from xpcnn.data.npz import read_npz

GREY = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)
COLOUR = np.arange(6 * 3 * 5 * 4, dtype=np.uint16).astype(np.uint8).reshape(6, 3, 5, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.npz"


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        read_npz(path, **options)
    text = str(caught.value)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(path, kind=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize("store", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("stored", "images"),
    [
        (GREY, GREY[:, None]),
        (np.asfortranarray(GREY), GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
    ],
)
def test_every_layout(path, store, stored, images):
    store(path, x_train=stored, y_train=LABELS.astype(np.uint8)[:, None], x_test=stored[:2], y_test=LABELS[:2])
    train, test = load_dataset(f"npz:{path}")
    assert np.array_equal(train.images, images)
    assert np.array_equal(test.images, images[:2])
    assert train.labels.tolist() == LABELS.tolist()
    assert test.labels.tolist() == [0, 1]
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.image_shape == images.shape[1:]
    assert np.array_equal(train.read(np.array([3, 0])), images[[3, 0]])


def test_other_names_and_classes(path):
    save(path, images=GREY, labels=LABELS, test_images=GREY, test_labels=LABELS, classes=["cat", "dog", "owl"])
    train, test = read_npz(path)
    assert train.classes == test.classes == ("cat", "dog", "owl")
    assert len(test) == 6


def test_without_a_test_part_each_class_is_split(path):
    labels = np.repeat([0, 1, 2], [20, 10, 1])
    images = np.broadcast_to(np.arange(31, dtype=np.uint8)[:, None, None], (31, 2, 2))
    save(path, images=images, labels=labels)
    train, test = read_npz(path, validation=0.3, seed=1)
    assert np.bincount(test.labels).tolist() == [6, 3]
    assert np.bincount(train.labels).tolist() == [14, 7, 1]
    where = [part.images[:, 0, 0, 0] for part in (train, test)]
    assert sorted(np.concatenate(where)) == list(range(31))
    assert all(np.array_equal(labels[rows], part.labels) for rows, part in zip(where, (train, test), strict=True))
    assert read_npz(path, validation=0.3, seed=1)[1].fingerprint() == test.fingerprint()
    assert read_npz(path, validation=0.3, seed=2)[1].fingerprint() != test.fingerprint()
    for wrong in (0, 1, -0.5, "half", float("nan"), True):
        with pytest.raises(XpcnnError, match="validation must be a share"):
            read_npz(path, validation=wrong)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "has neither x_train and y_train nor images and labels"),
        ({"x_train": GREY}, "has no y_train"),
        ({"labels": LABELS}, "has no images"),
        ({"x_train": GREY, "y_train": LABELS, "x_test": GREY}, "has no y_test"),
        ({"x_test": GREY, "y_test": LABELS}, "has no x_train and no y_train"),
        ({"images": GREY.astype(np.float32), "labels": LABELS}, "has the type float32; images are uint8"),
        ({"images": GREY[0], "labels": LABELS}, "has the shape (5, 4)"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "holds no images (shape (0, 5, 4))"),
        ({"images": GREY, "labels": LABELS[:5]}, "has the shape (5,); for 6 images it must be (6,)"),
        ({"images": GREY, "labels": np.eye(6, dtype=int)}, "has the shape (6, 6)"),
        ({"images": GREY, "labels": LABELS / 2}, "has the type float64; labels are whole numbers"),
        ({"images": GREY, "labels": LABELS - 1}, "has the label -1"),
        ({"images": GREY, "labels": LABELS + 10**9}, "has the label 1000000002"),
        ({"images": GREY, "labels": LABELS, "classes": ["a", "b"]}, "has the label 2, but classes names 2"),
        ({"images": GREY, "labels": LABELS, "classes": ["a", "b", "b"]}, "different texts"),
        ({"images": GREY, "labels": LABELS, "classes": [1, 2, 3]}, "different texts"),
        ({"images": GREY, "labels": np.arange(6)}, "no class of two images"),
        (
            {"x_train": GREY, "y_train": LABELS, "x_test": COLOUR, "y_test": LABELS},
            "has images (1, 5, 4) for training and (3, 5, 4) for testing",
        ),
        (
            {"images": np.zeros((6, 3, 9, 3), np.uint8), "labels": LABELS},
            "both the second and the last have the length 1 or 3",
        ),
        ({"images": np.zeros((6, 4, 9, 4), np.uint8), "labels": LABELS}, "neither the second nor the last has"),
    ],
)
def test_arrays_that_do_not_fit(path, members, says):
    assert says in refusal(save(path, **members))


def test_the_number_of_channels_tells_the_axis(path):
    save(path, images=COLOUR[:, :, :, :1], labels=LABELS)  # (6, 3, 5, 1)
    assert "--channels" not in refusal(path)
    assert read_npz(path, channels=3)[0].image_shape == (3, 5, 1)
    assert read_npz(path, channels=1)[0].image_shape == (1, 3, 5)
    save(path, images=np.zeros((6, 5, 9, 9), np.uint8), labels=LABELS)
    assert "--channels" in refusal(path)
    assert read_npz(path, channels=5)[0].image_shape == (5, 9, 9)
    save(path, images=GREY, labels=LABELS)
    assert "has 1 channels, but channels=3" in refusal(path, channels=3)
    with pytest.raises(XpcnnError, match="can be chosen for folder: only"):
        load_dataset(f"npz:{path}", image_size=32)


# What cannot be read


def test_what_is_not_an_npz_file(path, tmp_path):
    assert "does not exist or is not a file" in refusal(path)
    assert "does not exist or is not a file" in refusal(tmp_path)
    for content in (b"", b"PK\3\4", b"hello", npy(GREY), bytes(100)):
        path.write_bytes(content)
        assert "is not an .npz file" in refusal(path)
    with pytest.raises(DataError, match="names no path"):
        load_dataset("npz:")


class Bomb:
    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(path, capsys):
    save(path, images=GREY, labels=np.array([Bomb()] * 6, dtype=object))
    assert "labels in" in refusal(path)
    assert "never unpickled" in refusal(path)
    write(path, images=npy(GREY), labels=pickle.dumps(Bomb()))
    assert "is not an array that can be read" in refusal(path)
    assert "unpickled" not in capsys.readouterr().out


def header(text, version=(1, 0)):
    text = text.encode("latin1")
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2 if version == (1, 0) else 4, "little") + text


def claim(shape, dtype="|u1"):
    return header(f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\3\0\0\0\0\0", b"\x93NUMPY\1\0\xff\xff{", header("{"), header("()"), header("("), header("["*9000),
        header("{'descr': '|u1', 'shape': (6, 5, 4)}"), claim("(6, 5, 'x')"), claim("(-1, 5, 4)"), claim("6"), claim("(6,5,4)", "nonsense"),
        claim("(6, 5, 4)") + bytes(119), claim("(6, 5, 4)") + bytes(121), claim("(10**9,)"), claim("(0, 4611686018427387904, 8)"),
        claim("(4611686018427387904, 4)") , claim("(99999999999999999999999,)"), claim("(True, 2)") + bytes(2), claim("(6,)", "<U0"),
        claim("(6, 5, 4)", "|V0"), header("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (120,), }\n") + bytes(120),
        header("{'descr': '|u1', 'fortran_order': 1, 'shape': (6, 5, 4), }\n") + bytes(120), header(" " * 70_000, (2, 0)),
    ],
)  # fmt: skip
def test_headers_that_lie(path, content):
    write(path, images=content, labels=npy(LABELS))
    refusal(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(path, kind):
    write(path, kind, images=npy(GREY), labels=npy(LABELS))
    assert "compressed in a way that NumPy does not use" in refusal(path)


def test_an_array_that_is_there_twice(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy(GREY))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("images.npy", npy(GREY))
    assert "has images twice" in refusal(path)


def peak(path, **options):
    tracemalloc.start()
    try:
        text = refusal(path, **options)
        return text, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_memory_is_taken_for_what_a_file_claims(path):
    zeros = bytes(100 << 20)
    write(path, images=claim(f"({len(zeros) >> 20}, 1024, 1024)") + zeros, labels=npy(LABELS))
    del zeros
    assert path.stat().st_size < 1 << 18
    text, most = peak(path)
    assert "unpacks to 104,85" in text
    assert most < 8 << 20
    write(path, zipfile.ZIP_STORED, images=claim("(1000000, 64, 64)"), labels=npy(LABELS))
    text, most = peak(path)
    assert "claims the shape (1000000, 64, 64)" in text
    assert most < 8 << 20
    save(path, images=np.zeros((1000, 64, 64), np.uint8), labels=np.zeros(1000, int))
    text, most = peak(path, cap=1 << 20)
    assert "more than the 1,064,960 accepted" in text
    assert most < 1 << 20


def test_a_directory_that_understates_the_size(path):
    """The archive's table says one byte less than the stream holds, or more."""
    for wrong in (-1, 1, 1 << 20):
        save(path, images=GREY, labels=LABELS)
        content = bytearray(path.read_bytes())
        size = struct.pack("<I", len(npy(GREY)))
        place = content.rindex(b"images.npy") - 46
        at = content.index(size, place + 24)
        content[at : at + 4] = struct.pack("<I", len(npy(GREY)) + wrong)
        path.write_bytes(content)
        refusal(path)


@pytest.mark.parametrize("store", [np.savez, np.savez_compressed])
def test_damaged_files_are_read_as_they_were_or_refused(path, store):
    rng = random.Random(20_240_607)
    store(path, x_train=GREY, y_train=LABELS, x_test=GREY[:3], y_test=LABELS[:3], classes=["a", "b", "c"])
    names = zipfile.ZipFile(path).namelist()
    whole, expected = path.read_bytes(), [part.fingerprint() for part in read_npz(path)]
    counts = {"read": 0, "refused": 0}
    for number in range(400):
        damaged = bytearray(whole)
        if number % 3:
            place = rng.randrange(len(damaged))
            damaged[place] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            parts = read_npz(path)
        except DataError:
            counts["refused"] += 1
        else:
            values = [part.fingerprint() for part in parts]
            assert values == expected or zipfile.ZipFile(path).namelist() != names  # then one counts as not there
            counts["read"] += 1
    assert min(counts.values()) > 10, counts
