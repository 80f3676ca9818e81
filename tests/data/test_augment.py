"""Augmentation: what each option does to images and targets, and how its random numbers are spread."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest

from xpcnn.data import Augment
from xpcnn.errors import XpcnnError
from xpcnn.random import Key

KEY = Key(7).child("augment", 1)
SHAPE = (2, 9, 12)
MANY = 20_000
EVERYTHING = Augment(2, True, 20.0, 0.2, 0.3, 0.2, 0.4, 3, 0.7, 0.9)


@pytest.fixture
def images(rng):
    return rng.integers(1, 256, (40, *SHAPE)).astype(np.uint8)


def applied(augment, images, targets=None, classes=10, key=KEY):
    """Return images and targets after an augmentation."""
    targets = np.zeros(len(images), np.int64) if targets is None else targets
    return augment.apply(images, targets, augment.draw(key, len(images), images.shape[1:]), classes)


def uniform(numbers, low, high):
    """Assert that numbers are spread evenly over a range: each tenth of it has its share, to five deviations."""
    counts, _ = np.histogram(numbers, bins=10, range=(low, high))
    assert counts.sum() == len(numbers)
    expected = len(numbers) / 10
    assert np.abs(counts - expected).max() < 5 * np.sqrt(0.9 * expected)


def the_crop(image, padded):
    """Return how many pixels down and right an image lies in a padded one; None if it does not."""
    _, height, width = image.shape
    places = product(range(padded.shape[1] - height + 1), range(padded.shape[2] - width + 1))
    return next((p for p in places if (padded[:, p[0] : p[0] + height, p[1] : p[1] + width] == image).all()), None)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_crops_are_slices_of_padded_images(images, kind):
    images = images.astype(kind)
    found, _ = applied(Augment(crop=2), images)
    assert found.dtype == kind
    padded = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)])
    places = [the_crop(image, around) for image, around in zip(found, padded, strict=True)]
    assert None not in places
    assert len(set(places)) > 12


@pytest.mark.parametrize("crop", [0, 2])
def test_half_of_the_images_are_mirrored(images, crop):
    found, _ = applied(Augment(crop=crop, flip=True), images)
    padded = np.pad(images, [(0, 0), (0, 0), (crop, crop), (crop, crop)])
    straight = [the_crop(image, around) is not None for image, around in zip(found, padded, strict=True)]
    mirrored = [the_crop(image, around) is not None for image, around in zip(found, padded[..., ::-1], strict=True)]
    assert [a + b for a, b in zip(straight, mirrored, strict=True)] == [1] * len(images)
    assert 8 < sum(mirrored) < 32


def test_shifts_and_flips_are_evenly_spread():
    table = Augment(crop=3, flip=True).draw(KEY, MANY, SHAPE)
    mirror, right, down = table[:, 0], table[:, 2], table[:, 5]
    assert set(np.unique(mirror)) == {-1.0, 1.0}
    assert abs((mirror < 0).mean() - 0.5) < 5 * 0.5 / MANY**0.5
    right = np.where(mirror < 0, right - 11, right)  # x_in = 11 - x for an image of 12 columns that stays in place
    for shifts in (right, down):
        values, counts = np.unique(shifts, return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert np.abs(counts - MANY / 7).max() < 5 * (MANY * 6 / 49) ** 0.5
    assert abs(np.corrcoef(right, down)[0, 1]) < 5 / MANY**0.5


def bilinear(plane, y, x):
    """The value at a position between pixels' centres, zeros outside."""
    total = 0.0
    for r, c in product((int(np.floor(y)), int(np.floor(y)) + 1), (int(np.floor(x)), int(np.floor(x)) + 1)):
        if 0 <= r < plane.shape[0] and 0 <= c < plane.shape[1]:
            total += (1 - abs(y - r)) * (1 - abs(x - c)) * float(plane[r, c])
    return total


def moves(table):
    """Return, for each image, the angle, the zoom and where its centre comes to lie (right, down) by what was drawn."""
    a, b = table[:, 3].astype(float), table[:, 4].astype(float)  # -sin and cos of the angle, over the zoom
    m = table[:, :6].astype(float).reshape(-1, 2, 3)
    centre = np.array([(SHAPE[2] - 1) / 2, (SHAPE[1] - 1) / 2])
    place = np.linalg.solve(m[:, :, :2], (centre - m[:, :, 2])[..., None])[..., 0]
    return np.arctan2(-a, b), 1 / np.hypot(a, b), *(place - centre).T


