"""Pictures: digits of MNIST drawn in many ways are read as they were, or at least recognised."""

from __future__ import annotations

import io
import random
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

import xpcnn as xc
from xpcnn import DataError, XpcnnError, models, optim
from xpcnn.data import load_dataset, picture, read_picture
from xpcnn.data.picture import read_fitted, read_header

GREY, RGB = (1, 28, 28), (3, 28, 28)
COUNT = 200  # digits to recognise
TIFF = b"II*\0" + bytes(200)


@pytest.fixture(scope="session")
def digits():
    """Return test digits (COUNT, 28, 28) and their labels."""
    test = load_dataset("mnist")[1].first(COUNT)
    return test.images[:, 0], test.labels


@pytest.fixture(scope="session")
def model():
    train, _ = load_dataset("mnist")
    model = xc.Model(models.simple_convnet(), "cpu", seed=0, classes=train.classes)
    xc.Trainer(model, optim.adam(0.001)).fit(train.first(5000), epochs=2)
    return model


@pytest.fixture
def digit(digits):
    return digits[0][0]  # a seven


@pytest.fixture
def save(tmp_path):
    """Return a function that writes an array or a picture and returns the path."""

    def save(picture, name="picture.png", **options):
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return save


# Pictures of the model's own size are taken as they are.


def test_pictures_of_the_models_size_are_read_back_exactly(digits, save):
    for image in digits[0][:50]:
        path = save(image)
        assert np.array_equal(read_picture(path, GREY), image[None])
        assert np.array_equal(read_picture(path, GREY, center=True), image[None])


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.gif", "x.webp", "x.wrong-name"])
def test_lossless_formats_are_told_by_their_content(digit, save, name):
    formats = {"x.wrong-name": {"format": "PNG"}, "x.webp": {"lossless": True}}
    path = save(Image.fromarray(digit), name, **formats.get(name, {}))
    assert np.array_equal(read_picture(str(path), GREY), digit[None])


def test_jpeg_is_close(digit, save):
    found = read_picture(save(digit, "x.jpg", quality=95), GREY)
    assert np.abs(found[0].astype(int) - digit).mean() < 4


@pytest.mark.parametrize("mode", ["P", "1", "RGB", "RGBA", "LA", "16 bits"])
def test_every_kind_of_pixel(digit, save, mode):
    expected = np.where(digit > 127, 255, 0).astype(np.uint8) if mode == "1" else digit
    if mode == "16 bits":
        picture = Image.fromarray(digit.astype(np.uint16) * 257)
    elif mode == "1":
        picture = Image.fromarray(expected).convert("1")
    else:
        picture = Image.fromarray(digit).convert(mode)
    path = save(picture)
    assert np.array_equal(read_picture(path, GREY), expected[None])
    assert np.array_equal(read_picture(path, RGB), np.stack([expected] * 3))


def test_a_palette_of_colours(save):
    indices = np.array([[0, 1], [2, 0]], dtype=np.uint8)
    picture = Image.new("P", (2, 2))
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 100])
    colours = [[[0, 200], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [100, 0]]]
    assert read_picture(save(picture), (3, 2, 2)).tolist() == colours


def test_colours_become_channels_or_luma(save):
    pixels = np.zeros((28, 28, 3), dtype=np.uint8)
    pixels[10:20, 10:20] = [200, 100, 50]
    path = save(pixels)
    assert np.array_equal(read_picture(path, RGB), pixels.transpose(2, 0, 1))
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert read_picture(path, GREY)[0, 15, 15] == pytest.approx(luma, abs=1)


@pytest.mark.parametrize("model_takes", [GREY, RGB])
def test_transparency_is_laid_on_white(digit, save, model_takes):
    ink = Image.merge("RGBA", [Image.new("L", (28, 28), 0)] * 3 + [Image.fromarray(digit)])
    found = read_picture(save(ink), model_takes, polarity="keep")
    assert np.abs(found.astype(int) - (255 - digit.astype(int))).max() <= 1


