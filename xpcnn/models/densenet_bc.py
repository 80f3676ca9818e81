"""DenseNet-BC: every layer sees all before it."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.errors import XpcnnError, whole
from xpcnn.layers import (
    Affine,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    GlobalAvgPool,
    Identity,
    Layer,
    Parallel,
    ReLU,
    Sequential,
)
from xpcnn.models.blocks import norm_conv

BLOCKS = 3


def densenet_bc(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, *, depth: int = 100, growth: int = 12
) -> Sequential:
    """Describe DenseNet-BC for images such as CIFAR's: three dense blocks with bottlenecks and compression by half.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    depth : int
        Number of weight layers: 6·n + 4 for n layers per block.
    growth : int
        k, the channels that each layer adds.

    References
    ----------
    G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, "Densely connected convolutional networks", 2017, section 3.
    """
    if whole("depth", depth, 10) % 6 != 4:
        raise XpcnnError(f"depth must be 6·n + 4, such as 40 or 100, not {depth}.")
    channels = 2 * whole("growth", growth, 1)
    layers: list[tuple[str, Layer]] = [("stem", Conv2D(channels, 3, padding=1, bias=False))]
    for number in range(1, BLOCKS + 1):
        count = (depth - 4) // 6
        layers.append((f"dense{number}", Sequential(*(_dense(growth) for _ in range(count)))))
        channels += count * growth
        if number < BLOCKS:
            channels //= 2
            layers.append((f"transition{number}", Sequential(*norm_conv(channels, 1), AvgPool2D(2))))
    return Sequential(*layers, BatchNorm(), ReLU(), GlobalAvgPool(), Affine(classes), input_shape=input_shape)


def _dense(growth: int) -> Parallel:
    """Append ``growth`` channels made from all there are, through a bottleneck of four times as many."""
    return Parallel([("past", Identity()), ("new", Sequential(*norm_conv(4 * growth, 1), *norm_conv(growth, 3)))])
