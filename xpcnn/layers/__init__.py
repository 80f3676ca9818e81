"""Layers: frozen descriptions with a pure forward and backward over ``(params, state, x)``."""

from xpcnn.layers.activation import (
    ELU,
    GELU,
    SELU,
    HardSwish,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from xpcnn.layers.affine import Affine, Flatten
from xpcnn.layers.base import Cost, Layer, OpLayer, Parameter, Placed, leaves
from xpcnn.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D, ConvTranspose3D
from xpcnn.layers.describe import from_config, to_config
from xpcnn.layers.dropout import Dropout
from xpcnn.layers.norm import BatchNorm, GroupNorm, LayerNorm
from xpcnn.layers.pad import PadChannels
from xpcnn.layers.parallel import Identity, Parallel, Residual
from xpcnn.layers.pool import (
    AdaptiveAvgPool2D,
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
)
from xpcnn.layers.sequential import Sequential

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool2D",
    "Affine",
    "AvgPool1D",
    "AvgPool2D",
    "AvgPool3D",
    "BatchNorm",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose1D",
    "ConvTranspose2D",
    "ConvTranspose3D",
    "Cost",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "HardSwish",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
    "OpLayer",
    "PadChannels",
    "Parallel",
    "Parameter",
    "Placed",
    "ReLU",
    "ReLU6",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "from_config",
    "leaves",
    "to_config",
]
