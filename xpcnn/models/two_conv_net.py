"""Two convolutions with a pooling between them, and two fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.layers import Affine, Conv2D, Flatten, MaxPool2D, ReLU, Sequential
from xpcnn.ops.window import ints


def two_conv_net(
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    filters: tuple[int, int] = (16, 32),
    kernel_size: int = 5,
    hidden: int = 100,
) -> Sequential:
    """Describe conv → ReLU → max-pool 2 → conv → ReLU → flatten → affine → ReLU → affine.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    filters : (int, int)
        Of the two convolutions.
    kernel_size, hidden : int
        Of the convolutions, and the hidden fully connected layer's width.
    """
    first, second = ints("filters", filters, 2, 1)
    return Sequential(
        Conv2D(first, kernel_size),
        ReLU(),
        MaxPool2D(2),
        Conv2D(second, kernel_size),
        ReLU(),
        Flatten(),
        Affine(hidden),
        ReLU(),
        Affine(classes),
        input_shape=input_shape,
    )
