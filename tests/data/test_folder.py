"""Folders of pictures: classes, parts, shapes, and what is bad about some of them."""

from __future__ import annotations

import os
import shutil
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image

from xpcnn import DataError, XpcnnError, load_dataset
from xpcnn.data import folder, read_picture
from xpcnn.kernels import threads


def picture(seed, height=6, width=5, colour=True):
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def fill(root, counts, **options):
    """Write so many different pictures for each class; return {path in the folder: (C, H, W) pixels}."""
    made = {}
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            pixels = picture(1000 * label + number, **options)
            path = root / name / f"{number:03d}.png"
            save(path, pixels)
            made[path.relative_to(root).as_posix()] = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return made


@pytest.fixture
def root(tmp_path):
    return tmp_path / "pictures"


def load(root, **options):
    return load_dataset(f"folder:{root}", **options)


def refusal(root, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        load(root, **options)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def contents(source):
    """Return {path in the folder: pixels} of a source."""
    images = source.read(np.arange(len(source)))
    root = source.pictures.root
    return {source.path(row).relative_to(root).as_posix(): image for row, image in enumerate(images)}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], expected[path]) for path in expected)


# Classes and parts


def test_every_picture_is_in_one_part_with_its_class(root):
    made = fill(root, {"owl": 10, "ant": 20, "cat": 5})
    train, test = load(root)
    assert train.classes == test.classes == ("ant", "cat", "owl")
    assert np.bincount(test.labels).tolist() == [4, 1, 2]
    assert np.bincount(train.labels).tolist() == [16, 4, 8]
    assert train.image_shape == test.image_shape == (3, 6, 5)
    same(contents(train) | contents(test), made)
    for part in (train, test):
        assert [part.classes[label] for label in part.labels] == [
            part.path(row).parent.name for row in range(len(part))
        ]
        assert part.read(np.arange(3)).dtype == np.uint8
    assert not contents(train).keys() & contents(test).keys()


def test_a_path_from_the_home_directory(root, monkeypatch):
    fill(root, {"a": 2, "b": 2})
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("USERPROFILE", str(root.parent))
    assert load("~/pictures")[0].classes == ("a", "b")


def test_the_seed_decides_which_are_tested(root):
    fill(root, {"a": 20, "b": 20})
    first, again, other = (load(root, validation=0.5, seed=seed)[1] for seed in (0, 0, 1))
    assert [len(first), *np.bincount(first.labels)] == [20, 10, 10]
    assert contents(first).keys() == contents(again).keys() != contents(other).keys()
    assert "validation must be a share" in refusal(root, XpcnnError, validation=1.5)


@pytest.mark.parametrize("part", ["val", "valid", "validation", "test"])
def test_parts_that_have_directories_of_their_own(root, part):
    made = {"train": fill(root / "train", {"a": 3, "b": 4}), part: fill(root / part, {"a": 1, "b": 2})}
    train, test = load(root, validation=0.9)
    same(contents(train), {f"train/{path}": image for path, image in made["train"].items()})
    same(contents(test), {f"{part}/{path}": image for path, image in made[part].items()})
    assert train.labels.tolist() == [0] * 3 + [1] * 4
    assert test.labels.tolist() == [0, 1, 1]


def test_validation_goes_before_test(root):
    for part in ("train", "val", "test"):
        fill(root / part, {"a": 1, "b": 1})
    assert [path.split("/")[0] for path in contents(load(root)[1])] == ["val", "val"]


def test_train_and_test_may_be_classes(root):
    fill(root, {"train": 4, "tram": 4, "test": 4})
    assert load(root)[0].classes == ("test", "train", "tram")


def test_parts_that_do_not_belong_together(root):
    fill(root / "train", {"a": 2, "b": 2})
    assert "has train, but none of val, valid, validation, test" in refusal(root)
    fill(root / "val", {"a": 2, "b": 2, "c": 1})
    assert "val has the class c, which train has not" in refusal(root)
    fill(root / "train", {"c": 1, "d": 1})
    assert "train has the class d, which val has not" in refusal(root)


def test_what_has_no_classes(root, tmp_path):
    assert f"the folder {root} does not exist" in refusal(root)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")
    fill(root, {".": 3})
    assert "has no directories of pictures" in refusal(root)
    fill(root, {"only": 3})
    assert "has only one directory of pictures" in refusal(root)
    (root / "empty").mkdir()
    assert f"the class {root / 'empty'} has no pictures" in refusal(root)
    (root / "empty" / "notes.txt").touch()
    (root / "empty" / ".hidden.png").touch()
    assert f"the class {root / 'empty'} has no pictures" in refusal(root)


def test_one_picture_a_class_leaves_nothing_to_test_on(root):
    fill(root, {"a": 1, "b": 1})
    assert "too few pictures" in refusal(root)


