"""Residual networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xpcnn.errors import whole
from xpcnn.layers import (
    Affine,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    GlobalAvgPool,
    Identity,
    Layer,
    MaxPool2D,
    PadChannels,
    ReLU,
    Residual,
    Sequential,
)
from xpcnn.models.blocks import conv_norm, is_large


def resnet8(
    input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, *, width: int = 32, blocks: int = 1
) -> Sequential:
    """Describe a residual network that is quick on a CPU: 6·blocks + 2 layers, half of the image's size from the start.

    Its stem is conv 5×5 → ReLU → max-pool 2 → batch normalisation, of which the first three are computed as one without
    the unpooled image. Three stages of ``width``, 2·``width`` and 4·``width`` filters follow, with projection shortcuts
    (option B) where the size is halved.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    width : int
        Filters of the stem and the first stage.
    blocks : int
        Residual blocks per stage: 1 makes 8 layers, 2 make 14.

    References
    ----------
    Its blocks are those of K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2016,
    section 4.2, at twice the width and half the size.
    """
    width, blocks = whole("width", width, 1), whole("blocks", blocks, 1)
    stem = [Conv2D(width, 5, padding=2), ReLU(), MaxPool2D(2), BatchNorm()]
    stages = [_stage(factor * width, blocks, min(factor, 2), _projected) for factor in (1, 2, 4)]
    return _network(stem, stages, input_shape, classes)


def resnet20(input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, *, blocks: int = 3) -> Sequential:
    """Describe He et al.'s network for CIFAR-10: 6·blocks + 2 layers, shortcuts without parameters (option A).

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    blocks : int
        Residual blocks per stage: 3 make 20 layers, 5 make 32, 9 make 56.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2016, section 4.2.
    """
    whole("blocks", blocks, 1)
    stages = [_stage(filters, blocks, stride, _padded) for filters, stride in ((16, 1), (32, 2), (64, 2))]
    return _network(conv_norm(16, 3), stages, input_shape, classes)


def resnet18(input_shape: Sequence[int] = (3, 224, 224), classes: int = 1000, *, stem: str = "auto") -> Sequential:
    """Describe He et al.'s 18-layer network, with projection shortcuts (option B).

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    stem : {"auto", "small", "large"}
        "large" is the paper's 7×7 convolution of stride 2 and pooling; "small", a 3×3 convolution, suits 32×32 images;
        "auto" takes "large" from 96 pixels on.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2016, table 1.
    """
    first = conv_norm(64, 3)
    if is_large(input_shape, stem):
        first = [*conv_norm(64, 7, stride=2), MaxPool2D(3, stride=2, padding=1)]
    stages = [_stage(filters, 2, stride, _projected) for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2))]
    return _network(first, stages, input_shape, classes)


def _network(stem: list[Layer], stages: list[Sequential], input_shape: Sequence[int], classes: int) -> Sequential:
    """Put stem, stages and head together."""
    named = [(f"stage{number}", stage) for number, stage in enumerate(stages, start=1)]
    return Sequential(("stem", Sequential(*stem)), *named, GlobalAvgPool(), Affine(classes), input_shape=input_shape)


def _stage(filters: int, blocks: int, stride: int, shortcut: Callable[[int, int], Layer]) -> Sequential:
    """Return residual blocks, the first of which may halve the image and, with it, double the channels."""
    layers: list[Layer] = []
    for step in (stride, *(1,) * (blocks - 1)):
        body = Sequential(*conv_norm(filters, 3, stride=step), *conv_norm(filters, 3, act=None))
        layers += [Residual(body, shortcut(filters, step) if step > 1 else Identity()), ReLU()]
    return Sequential(*layers)


def _padded(filters: int, stride: int) -> Sequential:
    """Option A: every second pixel, and channels of zeros."""
    return Sequential(AvgPool2D(1, stride=stride), PadChannels(filters))


def _projected(filters: int, stride: int) -> Sequential:
    """Option B: a 1×1 convolution."""
    return Sequential(*conv_norm(filters, 1, stride=stride, act=None))
