"""Named architectures: each takes ``(input_shape, classes, ...)`` and returns a description, with no arrays in it."""

from xpcnn.models.lenet5 import lenet5
from xpcnn.models.simple_convnet import simple_convnet

__all__ = ["lenet5", "simple_convnet"]
