"""MobileNetV2: inverted residual blocks of depthwise convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.errors import XpcnnError
from xpcnn.layers import Affine, Dropout, GlobalAvgPool, Layer, ReLU6, Residual, Sequential
from xpcnn.models.blocks import conv_norm, is_large
from xpcnn.ops import _check

STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2(
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    stem: str = "auto",
) -> Sequential:
    """Describe MobileNetV2.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape.
    classes : int
        Number of outputs.
    width : float
        Multiplies the number of channels.
    dropout : float
        Share of the last features dropped in training.
    stem : {"auto", "small", "large"}
        "small" keeps the first two strides at 1, for images such as CIFAR's; "auto" does below 96 pixels.

    References
    ----------
    M. Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018, table 2.
    """
    if not _check.number("width", width, 0.0, 100.0):
        raise XpcnnError("width must be above 0.")
    first = 2 if is_large(input_shape, stem) else 1
    channels = _rounded(32 * width)
    layers: list[tuple[str, Layer]] = [("stem", Sequential(*conv_norm(channels, 3, stride=first, act=ReLU6())))]
    for number, (expansion, out, blocks, stride) in enumerate(STAGES, start=1):
        filters = _rounded(out * width)
        stage: list[Layer] = []
        for step in (first if number == 2 else stride, *(1,) * (blocks - 1)):
            body = _inverted(channels, filters, expansion, step)
            stage.append(Residual(body) if step == 1 and channels == filters else body)
            channels = filters
        layers.append((f"stage{number}", Sequential(*stage)))
    layers.append(("last", Sequential(*conv_norm(_rounded(1280 * max(1.0, width)), 1, act=ReLU6()))))
    head = [GlobalAvgPool(), *([Dropout(dropout)] if dropout else []), Affine(classes)]
    return Sequential(*layers, *head, input_shape=input_shape)


def _inverted(channels: int, filters: int, expansion: int, stride: int) -> Sequential:
    """Widen by 1×1, convolve each channel by itself, project by 1×1 without an activation."""
    wide = channels * expansion
    layers = conv_norm(wide, 1, act=ReLU6()) if expansion > 1 else []
    layers += conv_norm(wide, 3, stride=stride, groups=wide, act=ReLU6())
    return Sequential(*layers, *conv_norm(filters, 1, act=None))


def _rounded(channels: float) -> int:
    """Round to a multiple of 8, but not down by more than a tenth."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near