def test_angles_zooms_and_moves_are_evenly_spread_and_apart():
    augment = Augment(rotate=30.0, scale=0.25, translate=0.1)
    numbers = moves(augment.draw(KEY, MANY, SHAPE))
    ranges = np.radians(30), 0.25, 0.1 * SHAPE[2], 0.1 * SHAPE[1]
    for values, middle, most in zip(numbers, (0, 1, 0, 0), ranges, strict=True):
        uniform(values, middle - most - 1e-4, middle + most + 1e-4)
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 5 / MANY**0.5


@pytest.mark.parametrize("augment", [Augment(rotate=180.0), Augment(scale=0.5), Augment(translate=0.3), EVERYTHING])
def test_images_are_turned_zoomed_and_moved_as_drawn(augment, rng):
    augment = Augment(crop=augment.crop, rotate=augment.rotate, translate=augment.translate, scale=augment.scale)
    images = rng.random((3, *SHAPE)).astype(np.float32)
    table = augment.draw(KEY, 3, SHAPE)
    found, _ = applied(augment, images)
    height, width = SHAPE[1:]
    for n, (angle, zoom, right, down) in enumerate(zip(*moves(table), strict=True)):
        for y, x in product(range(height), range(width)):
            u, v = (x - (width - 1) / 2 - right) / zoom, (y - (height - 1) / 2 - down) / zoom
            row = v * np.cos(angle) - u * np.sin(angle) + (height - 1) / 2
            column = u * np.cos(angle) + v * np.sin(angle) + (width - 1) / 2
            for c in range(SHAPE[0]):
                assert found[n, c, y, x] == pytest.approx(bilinear(images[n, c], row, column), abs=2e-3)


def test_rotation_and_zoom_are_pytorchs(rng):
    torch = pytest.importorskip("torch")
    images = rng.random((6, *SHAPE)).astype(np.float32)
    augment = Augment(rotate=90.0, scale=0.4, flip=True)
    table = augment.draw(KEY, 6, SHAPE)
    angle, zoom, _, _ = moves(table)
    sign = np.sign(np.linalg.det(table[:, :6].reshape(-1, 2, 3)[:, :, :2]))
    height, width = SHAPE[1:]
    theta = np.zeros((6, 2, 3))  # from -1 to 1 along each axis; about the centre
    theta[:, 0, 0], theta[:, 0, 1] = sign * np.cos(angle) / zoom, sign * np.sin(angle) / zoom * height / width
    theta[:, 1, 0], theta[:, 1, 1] = -np.sin(angle) / zoom * width / height, np.cos(angle) / zoom
    grid = torch.nn.functional.affine_grid(torch.asarray(theta), list(images.shape), align_corners=False)
    options = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": False}
    wanted = torch.nn.functional.grid_sample(torch.asarray(images, dtype=torch.float64), grid, **options).numpy()
    assert {-1.0, 1.0} == set(sign)
    found, _ = applied(augment, images)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    as_bytes = (255 * images).astype(np.uint8)
    found, _ = applied(augment, as_bytes)
    options |= {"grid": grid}
    wanted = torch.nn.functional.grid_sample(torch.asarray(as_bytes, dtype=torch.float64), **options).numpy()
    assert np.abs(found - wanted).max() < 0.5 + 0.4  # rounding, and positions of 2⁻¹² pixels


def test_brightness_and_contrast(images):
    augment = Augment(brightness=0.3, contrast=0.5)
    table = augment.draw(KEY, len(images), SHAPE)
    contrast = table[:, 6].astype(float)
    brightness = table[:, 7] - 0.5 * (1 - contrast)
    wanted = np.clip(
        contrast[:, None, None, None] * (images - 127.5) + 127.5 + 255 * brightness[:, None, None, None], 0, 255
    )
    found, _ = applied(augment, images)
    assert np.abs(found - wanted).max() < 0.51
    assert wanted.min() == 0
    assert wanted.max() == 255
    found, _ = applied(augment, (images / 255).astype(np.float32))
    np.testing.assert_allclose(found, wanted / 255, atol=1e-5)


def test_brightness_and_contrast_are_evenly_spread():
    table = Augment(brightness=0.3, contrast=0.5).draw(KEY, MANY, SHAPE)
    uniform(table[:, 6], 0.5, 1.5)
    uniform(table[:, 7] - 0.5 * (1 - table[:, 6]), -0.3, 0.3)
    assert (Augment(contrast=0.5).draw(KEY, 5, SHAPE)[:, 6] == table[:5, 6]).all()


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_erases_a_square(images, side):
    found, _ = applied(Augment(cutout=side), images)
    for before, after in zip(images, found, strict=True):
        assert ((after == before) | (after == 0)).all()
        assert (after[0] == 0).tolist() == (after[1] == 0).tolist()
        rows, columns = np.nonzero(after[0] == 0)
        (top, bottom), (left, right) = (rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1)
        assert len(rows) == (bottom - top) * (right - left)
        for first, last, size in ((top, bottom, SHAPE[1]), (left, right, SHAPE[2])):
            assert last - first == side or (last - first < side and (first == 0 or last == size))


