"""The augmentation of a batch against plain loops over its definition, on every backend and in every version."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from xpcnn import kernels
from xpcnn.backend import resolve_backend
from xpcnn.data import Augment, Dataset, Loader
from xpcnn.kernels import augmentation, native, numpy_cpu
from xpcnn.random import Key

EVERYTHING = Augment(2, True, 20.0, 0.2, 0.3, 0.2, 0.4, 3, 0.7, 0.9)
SETTINGS = [
    Augment(crop=2),
    Augment(flip=True),
    Augment(crop=1, flip=True),
    Augment(rotate=180.0),
    Augment(translate=0.9, scale=0.9),
    Augment(brightness=0.5),
    Augment(brightness=0.2, contrast=1.0),
    Augment(cutout=3),
    Augment(mixup=0.4),
    Augment(cutmix=0.5),
    EVERYTHING,
]
NAMES = ["crop", "flip", "both", "rotate", "move", "brightness", "contrast", "cutout", "mixup", "cutmix", "everything"]
each = pytest.mark.parametrize("augment", SETTINGS, ids=NAMES)
plain = resolve_backend("numpy").xp


def floor_rounded(number):
    """Round to the nearest whole number, halves up."""
    return int(np.floor(number + 0.5))


def pixel(plane, row, stages, y, x):
    """One pixel before mixing, in Python's numbers: bytes as whole numbers, floats exactly."""
    height, width = plane.shape
    whole = plane.dtype == np.uint8
    (top, left, bottom, right), m = row[8:12], [round(float(v) * 65536) for v in row[:6]]

    def at(r, c):
        inside = 0 <= r < height and 0 <= c < width
        return (int if whole else float)(plane[r, c]) if inside else 0

    value = at(y, x)
    if stages.shift or stages.warp:
        column, line = m[0] * x + m[1] * y + m[2] + 16, m[3] * x + m[4] * y + m[5] + 16
        c, r = column // 65536, line // 65536
        a, b = column % 65536 // 32 / 2048, line % 65536 // 32 / 2048
        upper, lower = at(r, c) * (1 - a) + at(r, c + 1) * a, at(r + 1, c) * (1 - a) + at(r + 1, c + 1) * a
        value = upper * (1 - b) + lower * b  # exact in float64 for bytes
        value = floor_rounded(value) if whole else value
    if stages.colour:
        if whole:
            gain, offset = round(float(row[6]) * 65536), round(float(row[7] * np.float32(255)) * 65536)
            value = min(255, max(0, floor_rounded((gain * value + offset) / 65536)))
        else:
            value = min(1.0, max(0.0, float(row[6]) * value + float(row[7])))
    return 0 if stages.cutout and top <= y < bottom and left <= x < right else value


def expected(images, table, stages):
    """All pixels, one after another."""
    before, after = np.zeros(images.shape), np.zeros(images.shape)
    for n, c, y, x in product(*map(range, images.shape)):
        before[n, c, y, x] = pixel(images[n, c], table[n], stages, y, x)
    for n, c, y, x in product(*map(range, images.shape)):
        own, other = before[n, c, y, x], before[-1 - n, c, y, x]
        (top, left, bottom, right), share = table[n, 13:17], float(table[n, 12])
        mixed = share * own + (1 - share) * other
        mixed = floor_rounded(mixed) if images.dtype == np.uint8 else mixed
        inside = top <= y < bottom and left <= x < right
        after[n, c, y, x] = (other if inside else mixed) if stages.mix else own
    return after


@each
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_every_stage_by_loops(arrays, augment, kind, rng):
    if arrays.id == "jax" and (kind == "float32" or augment != EVERYTHING):
        pytest.skip("JAX compiles everything anew for each of them")
    images = rng.integers(0, 256, (3, 2, 5, 6)).astype(np.uint8)
    images = images if kind == "uint8" else (images / 255).astype(kind)
    table = augment.draw(Key(3), 3, images.shape[1:])
    x = arrays(images)
    y = kernels.of(arrays.xp).augment(x, arrays(table), augment.stages, arrays.xp)
    wanted = expected(images, table, augment.stages)
    if kind == "uint8":
        assert y.dtype == arrays.xp.uint8
        np.testing.assert_array_equal(arrays.backend.to_numpy(y), wanted)
    else:
        arrays.check(y, wanted, like=x, tolerance=2e-6)
    np.testing.assert_array_equal(arrays.backend.to_numpy(x), images)  # untouched


