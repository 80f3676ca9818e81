"""LeNet-5 with ReLU and max pooling."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.layers import Affine, Conv2D, MaxPool2D, ReLU, Sequential
from xpcnn.layers.base import checked_shape


def lenet5(input_shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> Sequential:
    """Describe LeNet-5: two 5×5 convolutions with pooling, then 120, 84 and ``classes`` units.

    Images smaller than the paper's 32×32 are padded by 2 at the first layer, which makes 28×28 the paper's size. ReLU
    and max pooling stand in for the paper's scaled tanh and trained subsampling.

    Parameters
    ----------
    input_shape : (C, H, W)
        One image's shape, at least 12×12.
    classes : int
        Number of outputs.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    padding = 2 if max(checked_shape(input_shape)[1:], default=0) < 32 else 0
    return Sequential(
        Conv2D(6, 5, padding=padding),
        ReLU(),
        MaxPool2D(2),
        Conv2D(16, 5),
        ReLU(),
        MaxPool2D(2),
        Affine(120),
        ReLU(),
        Affine(84),
        ReLU(),
        Affine(classes),
        input_shape=input_shape,
    )
