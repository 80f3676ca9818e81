"""Data sets: MNIST as it was published, files of one's own, and what does not belong together."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from samples import idx, write_dataset

import xpcnn
from xpcnn import DataError, XpcnnError
from xpcnn.data import Dataset, Source, load_dataset, named
from xpcnn.data.dataset import FASHION, SHIPPED

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
LABELS = np.array([3, 0, 9, 1], dtype=np.uint8)


@pytest.fixture
def directory(tmp_path):
    return write_dataset(tmp_path / "set", (IMAGES, LABELS), (IMAGES[:2], LABELS[2:]))


def refusal(*arguments):
    with pytest.raises(DataError) as caught:
        load_dataset(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mnist_has_the_published_checksums():
    licence = (SHIPPED / "LICENSE").read_text(encoding="utf-8")
    published = dict(re.findall(r"^ +(\S+ubyte) +([0-9a-f]{32})$", licence, re.MULTILINE))
    assert len(published) == 4
    for name, digest in published.items():
        content = gzip.decompress((SHIPPED / f"{name}.gz").read_bytes())
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == digest, name


def test_mnist_has_the_published_counts():
    train, test = load_dataset("mnist")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.images.dtype == test.images.dtype == np.uint8
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert round(float(train.images.mean()) / 255, 4) == 0.1307  # as everyone normalises it
    assert round(float(train.images.std()) / 255, 4) == 0.3081
    assert train.classes == tuple("0123456789")


def test_ones_own_files_plain_and_compressed(directory):
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (directory / f"{name}.gz").write_bytes(gzip.compress((directory / name).read_bytes()))
        (directory / name).unlink()
    train, test = load_dataset("fashion-mnist", directory)
    assert np.array_equal(train.images, IMAGES[:, None])
    assert train.labels.tolist() == [3, 0, 9, 1]
    assert np.array_equal(test.images, IMAGES[:2, None])
    assert test.labels.tolist() == [9, 1]
    assert train.classes == test.classes == FASHION


def test_what_is_asked_for_must_be_there(directory, tmp_path, monkeypatch):
    assert "dataset must be one of mnist, fashion-mnist, cifar10, cifar100, folder:PATH, npz:PATH, not" in refusal(
        "cifar"
    )
    monkeypatch.setenv("XPCNN_DATA", str(tmp_path / "cache"))
    without_mirrors = [replace(file, mirrors=()) for file in named.FILES["fashion-mnist"]]
    monkeypatch.setattr(named, "FILES", {"fashion-mnist": without_mirrors})
    without = refusal("fashion-mnist")
    assert "--data-dir" in without
    assert "t10k-labels-idx1-ubyte.gz" in without
    assert str(tmp_path / "none") in refusal("mnist", tmp_path / "none")
    assert "is a file" in refusal("mnist", directory / "t10k-labels-idx1-ubyte")
    (directory / "t10k-labels-idx1-ubyte").unlink()
    assert "neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz" in refusal("mnist", directory)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-labels-idx1-ubyte", idx(LABELS[:3]), "has 4 images, but"),
        ("train-labels-idx1-ubyte", idx([3, 0, 10, 1]), "has the label 10, but there are 10 classes"),
        ("train-labels-idx1-ubyte", idx(IMAGES), "has 3 axes, but 1 were expected"),
        ("train-images-idx3-ubyte", idx(LABELS), "has 1 axes, but 3 were expected"),
        ("train-images-idx3-ubyte", idx([], (4, 0, 6)), "holds no images"),
        ("t10k-images-idx3-ubyte", idx([], (0, 5, 6)), "holds no images"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[:2].transpose(0, 2, 1)), "of different sizes (5×6 and 6×5)"),
    ],
)
def test_files_that_do_not_belong_together(directory, name, content, says):
    (directory / name).write_bytes(content)
    text = refusal("mnist", directory)
    assert says in text
    assert str(directory) in text


def test_a_directory_that_is_a_symbolic_link(directory, tmp_path):
    (tmp_path / "link").symlink_to(directory)
    assert len(load_dataset("mnist", tmp_path / "link")[0]) == 4
    shutil.rmtree(directory)
    assert "does not exist" in refusal("mnist", tmp_path / "link")


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.zeros((3, 1, 2, 2)), np.zeros(2, int), "got shapes (3, 1, 2, 2) and (2,)"),
        (np.zeros(3), np.zeros(3, int), "got shapes (3,) and (3,)"),
        (np.zeros((3, 4)), np.zeros((3, 1), int), "got shapes (3, 4) and (3, 1)"),
        (np.zeros((3, 4)), np.zeros(3), "labels must be integers, got dtype float64"),
        (np.zeros((3, 4)), np.zeros(3, bool), "labels must be integers, got dtype bool"),
        (np.zeros((3, 4)), np.array([0, 1, 2]), "from 0 to 1, but there is a 2"),
        (np.zeros((3, 4)), np.array([0, -1, 1]), "from 0 to 1, but there is a -1"),
    ],
)
def test_a_data_set_checks_itself(images, labels, says):
    with pytest.raises(XpcnnError, match=re.escape(says)):
        Dataset(images, labels, ("cat", "dog"))


def test_the_first_examples():
    data = Dataset(IMAGES, LABELS)
    assert len(data) == 4
    first = data.first(2)
    assert np.array_equal(first.images, IMAGES[:2])
    assert first.labels.tolist() == [3, 0]
    assert len(data.first(100)) == 4
    assert xpcnn.load_dataset is load_dataset


def test_a_data_set_is_a_source():
    data = Dataset(np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3), LABELS)
    assert isinstance(data, Source)
    assert data.image_shape == (1, 2, 3)
    assert data.skipped == ()
    assert data.read(np.array([2, 0])).tolist() == [[[[12, 13, 14], [15, 16, 17]]], [[[0, 1, 2], [3, 4, 5]]]]
    assert data.read(np.array([], dtype=int)).shape == (0, 1, 2, 3)


def test_the_fingerprint_is_that_of_the_data():
    """What it is made of stands in one place here and in another there."""
    images = np.random.default_rng(0).integers(0, 256, (2500, 1, 3, 2), dtype=np.uint8)
    labels = (np.arange(2500) % 3).astype(np.uint8)
    data = Dataset(images, labels, ("a", "b", "c"))
    state = hashlib.blake2b(digest_size=20)
    for part in ("(2500, 1, 3, 2)", "dtype('uint8')", "('a', 'b', 'c')"):
        state.update(part.encode())
    state.update(b"".join(int(label).to_bytes(8, "little") for label in labels))
    state.update(images.tobytes())
    assert data.fingerprint() == state.hexdigest()
    same = Dataset(np.asfortranarray(images), labels.astype(np.int64), ("a", "b", "c"))
    assert same.fingerprint() == data.fingerprint()
    changed = images.copy()
    changed[2499, 0, 2, 1] ^= 1
    others = (
        Dataset(changed, labels, data.classes),
        Dataset(images, np.roll(labels, 1), data.classes),
        Dataset(images, labels, ("a", "b", "d")),
        Dataset(images.reshape(2500, 1, 2, 3), labels, data.classes),
        Dataset(images.view(np.int8), labels, data.classes),
        data.first(2499),
    )
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 7


def test_named_sets_have_the_images_they_have(directory):
    assert load_dataset("mnist", directory, image_size=(5, 6), channels=1)[0].image_shape == (1, 5, 6)
    for options in (
        {"channels": 3},
        {"image_size": 5},
        {"image_size": 5.0},
        {"image_size": "x"},
        {"image_size": (6, 5)},
    ):
        with pytest.raises(XpcnnError, match=r"the images of mnist are \(1, 5, 6\); image_size and channels can"):
            load_dataset("mnist", directory, **options)