@each
@pytest.mark.parametrize("shape", [(4, 1, 28, 28), (3, 3, 9, 70), (1, 1, 4, 5), (2, 1, 64, 3)])
def test_the_version_in_c_is_the_agnostic_one(augment, shape, rng):
    if native.library() is None:
        pytest.skip("there are no native kernels")
    bytes_ = rng.integers(0, 256, shape).astype(np.uint8)
    for images in (bytes_, (bytes_ / 255).astype(np.float32), np.moveaxis(bytes_, 2, 3).copy().swapaxes(2, 3)):
        for seed in range(5):
            table = augment_that_fits(augment, shape).draw(Key(seed), len(images), images.shape[1:])
            found = numpy_cpu.augment(images, table, augment.stages, plain)
            wanted = augmentation.augment(images, table, augment.stages, plain)
            if images.dtype == np.uint8:
                np.testing.assert_array_equal(found, wanted)
            else:
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def augment_that_fits(augment, shape):
    """The same with no larger a crop and cutout than an image allows."""
    least = min(shape[2:])
    return replace(augment, crop=min(augment.crop, least - 1), cutout=min(augment.cutout, least))


@pytest.mark.parametrize(("shape", "zoomed"), [((1, 1, 3, 9000), 0), ((1, 1, 9000, 3), 3)])
def test_positions_that_need_more_than_32_bits(shape, zoomed, rng):
    images = rng.integers(1, 256, shape).astype(np.uint8)
    table = np.zeros((1, augmentation.COLUMNS), np.float32)
    table[0, :6] = 1.0, 0.0, 0.5, 0.0, 1.0, 0.5
    table[0, [zoomed + zoomed // 3, zoomed + 2]] = 8.75, -3000.25  # up to 75,000 pixels
    stages = augmentation.Stages(warp=True)
    found = numpy_cpu.augment(images, table, stages, plain)
    np.testing.assert_array_equal(found, augmentation.augment(images, table, stages, plain))
    assert 1000 < np.count_nonzero(found) < 3 * 1100


def test_threads_that_augment_at_once_do_not_meet(rng):
    images = rng.integers(0, 256, (64, 3, 32, 32)).astype(np.uint8)
    tables = [EVERYTHING.draw(Key(seed), 64, (3, 32, 32)) for seed in range(4)]
    alone = [numpy_cpu.augment(images, table, EVERYTHING.stages, plain) for table in tables]
    together = [[] for _ in tables]

    def work(number):
        for _ in range(20):
            together[number].append(numpy_cpu.augment(images, tables[number], EVERYTHING.stages, plain))
            assert len(together[number]) < 2 or (together[number].pop() == alone[number]).all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, wanted in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found[0], wanted)


@each
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_batches_on_the_device_are_the_loaders(graphs, augment, kind, rng):
    images = rng.integers(0, 256, (8, 3, 6, 5)).astype(np.uint8)
    images = images if kind == "uint8" else (images / 255).astype(kind)
    data = Dataset(images, rng.integers(0, 4, 8), tuple("abcd"))
    loader = Loader(data, 3, seed=5, augment=augment)
    engine = kernels.of(graphs.xp).engine("capture", graphs(images))
    held = [graphs(a) for a in (images, data.labels.astype(np.int64), loader.order(2))]
    scale, shift = 1 / (255 * 0.5), 0.25 / 0.5
    for number, (x, t) in enumerate(loader.epoch(2)):  # the last batch has two images
        progress, table = graphs(np.array([number])), graphs(loader.table(2))
        dtypes = graphs.xp.float32, (scale, shift), 4, graphs.xp.float64
        y, targets = engine.gather_augmented(*held, progress, table, augment.stages, len(x), 3, *dtypes)
        wanted = x.astype(np.float32)
        wanted = wanted * np.float32(scale) - np.float32(shift) if kind == "uint8" else wanted
        graphs.check(y, wanted, like=graphs(np.zeros(1, np.float32)), tolerance=0 if kind == "uint8" else 2e-6)
        np.testing.assert_array_equal(graphs.backend.to_numpy(targets), t)
        assert str(targets.dtype) == ("float64" if augment.mixes else "int64")
