"""Pictures in pages, decoded again: their colours, their size, and how much they weigh."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from xpcnn.report.pictures import MOST_SIDE, colour_uri, image_uri, img, mask_uri, overlay_uri, signed_uri


def decoded(uri, mode="RGBA"):
    head, _, text = uri.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
        return np.asarray(picture.convert(mode)).astype(int)


def test_images_are_shown_as_they_are(rng):
    grey, colour = (rng.integers(0, 256, (channels, 9, 7)).astype(np.uint8) for channels in (1, 3))
    assert (decoded(image_uri(grey), "L") == grey[0]).all()
    assert (decoded(image_uri(colour), "RGB") == np.moveaxis(colour, 0, 2)).all()
    two = rng.integers(0, 256, (2, 4, 4)).astype(np.uint8)
    assert (decoded(image_uri(two), "L") == two[0]).all()


def test_floats_are_shown_from_lowest_to_highest():
    image = np.array([[[-2.0, 0.0], [1.0, 2.0]]])
    assert decoded(image_uri(image), "L").tolist() == [[0, 128], [191, 255]]
    assert decoded(image_uri(np.full((1, 2, 2), 3.0)), "L").tolist() == [[0, 0], [0, 0]]


def test_large_images_are_made_smaller(rng):
    image = np.zeros((3, 400, 200), dtype=np.uint8)
    image[0, :200] = 255
    shown = decoded(image_uri(image), "RGB")
    assert shown.shape == (MOST_SIDE, MOST_SIDE // 2, 3)
    assert (shown[:40, :, 0] == 255).all()
    assert (shown[60:] == 0).all()
    noise = rng.integers(0, 256, (3, 1000, 1000)).astype(np.uint8)
    assert len(image_uri(noise)) < 50_000


def test_signs_and_sizes_of_numbers():
    shown = decoded(signed_uri(np.array([[1.0, -1.0], [0.0, 0.1]]), 1.0))
    (warm, cool), (zero, faint) = shown
    assert warm[0] > 2 * warm[2] > 0 == 255 - warm[3]
    assert cool[2] > 2 * cool[0] > 0 == 255 - cool[3]
    assert zero[3] == 0
    assert 20 < faint[3] < 100
    assert decoded(signed_uri(np.zeros((3, 3)), 0.0))[..., 3].max() == 0


def test_heat_glows_where_it_is_hot():
    image = np.full((1, 4, 4), 200, dtype=np.uint8)
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    shown = decoded(overlay_uri(image, heat), "RGB")
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert shown[1, 2, 0] == 255 > shown[1, 2, 1] > shown[1, 2, 2]
    assert (decoded(overlay_uri(np.repeat(image, 3, axis=0), heat), "RGB") == shown).all()


def test_kernels_in_colour_are_grey_at_zero():
    kernel = np.zeros((3, 1, 3))
    kernel[:, 0, 1], kernel[0, 0, 2] = -2.0, 2.0
    assert decoded(colour_uri(kernel), "RGB")[0].tolist() == [[128, 128, 128], [0, 0, 0], [255, 128, 128]]


def test_masks():
    shown = decoded(mask_uri(np.array([[0.0, 1.0, 0.5]]), np.array([[True, True, False]])))[0]
    assert shown[:, 3].tolist() == [0, 255, 128]
    assert shown[1][0] > shown[1][2]
    assert shown[2][2] > shown[2][0]


@pytest.mark.parametrize("kind", ["", "thumb"])
def test_the_element(kind):
    element = img("data:,", 'a "quoted" <name>', kind)
    assert "&lt;name&gt;" in element
    assert ("class" in element) == bool(kind)
