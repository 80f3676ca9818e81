"""The book's network: convolution, ReLU, pooling, and two fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.layers import Affine, Conv2D, MaxPool2D, ReLU, Sequential
from xpcnn.optim import HeNormal, Initializer


def simple_convnet(
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    filters: int = 30,
    kernel_size: int = 5,
    hidden: int = 100,
    init: Initializer | None = None,
) -> Sequential:
    """Describe conv → ReLU → max-pool 2 → affine → ReLU → affine.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    filters, kernel_size, hidden : int
        Of the convolution, and the hidden fully connected layer's width.
    init : Initializer, optional
        Of all weights; He's by default, the book has ``optim.Normal(0.01)``.

    References
    ----------
    K. Saitoh, "Deep Learning from Scratch", 2016, section 7.5.
    """
    start = init or HeNormal()
    return Sequential(
        Conv2D(filters, kernel_size, init=start),
        ReLU(),
        MaxPool2D(2),
        Affine(hidden, init=start),
        ReLU(),
        Affine(classes, init=start),
        input_shape=input_shape,
    )