def test_cutout_is_about_any_pixel():
    table = Augment(cutout=1).draw(KEY, MANY, SHAPE)
    pixels, counts = np.unique(table[:, 8] * SHAPE[2] + table[:, 9], return_counts=True)
    assert len(pixels) == SHAPE[1] * SHAPE[2]
    assert np.abs(counts - MANY / len(pixels)).max() < 5 * (MANY / len(pixels)) ** 0.5


def flat_images(count, kind=np.float64):
    """Images of one value each, which tells which they are."""
    return np.broadcast_to(np.arange(1, count + 1, dtype=kind)[:, None, None, None], (count, *SHAPE)).copy()


@pytest.mark.parametrize("count", [8, 7, 1])
def test_mixup_mixes_targets_as_it_mixes_images(count):
    labels = np.arange(count)
    found, targets = applied(Augment(mixup=1.0), flat_images(count), labels, classes=count)
    assert targets.dtype == np.float32
    assert targets.shape == (count, count)
    for n in range(count):
        partner = count - 1 - n
        assert np.ptp(found[n]) < 1e-12
        wanted = np.zeros(count)
        share = 1.0 if n == partner else (found[n, 0, 0, 0] - (partner + 1)) / (n - partner)
        wanted[n] += share
        wanted[partner] += 1 - share
        np.testing.assert_allclose(targets[n], wanted, atol=1e-6)
    assert count == 1 or 0.01 < np.abs(targets[0].max() - 1) < 0.99


@pytest.mark.parametrize("count", [8, 7])
def test_cutmix_mixes_targets_by_the_area_of_its_box(count):
    labels = np.arange(count)
    found, targets = applied(Augment(cutmix=1.0), flat_images(count, np.uint8), labels, classes=count)
    for n in range(count):
        partner = count - 1 - n
        taken = found[n] == partner + 1
        assert (taken | (found[n] == n + 1)).all()
        if n == partner:
            assert targets[n].tolist() == (labels == n).tolist()
            continue
        if taken.any():
            rows, columns = np.nonzero(taken[0])
            assert taken[0].sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        wanted = np.zeros(count)
        wanted[n], wanted[partner] = 1 - taken.mean(), taken.mean()
        np.testing.assert_allclose(targets[n], wanted, atol=1e-6)
    assert len(np.unique(targets)) > 4


def test_targets_that_are_probabilities_are_mixed(images, rng):
    labels = rng.integers(0, 10, len(images))
    _, wanted = applied(Augment(mixup=0.5), images, labels)
    _, found = applied(Augment(mixup=0.5), images, np.eye(10)[labels])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.dtype == np.float64


def test_without_mixing_targets_stay(images):
    augment = replace(EVERYTHING, mixup=0.0, cutmix=0.0)
    labels = np.arange(len(images))
    _, targets = augment.apply(images, labels, augment.draw(KEY, len(images), SHAPE), 10)
    assert targets is labels


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_betas(alpha):
    for augment in (Augment(mixup=alpha), Augment(cutmix=alpha)):
        table = augment.draw(KEY, MANY, (1, 300, 300))
        share = table[:, 12]
        if augment.cutmix:
            box = table[:, 13:17].astype(float)
            inside = ((box[:, [0, 1]] > 0) & (box[:, [2, 3]] < 300)).all(axis=1)  # not cut by the image's edge
            high, wide = (box[:, 2] - box[:, 0])[inside], (box[:, 3] - box[:, 1])[inside]
            assert np.abs(high - wide).max() <= 0
            assert (table[:, 12] == 1).all()
            area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / 300**2
            np.testing.assert_allclose(table[:, 17], 1 - area, atol=1e-6)
            continue
        deviation = (1 / (4 * (2 * alpha + 1))) ** 0.5
        assert abs(share.mean() - 0.5) < 5 * deviation / MANY**0.5
        assert abs(share.std() - deviation) < 0.02 * deviation
        assert (table[:, 17] == share).all()


def test_the_area_of_cutmix_boxes_is_betas():
    """A box of half the sides or less about the centre is whole: its side tells the share that was drawn."""
    box = Augment(cutmix=1.0).draw(KEY, MANY, (1, 400, 400))[:, 13:17].astype(float)
    centres = (box[:, :2] + box[:, 2:]) / 2
    whole = (np.abs(centres - 200) < 100).all(axis=1) & (box[:, 2] - box[:, 0] < 200)
    part = ((box[:, 2] - box[:, 0]) / 400)[whole] ** 2  # 1 - λ, uniform here, of those below a quarter
    assert len(part) > 500
    uniform(part, 0.0, 0.25)


