"""Layers: frozen descriptions with a pure forward and backward over ``(params, state, x)``."""

from xpcnn.layers.activation import ReLU
from xpcnn.layers.affine import Affine, Flatten
from xpcnn.layers.base import Layer, Parameter
from xpcnn.layers.conv import Conv2D
from xpcnn.layers.describe import from_config, to_config
from xpcnn.layers.pool import MaxPool2D
from xpcnn.layers.sequential import Sequential

__all__ = [
    "Affine",
    "Conv2D",
    "Flatten",
    "Layer",
    "MaxPool2D",
    "Parameter",
    "ReLU",
    "Sequential",
    "from_config",
    "to_config",
]
