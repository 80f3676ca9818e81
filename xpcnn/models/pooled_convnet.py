"""Convolutions that are each pooled at once, which is cheap to compute and enough for digits."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.errors import XpcnnError
from xpcnn.layers import Affine, BatchNorm, Conv2D, Layer, MaxPool2D, ReLU, Sequential
from xpcnn.ops.window import ints


def pooled_convnet(
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    filters: Sequence[int] = (16, 32, 64),
    kernel_sizes: Sequence[int] = (5, 3, 3),
) -> Sequential:
    """Describe (conv → ReLU → max-pool 2 → batch normalisation) for each of ``filters``, and an affine layer.

    A convolution, its ReLU and its pooling are computed as one, without the unpooled image, and what is normalised has
    a quarter of the pixels. Pooling before normalising is what makes that possible.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape; each pooling halves it.
    classes : int
        Number of outputs.
    filters : sequence of int
        Of each convolution.
    kernel_sizes : sequence of int
        Of each convolution; odd, and padded so that the size stays.

    References
    ----------
    The order of pooling and normalisation aside, it is LeNet-5 with the means of S. Ioffe, C. Szegedy, "Batch
    normalization: accelerating deep network training by reducing internal covariate shift", 2015.
    """
    filters = ints("filters", filters, len(filters), 1)
    kernel_sizes = ints("kernel_sizes", kernel_sizes, len(filters), 1)
    if any(size % 2 == 0 for size in kernel_sizes):
        raise XpcnnError(f"kernel_sizes must be odd, so that padding keeps the size, not {kernel_sizes}.")
    layers: list[Layer] = []
    for count, size in zip(filters, kernel_sizes, strict=True):
        layers += [Conv2D(count, size, padding=size // 2), ReLU(), MaxPool2D(2), BatchNorm()]
    return Sequential(*layers, Affine(classes), input_shape=input_shape)