def test_with_both_half_of_the_images_get_the_one_and_half_the_other():
    table = Augment(mixup=1.0, cutmix=1.0).draw(KEY, MANY, (1, 100, 100))
    mixed, boxed = table[:, 12] < 1, table[:, 15] > table[:, 13]
    assert not (mixed & boxed).any()
    assert (mixed | boxed).mean() > 0.99
    assert abs(mixed.mean() - 0.5) < 5 * 0.5 / MANY**0.5


def test_a_row_depends_on_its_number_and_its_own_options_alone():
    table = EVERYTHING.draw(KEY, 50, SHAPE)
    assert table.dtype == np.float32
    assert table.flags.c_contiguous
    np.testing.assert_array_equal(EVERYTHING.draw(KEY, 20, SHAPE), table[:20])
    np.testing.assert_array_equal(EVERYTHING.draw(KEY, 50, SHAPE), table)
    assert (EVERYTHING.draw(KEY.child("other"), 50, SHAPE) != table).mean() > 0.5
    np.testing.assert_array_equal(Augment(cutout=3).draw(KEY, 50, SHAPE)[:, 8:12], table[:, 8:12])
    np.testing.assert_array_equal(
        Augment(crop=2, flip=True).draw(KEY, 9, SHAPE)[:, 0] < 0, table[:9, 0] * table[:9, 4] < 0
    )


@pytest.mark.parametrize("on_device", [True, False])
def test_every_backend_makes_the_same_bytes_and_targets(arrays, on_device, images, rng):
    if arrays.id == "jax" and not on_device:
        pytest.skip("JAX compiles everything anew")
    labels, table = rng.integers(0, 5, len(images)), EVERYTHING.draw(KEY, len(images), SHAPE)
    wanted, shares = EVERYTHING.apply(images, labels, table, 5)
    given, t = arrays(images), arrays(labels)
    x, targets = EVERYTHING.apply(given, t, arrays(table) if on_device else table, 5)
    assert x.dtype == given.dtype
    np.testing.assert_array_equal(arrays.backend.to_numpy(x), wanted)
    arrays.check(targets, shares, like=arrays(np.zeros(1, np.float32)), tolerance=1e-6)
    np.testing.assert_allclose(arrays.backend.to_numpy(targets).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(arrays.backend.to_numpy(given), images)
    np.testing.assert_array_equal(arrays.backend.to_numpy(t), labels)


def test_nothing_on_changes_nothing(images):
    augment = Augment()
    assert not augment
    assert all(
        Augment(**{field.name: True if field.name == "flip" else 1})
        for field in fields(Augment)
        if field.name != "scale"
    )
    x, _ = applied(augment, images)
    np.testing.assert_array_equal(x, images)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"crop": -1}, "crop must be a whole number of 0 or more, not -1"),
        ({"crop": 2.5}, "crop must be a whole number"),
        ({"cutout": True}, "cutout must be a whole number"),
        ({"flip": 1}, "flip must be True or False, not 1"),
        ({"rotate": 181}, "rotate must be a number from 0 to 180, not 181"),
        ({"rotate": float("nan")}, "rotate must be a number from 0 to 180, not nan"),
        ({"scale": 1.0}, "scale must be a number from 0 to 0.9, not 1.0"),
        ({"translate": "0.1"}, "translate must be a number from 0 to 1, not '0.1'"),
        ({"mixup": -0.1}, "mixup must be a number from 0 to 1000"),
    ],
)
def test_what_is_no_such_number_is_refused(options, fault):
    with pytest.raises(XpcnnError, match=fault):
        Augment(**options)


def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(XpcnnError, match="crop=9 is too much for images of 9×12 pixels"):
        Augment(crop=9).draw(KEY, 1, SHAPE)
    with pytest.raises(XpcnnError, match="cutout=10 is too much"):
        Augment(cutout=10).draw(KEY, 1, SHAPE)
    with pytest.raises(XpcnnError, match=r"needs images \(C, H, W\), not of shape \(9,\)"):
        Augment(crop=1).draw(KEY, 1, (9,))
    table = Augment(crop=1).draw(KEY, 3, SHAPE)
    with pytest.raises(XpcnnError, match=r"table \(N, 18\), got shapes \(40, 2, 9, 12\) and \(3, 18\)"):
        Augment(crop=1).apply(images, None, table, 10)
    with pytest.raises(XpcnnError, match="images of uint8 or floats, not int64"):
        Augment(crop=1).apply(images[:3].astype(np.int64), None, table, 10)