def test_a_palettes_transparent_colour_is_laid_on_white(save):
    picture = Image.new("P", (28, 28), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    path = save(picture, transparency=1)
    assert (read_picture(path, GREY, polarity="keep") == 255).all()


# Polarity


def test_polarity(digit, save):
    light_on_dark, dark_on_light = save(digit, "light.png"), save(255 - digit, "dark.png")
    for polarity, light, dark in (
        ("auto", digit, digit),
        ("keep", digit, 255 - digit),
        ("invert", 255 - digit, digit),
    ):
        assert np.array_equal(read_picture(light_on_dark, GREY, polarity=polarity)[0], light)
        assert np.array_equal(read_picture(dark_on_light, GREY, polarity=polarity)[0], dark)
    assert np.array_equal(read_picture(dark_on_light, RGB)[0], 255 - digit)  # colours are not inverted unasked
    with pytest.raises(XpcnnError, match="polarity must be one of auto, keep, invert, not 'both'"):
        read_picture(light_on_dark, GREY, polarity="both")


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, np.rot90),  # "the 0th row is the visual right-hand side"
        (7, lambda a: np.rot90(a, 2).T),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_cameras_say_which_way_is_up(digit, save, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(np.ascontiguousarray(stored(digit)), exif=exif)
    assert np.array_equal(read_picture(path, GREY)[0], digit)


# Other sizes


def test_a_picture_is_fitted_with_its_proportions(save):
    pixels = np.full((40, 100, 3), [10, 20, 30], dtype=np.uint8)
    pixels[:, 40:60] = [250, 150, 50]
    found = read_picture(save(pixels), (3, 20, 20))
    assert found.shape == (3, 20, 20)
    assert found.dtype == np.uint8
    assert np.array_equal(found[:, 9, 10], [250, 150, 50])  # the stripe, in the middle
    assert np.array_equal(found[:, 9, 2], [10, 20, 30])
    assert (found[:, :5] == found[:, :1, :1]).all()  # above the eight rows that 40 became: padding
    assert (found[:, 15:] == found[:, :1, :1]).all()


def test_centring_puts_the_ink_where_mnist_has_it(digits, save):
    """Drawn five times as large, off the middle, a digit comes back to its own place."""
    nearest = []
    for image in digits[0][:60]:
        sheet = np.zeros((250, 300), dtype=np.uint8)
        sheet[90:230, 7:147] = np.kron(image, np.ones((5, 5), dtype=np.uint8))
        found = read_picture(save(sheet), GREY, center=True)[0].astype(float)
        shifted = {
            (dy, dx): np.abs(np.roll(found, (dy, dx), axis=(0, 1)) - image).mean()
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        }
        nearest.append(min(shifted, key=shifted.get))
    assert nearest.count((0, 0)) > 0.75 * len(nearest)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [GREY, RGB, (1, 5, 40), (1, 1, 1)])
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 2), (28, 27), (300, 300)])
def test_odd_sizes_and_blank_pictures(save, size, shape, center):
    for value in (0, 255):
        found = read_picture(save(np.full(size, value, dtype=np.uint8)), shape, center=center)
        assert found.shape == shape
        ground = value if shape[0] == 3 else 0  # light paper is inverted
        assert (found == ground).all()


def test_a_dot_is_not_lost(save):
    pixels = np.zeros((500, 500), dtype=np.uint8)
    pixels[100, 400] = 255
    found = read_picture(save(pixels), GREY, center=True)[0]
    assert found.max() > 200
    assert found[14, 14] == found.max()


