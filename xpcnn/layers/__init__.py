"""Layers: frozen descriptions with a pure forward and backward over ``(params, state, x)``."""

from xpcnn.layers.activation import (
    ELU,
    GELU,
    SELU,
    Clip,
    HardSigmoid,
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
from xpcnn.layers.affine import Affine, Flatten, Reshape
from xpcnn.layers.arithmetic import Join, Scale
from xpcnn.layers.base import Cost, Layer, OpLayer, Parameter, Placed, leaves
from xpcnn.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D, ConvTranspose3D
from xpcnn.layers.describe import from_config, to_config
from xpcnn.layers.dropout import Dropout
from xpcnn.layers.graph import Graph
from xpcnn.layers.norm import BatchNorm, GroupNorm, LayerNorm
from xpcnn.layers.pad import Pad2D, PadChannels
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
from xpcnn.layers.upsample import Upsample2D

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
    "Clip",
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
    "Graph",
    "GroupNorm",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "Join",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
    "OpLayer",
    "Pad2D",
    "PadChannels",
    "Parallel",
    "Parameter",
    "Placed",
    "ReLU",
    "ReLU6",
    "Reshape",
    "Residual",
    "Scale",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "Upsample2D",
    "from_config",
    "leaves",
    "to_config",
]
