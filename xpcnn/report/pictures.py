"""Small pictures as PNG in data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from xpcnn.report.markup import Html, tag

Host = np.ndarray[Any, Any]

MOST_SIDE = 96  # pixels of a picture; larger ones are made smaller
MOST_MAP = 40  # of a feature map
WARM, COOL = (236, 104, 36), (58, 124, 240)  # above and below zero
STEPS = 31  # shades of either
FAINT = 0.7  # the power that makes small values easier to see


def image_uri(image: Host) -> str:
    """Return an image (C, H, W) as a PNG: in colour if it has three channels, else its first channel in grey.

    uint8 is shown as it is, floats from their smallest to their largest value.
    """
    return _uri(_canvas(image))


def overlay_uri(image: Host, heat: Host) -> str:
    """Return an image (C, H, W), dimmed, under the warm colours of a heat (H, W) from 0 to 1."""
    canvas = _canvas(image).astype(np.float64)
    grey = canvas.mean(axis=2, keepdims=True) if canvas.ndim == 3 else canvas[..., None]
    heat = np.clip(_resized(np.nan_to_num(heat), *grey.shape[:2]), 0, 1)[..., None]
    glow = np.concatenate([np.full_like(heat, 255.0), 70 + 160 * heat, 40 + 40 * heat], axis=2)
    return _uri(((0.5 * grey) * (1 - heat) + glow * heat).round().astype(np.uint8))


def signed_uri(values: Host, limit: float) -> str:
    """Return numbers (H, W) as a PNG: clear at 0, warm towards ``limit``, cool towards ``-limit``."""
    from PIL import Image

    rows, columns = values.shape
    values = _resized(values, *_fitted(rows, columns, MOST_MAP))
    level = np.clip(np.rint(values / (limit or 1.0) * STEPS), -STEPS, STEPS).astype(np.int64) + STEPS
    picture = Image.fromarray(level.astype(np.uint8))
    picture.putpalette(b"".join(bytes(WARM if n > STEPS else COOL) for n in range(2 * STEPS + 1)))
    strength = [round(255 * (abs(n - STEPS) / STEPS) ** FAINT) for n in range(2 * STEPS + 1)]
    return _encoded(picture, transparency=bytes(strength))


def colour_uri(kernel: Host) -> str:
    """Return a kernel (3, H, W) as a colour picture, grey where it is 0."""
    limit = float(np.abs(kernel).max()) or 1.0
    return _uri(np.moveaxis(np.rint(127.5 + 127.5 * kernel / limit), 0, 2).astype(np.uint8))


def mask_uri(strength: Host, warm: Host) -> str:
    """Return a PNG of strengths (H, W) from 0 to 1, clear at 0: warm where ``warm`` (H, W) says so, else cool."""
    colours = np.where(warm[..., None], np.array(WARM), np.array(COOL))
    opacity = np.rint(np.clip(strength, 0, 1) * 255)[..., None]
    return _uri(np.concatenate([colours, opacity], axis=2).astype(np.uint8))


def img(uri: str, alt: str, kind: str = "") -> Html:
    """Return an image element, drawn without smoothing."""
    return tag("img", src=uri, alt=alt, class_=kind or None)


def _canvas(image: Host) -> Host:
    """Return an image (C, H, W) as uint8 (H, W) or (H, W, 3), at most `MOST_SIDE` pixels wide and high."""
    shown = np.moveaxis(image, 0, 2) if len(image) == 3 else image[0]
    if shown.dtype != np.uint8:
        shown = np.nan_to_num(shown.astype(np.float64))
        low, high = shown.min(), shown.max()
        shown = np.rint((shown - low) / (high - low or 1.0) * 255)
    rows, columns = _fitted(shown.shape[0], shown.shape[1], MOST_SIDE)
    planes = [_resized(plane, rows, columns) for plane in np.atleast_3d(shown).transpose(2, 0, 1)]
    pixels = np.clip(np.rint(np.stack(planes, axis=2)), 0, 255).astype(np.uint8)
    return pixels if shown.ndim == 3 else pixels[..., 0]


def _fitted(rows: int, columns: int, most: int) -> tuple[int, int]:
    """Return a size with the same proportions that fits."""
    scale = min(1.0, most / max(rows, columns))
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def _resized(values: Host, rows: int, columns: int) -> Host:
    """Return numbers (H, W) at another size, each the mean of what it covers."""
    from PIL import Image

    values = values.astype(np.float32)
    if values.shape == (rows, columns):
        return values
    return np.asarray(Image.fromarray(values).resize((columns, rows), Image.Resampling.BOX))


def _uri(pixels: Host) -> str:
    from PIL import Image

    return _encoded(Image.fromarray(np.ascontiguousarray(pixels)))


def _encoded(picture: Any, **options: Any) -> str:
    """Return a picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