def test_large_jpegs_are_decoded_smaller_and_look_the_same(save):
    """A smooth picture, scaled down by a half or more, is what its definition gives at the small size."""
    y, x = np.mgrid[0:900, 0:1200] / 300
    smooth = np.stack([np.sin(y + x), np.cos(2 * y - x), np.sin(3 * x)], axis=2)
    pixels = (127.5 + 100 * smooth).round().astype(np.uint8)
    y, x = ((np.mgrid[0:90, 0:120] + 0.5) * 10 - 0.5) / 300
    expected = 127.5 + 100 * np.stack([np.sin(y + x), np.cos(2 * y - x), np.sin(3 * x)])
    for quality in (95, 80):
        path = save(pixels, "x.jpg", quality=quality)
        for read in (read_fitted, read_picture):
            found = read(path, (3, 90, 120)).astype(float)
            assert np.abs(found - expected).max() < 8
            assert np.abs(found - expected).mean() < 1.5
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(np.rot90(pixels).copy(), "x.jpg", quality=95, exif=exif)
    assert np.abs(read_fitted(path, (3, 90, 120)) - expected).mean() < 1.5
    assert read_header(path) == (900, 1200, False)


def test_padding_has_the_median_colour_of_the_border(save):
    pixels = np.full((10, 40, 3), [10, 20, 30], dtype=np.uint8)
    pixels[4:6, 15:25] = [250, 150, 50]
    for found in (read_picture(save(pixels), (3, 40, 40)), read_fitted(save(pixels), (3, 40, 40))):
        assert (found[:, [0, 14, 25, 39]] == np.array([10, 20, 30])[:, None, None]).all()
        assert found[:, 20, 20].tolist() == [250, 150, 50]


@pytest.mark.parametrize(
    ("mode", "grey"),
    [("L", True), ("LA", True), ("1", True), ("I;16", True), ("P", False), ("RGB", False), ("RGBA", False)],
)
def test_headers(save, mode, grey):
    picture = Image.fromarray(np.zeros((3, 7), np.uint16)) if mode == "I;16" else Image.new(mode, (7, 3))
    assert read_header(save(picture)) == (3, 7, grey)


def test_warnings_are_silenced_and_come_back(save, digit):
    """Pillow warns of large sizes, whose pictures are refused by our own sentence; threads may overlap."""
    filters = warnings.filters[:]
    with picture._QUIET:
        with picture._QUIET:
            warnings.warn("silenced", stacklevel=1)
        warnings.warn("silenced", stacklevel=1)
    assert warnings.filters == filters
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


# Recognition


def sheet(image, height, width, top, left, scale):
    """Return a light digit, enlarged, on a black sheet."""
    digit = Image.fromarray(image).resize((28 * scale, 28 * scale), Image.Resampling.BICUBIC)
    paper = Image.new("L", (width, height), 0)
    paper.paste(digit, (left, top))
    return paper


def middle(image):
    return sheet(image, 180, 180, 20, 20, 5)


def clear(image):
    ink = middle(image)
    return Image.merge("RGBA", [Image.new("L", ink.size, 0)] * 3 + [ink])


def noisy(image):
    noise = np.random.default_rng(0).normal(0, 6, (180, 180))
    return Image.fromarray((200 - 0.6 * np.asarray(middle(image)) + noise).clip(0, 255).astype(np.uint8))


DRAWN = {
    "enlarged": (lambda a: Image.fromarray(a).resize((280, 280), Image.Resampling.BICUBIC), "png", {}),
    "dark on light": (lambda a: ImageOps.invert(middle(a)), "png", {}),
    "blue on yellow": (lambda a: ImageOps.colorize(middle(a), (255, 240, 150), (20, 30, 120)), "png", {}),
    "on nothing": (clear, "png", {}),
    "JPEG": (lambda a: ImageOps.invert(middle(a)), "jpg", {"quality": 50}),
    "WebP": (middle, "webp", {"quality": 50, "method": 0}),
    "GIF": (middle, "gif", {}),
    "wide": (lambda a: sheet(a, 120, 400, 10, 250, 3), "png", {}),
    "tall": (lambda a: ImageOps.invert(sheet(a, 500, 150, 300, 5, 4)), "png", {}),
    "in a corner": (lambda a: sheet(a, 300, 300, 0, 0, 4), "png", {}),
    "small": (lambda a: sheet(a, 31, 40, 1, 9, 1), "png", {}),
    "on noisy paper": (noisy, "jpg", {}),
}