def test_other_files_are_ignored_and_counted(root):
    made = fill(root, {"a": 5, "b": 5})
    for name in ("a/notes.txt", "a/.hidden.png", "b/Thumbs.db", "b/.DS_Store", "labels.csv", ".hidden"):
        (root / name).touch()
    (root / ".git").mkdir()
    (root / "a" / "..png").mkdir()
    train, test = load(root)
    same(contents(train) | contents(test), made)
    assert train.ignored == 8


def test_directories_below_a_class_and_links(root, tmp_path):
    made = fill(root, {"a": 2, "a/deep/er": 2, "b": 2})
    fill(tmp_path / "else", {"c": 2})
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "deep" / "up").symlink_to(root / "a")
    (root / "b" / "linked.png").symlink_to(tmp_path / "else" / "c" / "000.png")
    (root / "c").symlink_to(tmp_path / "else" / "c")
    train, test = load(root)
    found = contents(train) | contents(test)
    assert train.classes == ("a", "b", "c")
    assert found.keys() == made.keys() | {"b/linked.png", "c/000.png", "c/001.png"}
    assert train.ignored == 2


def test_names_of_any_kind(root):
    names = ["ü.PNG", "new\nline.Jpg", "with space.jpeg", "a.b.webp", "x.GIF", "y.bmp"]
    names += [os.fsdecode(b"\xff\xfe.png")] if os.name == "posix" else []
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
    for name in names:
        for label in "ab":
            save(
                root / label / name, np.full((4, 4, 3), 77, np.uint8), format=formats[os.path.splitext(name)[1].lower()]
            )
    train, test = load(root)
    assert len(train) + len(test) == 2 * len(names)
    for part in (train, test):
        images = part.read(np.arange(len(part))).astype(int)
        assert np.abs(images - 77).max() < 4
        part.fingerprint()


# Shapes


def test_grey_if_all_are_grey(root):
    made = fill(root, {"a": 3, "b": 3}, colour=False)
    train, test = load(root)
    assert train.image_shape == (1, 6, 5)
    same(contents(train) | contents(test), made)
    same(contents(load(root, channels=3)[1]), {path: np.repeat(made[path], 3, axis=0) for path in contents(test)})
    save(root / "b" / "000.png", picture(0))
    assert load(root)[0].image_shape == (3, 6, 5)
    assert load(root, channels=1)[0].image_shape == (1, 6, 5)


def test_sixteen_bits_and_transparency_and_cameras(root):
    grey = picture(0, colour=False)
    save(root / "a" / "16.png", grey.astype(np.uint16) * 257)
    Image.merge("LA", [Image.fromarray(0 * grey), Image.fromarray(grey)]).save(root / "a" / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "b" / "turned.png", np.rot90(grey).copy(), exif=exif)
    save(root / "b" / "plain.png", grey)
    parts = load(root, validation=0.5)
    found = contents(parts[0]) | contents(parts[1])
    assert parts[0].image_shape == (1, 6, 5)
    for name in ("a/16.png", "b/turned.png", "b/plain.png"):
        assert np.array_equal(found[name][0], grey)
    assert np.array_equal(found["a/clear.png"][0], 255 - grey)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(256, 100)] * 4, (256, 100)),
        ([(257, 100)] * 4, (100, 100)),
        ([(300, 400)] * 4, (224, 224)),
        ([(10, 20), (30, 31), (50, 40), (90, 60)], (30, 30)),  # shorter sides 10, 30, 40, 60
    ],
)
def test_the_size_that_is_chosen(root, sizes, shape):
    for number, (height, width) in enumerate(sizes):
        save(root / "ab"[number % 2] / f"{number}.png", np.zeros((height, width), np.uint8))
    assert load(root)[0].image_shape == (1, *shape)


def test_only_a_sample_is_looked_at(root, monkeypatch):
    fill(root, {"a": 30, "b": 30})
    seen, real = [], folder.read_header
    monkeypatch.setattr(folder, "read_header", lambda path: (seen.append(path.name), real(path))[1])
    load(root)
    assert seen == [f"{number:03d}.png" for number in range(20)] * 2
    monkeypatch.setattr(folder, "MOST_SAMPLED", 10)
    load(root)
    assert len(seen) == 50
    load(root, image_size=8, channels=3)
    assert len(seen) == 50


