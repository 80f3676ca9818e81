"""Pieces that several architectures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.errors import XpcnnError
from xpcnn.layers import BatchNorm, Conv2D, Layer, ReLU
from xpcnn.layers.base import checked_shape

LARGE = 96  # pixels from which on a stem made for photographs leaves enough of an image


def conv_norm(filters: int, kernel_size: int, *, act: Layer | None = ReLU(), **options: Any) -> list[Layer]:  # noqa: B008
    """Return a convolution that keeps the size (but for its stride), batch normalisation, and an activation."""
    conv = Conv2D(filters, kernel_size, padding=kernel_size // 2, bias=False, **options)
    return [conv, BatchNorm(), *([act] if act else [])]


def norm_conv(filters: int, kernel_size: int) -> list[Layer]:
    """Return batch normalisation, ReLU and a convolution that keeps the size."""
    return [BatchNorm(), ReLU(), Conv2D(filters, kernel_size, padding=kernel_size // 2, bias=False)]


def is_large(input_shape: Sequence[int], stem: str) -> bool:
    """Return whether the stem is the one for large images; ``"auto"`` goes by the image."""
    if stem not in ("auto", "small", "large"):
        raise XpcnnError(f"stem must be 'auto', 'small' or 'large', not {stem!r}.")
    return stem == "large" or (stem == "auto" and min(checked_shape(input_shape)[1:], default=0) >= LARGE)