@pytest.mark.parametrize("way", DRAWN)
def test_digits_are_recognised_however_they_are_drawn(model, digits, save, way):
    draw, suffix, options = DRAWN[way]
    images, labels = digits
    read = [read_picture(save(draw(a), f"x.{suffix}", **options), GREY, center=True) for a in images]
    raw = (model.predict(images[:, None]).argmax(axis=1) == labels).mean()
    assert raw > 0.9
    assert (model.predict(np.stack(read)).argmax(axis=1) == labels).mean() > raw - 0.03


# What cannot be read


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_picture(path, GREY)
    text = str(caught.value)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_what_is_not_a_picture(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.png")
    assert "not a file" in refusal(tmp_path)
    for name, content in (("text.png", b"hello\n"), ("empty.png", b""), ("svg.png", b"<svg/>"), ("tiff.png", TIFF)):
        (tmp_path / name).write_bytes(content)
        assert "is not a picture in one of the formats PNG, JPEG" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_truncated_pictures(digits, save, suffix):
    path = save(middle(digits[0][0]), f"x.{suffix}")
    whole = path.read_bytes()
    for length in (4, 30, len(whole) // 2):
        path.write_bytes(whole[:length])
        refusal(path)


def test_pictures_that_are_too_large(tmp_path):
    """Sizes that a header of few bytes claims: over our limit, and over Pillow's own."""
    for name, width, height in (
        ("large.png", 10_000, 5_001),
        ("bomb.png", 60_000, 60_000),
        ("most", 2**31 - 1, 2**31 - 1),
    ):
        path = tmp_path / name
        path.write_bytes(png_header(width, height))
        assert "50,000,000" in refusal(path)


def png_header(width, height):
    """Return the start of a PNG of 8-bit grey."""
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        + len(data).to_bytes(4, "big") + b"IDAT" + data + zlib.crc32(b"IDAT" + data).to_bytes(4, "big")
    )  # fmt: skip


def test_models_for_other_channels(save, digit):
    with pytest.raises(XpcnnError, match="pictures have 1 or 3 channels, but the model takes 4"):
        read_picture(save(digit), (4, 28, 28))


def test_mutated_pictures_are_read_or_refused(digit, tmp_path):
    rng, exif = random.Random(20_240_607), Image.Exif()
    exif[0x0112] = 6
    wholes = []
    for mode, kind, options in (
        ("L", "PNG", {"exif": exif}), ("P", "PNG", {"transparency": 3}), ("L", "JPEG", {"exif": exif}),
        ("CMYK", "JPEG", {}), ("RGBA", "BMP", {}), ("P", "GIF", {}), ("RGBA", "WEBP", {"exif": exif}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(digit).convert(mode).save(buffer, kind, **options)
        wholes.append(buffer.getvalue())
    path, counts = tmp_path / "picture", {"read": 0, "refused": 0}
    for number in range(1000):
        damaged = bytearray(rng.choice(wholes))
        for _ in range(rng.choice([1, 2, 5])):
            place = rng.randrange(len(damaged) if rng.random() < 0.5 else 64)
            damaged[place] = rng.choice([0, 1, 127, 255, rng.randrange(256)])
        path.write_bytes(damaged[: len(damaged) if rng.random() < 0.8 else place + 1])
        try:
            found = read_picture(path, GREY if number % 2 else RGB, center=number % 3 == 0)
        except DataError:
            counts["refused"] += 1
        else:
            assert found.shape == (GREY if number % 2 else RGB)
            counts["read"] += 1
    assert min(counts.values()) > 100, counts