def test_other_sizes_are_fitted_as_predictions_are(root):
    for number, (height, width) in enumerate([(40, 100), (100, 40), (7, 7), (8, 12), (1, 60)]):
        for label in "ab":
            save(root / label / f"{number}.png", picture(number, height, width))
    for channels in (1, 3):
        train, test = load(root, image_size=(8, 12), channels=channels)
        assert train.image_shape == (channels, 8, 12)
        for part in (train, test):
            for row, image in enumerate(part.read(np.arange(len(part)))):
                assert np.array_equal(image, read_picture(part.path(row), (channels, 8, 12), polarity="keep"))
    wide = np.full((10, 40, 3), [10, 20, 30], np.uint8)
    wide[:, 15:25] = 200
    save(root / "a" / "0.png", wide)
    parts = load(root, image_size=20)
    found = (contents(parts[0]) | contents(parts[1]))["a/0.png"]
    assert (found[:, :7] == np.array([10, 20, 30])[:, None, None]).all()  # above the five rows that 10 became
    assert (found[:, 9, 9] == 200).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 2}, "channels must be 1 (grey) or 3 (colour) for pictures, not 2"),
        ({"image_size": 0}, "image_size must be a whole number of 1 or more, not 0"),
        ({"image_size": (8, 0)}, "image_size must be a whole number of 1 or more, not 0"),
        ({"image_size": 8.5}, "image_size must be a whole number of 1 or more, not 8.5"),
        ({"image_size": (8, 8, 3)}, "image_size must be one number or height and width"),
        ({"image_size": 5000}, "image_size must be at most 4096"),
    ],
)
def test_wrong_options(root, options, says):
    fill(root, {"a": 2, "b": 2})
    assert says in refusal(root, XpcnnError, **options)


# Reading


@pytest.mark.parametrize("budget", [0, 6 * 5 * 3 * 17, 128 << 20])
@pytest.mark.parametrize("count", [1, 3])
def test_any_order_any_budget_any_threads(root, monkeypatch, budget, count):
    made = fill(root, {"a": 25, "b": 25})
    monkeypatch.setattr(folder, "BUDGET", budget)
    with threads.limited_to(count):
        train, _ = load(root)
        rng = np.random.default_rng(0)
        for size in (0, 1, 7, 100, 400):
            rows = rng.integers(0, len(train), size)
            found = train.read(rows)
            assert found.shape == (size, 3, 6, 5)
            for row, image in zip(rows, found, strict=True):
                assert np.array_equal(image, made[train.path(row).relative_to(root).as_posix()])
            found[:] = 0  # the caller's own


def test_what_fits_is_decoded_once(root, monkeypatch):
    fill(root, {"a": 10, "b": 10})
    decoded, real = [], folder.read_fitted
    monkeypatch.setattr(folder, "read_fitted", lambda path, shape: (decoded.append(path), real(path, shape))[1])
    monkeypatch.setattr(folder, "BUDGET", 6 * 5 * 3 * 12)  # twelve pictures of the twenty
    train, test = load(root)
    assert not decoded
    for _ in range(3):
        contents(train), contents(test)
    assert len(set(decoded)) == 20
    assert len(decoded) == 20 + 2 * 8


