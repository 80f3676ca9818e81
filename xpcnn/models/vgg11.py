"""VGG with eleven weight layers."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.layers import Affine, Conv2D, Dropout, Layer, MaxPool2D, ReLU, Sequential
from xpcnn.models.blocks import conv_norm

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg11(
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
    batch_norm: bool = False,
) -> Sequential:
    """Describe VGG's configuration A: eight 3×3 convolutions in five stages with pooling, and three affine layers.

    Pooling keeps a last odd row, so that images of any size pass; the paper's sizes are even all the way.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    hidden : int
        Width of the two hidden affine layers; 512 suits 32×32 images.
    dropout : float
        Share of the hidden units dropped in training.
    batch_norm : bool
        Normalise after each convolution, which then has no bias.

    References
    ----------
    K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015, table 1.
    """
    features: list[Layer] = []
    for stage in STAGES:
        for filters in stage:
            features += conv_norm(filters, 3) if batch_norm else [Conv2D(filters, 3, padding=1), ReLU()]
        features.append(MaxPool2D(2, ceil_mode=True))
    head: list[Layer] = []
    for _ in range(2):
        head += [Affine(hidden), ReLU(), *([Dropout(dropout)] if dropout else [])]
    return Sequential(*features, *head, Affine(classes), input_shape=input_shape)