def test_memory_is_bounded(root, monkeypatch):
    """Thirty pictures of 750 kB are read in batches of two within little more than budget and batch."""
    for label in "ab":
        save(root / label / "0.png", np.zeros((500, 500, 3), np.uint8))
        for number in range(1, 15):
            os.link(root / label / "0.png", root / label / f"{number}.png")
    monkeypatch.setattr(folder, "BUDGET", 3 << 20)
    train, _ = load(root, image_size=500)
    tracemalloc.start()
    try:
        for start in range(0, len(train), 2):
            train.read(np.arange(start, min(len(train), start + 2)))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_several_threads_read_at_once(root):
    made = fill(root, {"a": 40, "b": 40})
    filters = warnings.filters[:]
    with threads.limited_to(2):
        train, test = load(root)
        wrong = []

        def run(part, seed):
            order = np.random.default_rng(seed).permutation(len(part))
            for row, image in zip(order, part.read(order), strict=True):
                if not np.array_equal(image, made[part.path(row).relative_to(root).as_posix()]):
                    wrong.append(row)

        running = [threading.Thread(target=run, args=((train, test)[n % 2], n)) for n in range(6)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert not wrong
    assert warnings.filters == filters


def test_the_fingerprint_is_that_of_the_folder_wherever_it_lies(root, tmp_path):
    fill(root, {"a": 10, "b": 10})
    train, test = load(root)
    shutil.copytree(root, tmp_path / "moved")
    moved = load(tmp_path / "moved")
    assert [part.fingerprint() for part in moved] == [train.fingerprint(), test.fingerprint()]
    found = {train.fingerprint(), test.fingerprint()}
    found |= {load(root, **options)[0].fingerprint() for options in ({"image_size": 9}, {"channels": 1}, {"seed": 3})}
    with open(train.path(0), "ab") as file:
        file.write(b"\0")
    found.add(load(root)[0].fingerprint())
    (root / "a").rename(root / "c")
    found.add(load(root)[0].fingerprint())
    assert len(found) == 7


# Bad pictures


@pytest.fixture
def spoilt(root):
    """Return a folder of 70 pictures, four of them bad, and its good ones."""
    made = fill(root, {"a": 40, "b": 30})
    whole = (root / "a" / "031.png").read_bytes()
    (root / "a" / "031.png").write_bytes(whole[: len(whole) // 2])
    (root / "a" / "035.png").write_bytes(b"")
    (root / "b" / "029.png").write_bytes(b"<html>")
    (root / "b" / "lost.png").symlink_to(root / "nowhere.png")
    bad = {"a/031.png", "a/035.png", "b/029.png"}
    return {path: image for path, image in made.items() if path not in bad}, bad | {"b/lost.png"}


def test_a_bad_picture_is_an_error_that_names_it(root, spoilt):
    _, bad = spoilt
    train, test = load(root)
    found = []
    for part in (train, test):
        for row in range(len(part)):
            try:
                part.read(np.array([row]))
            except DataError as error:
                found.append((part.path(row), str(error)))
    assert {path.relative_to(root).as_posix() for path, _ in found} == bad
    assert all(
        str(path) in text and text.endswith("; mend or replace it, or begin with --skip-bad to leave such images out.")
        for path, text in found
    )
    with pytest.raises(DataError, match=r"\(and \d more\); mend or replace it, or begin with --skip-bad"):
        train.read(np.arange(len(train)))


@pytest.mark.parametrize("count", [1, 2])
def test_bad_pictures_are_left_out_and_named(root, spoilt, monkeypatch, count):
    monkeypatch.setattr(folder, "CHECKED_TOGETHER", 33)
    good, bad = spoilt
    told = []
    with threads.limited_to(count):
        train, test = load(root, skip_bad=True, progress=lambda *news: told.append(news))
        same(contents(train) | contents(test), good)
    assert [(done, total) for done, total, _ in told] == [(33, 71), (66, 71), (71, 71)]
    reasons = {os.path.relpath(path, root).replace(os.sep, "/"): reason for path, reason in train.skipped}
    assert reasons.keys() == bad
    assert "cannot be decoded" in reasons["a/031.png"]
    assert reasons["b/029.png"].startswith("is not a picture")
    assert "does not exist" in reasons["b/lost.png"]
    assert test.skipped == ()
    assert np.bincount(test.labels).tolist() == [8, 6]  # a fifth of 38 and of 29


def test_a_bad_picture_in_the_sample(root):
    fill(root, {"a": 3, "b": 3})
    (root / "a" / "000.png").write_bytes(b"hello")
    text = refusal(root)
    assert f"{root / 'a' / '000.png'} is not a picture" in text
    assert "--skip-bad" in text
    assert len(load(root, skip_bad=True)[0].skipped) == 1


def test_a_class_of_bad_pictures(root):
    fill(root, {"a": 3, "b": 3})
    for path in (root / "b").iterdir():
        path.write_bytes(b"hello")
    assert f"the class b of {root} has no readable picture to train on" in refusal(root, skip_bad=True)
    for path in (root / "a").iterdir():
        path.write_bytes(b"hello")
    assert "none of the pictures sampled" in refusal(root, skip_bad=True)
    assert "has no readable picture" in refusal(root, skip_bad=True, image_size=8, channels=3)


def test_bad_pictures_in_parts_of_their_own(root):
    for part in ("train", "val"):
        fill(root / part, {"a": 3, "b": 3})
        (root / part / "a" / "001.png").write_bytes(b"hello")
    train, test = load(root, skip_bad=True)
    assert [len(train), len(test), len(train.skipped)] == [5, 5, 2]
    assert test.labels.tolist() == [0, 0, 1, 1, 1]
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"hello")
    assert "none is left to test on" in refusal(root, skip_bad=True)


def test_a_picture_that_goes_away(root):
    fill(root, {"a": 5, "b": 5})
    train, _ = load(root)
    train.path(2).unlink()
    with pytest.raises(DataError, match="does not exist"):
        train.read(np.array([2]))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read(root):
    fill(root, {"a": 2, "b": 2})
    (root / "a").chmod(0)
    try:
        assert "cannot be listed: Permission denied" in refusal(root)
    finally:
        (root / "a").chmod(0o700)


def test_links_in_a_circle_are_pictures_that_cannot_be_read_and_no_classes(root):
    fill(root, {"a": 5, "b": 5})
    (root / "a" / "loop.png").symlink_to("loop.png")
    (root / "c").symlink_to("c")
    assert "loop.png does not exist or is not a file" in refusal(root)
    train, test = load(root, skip_bad=True)
    assert train.classes == ("a", "b")
    assert len(train) + len(test) == 10
    assert [path for path, _ in train.skipped] == [str(root / "a" / "loop.png")]
