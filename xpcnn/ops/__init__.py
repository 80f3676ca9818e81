"""Pure forward and backward pairs: ``NAME(...) -> (y, saved)`` and ``NAME_backward(dy, saved)``.

``saved`` refers to the inputs; leave them as they are until backward has run. Nothing else is shared: y is new memory.
"""

from xpcnn.ops.activation import relu, relu_backward
from xpcnn.ops.affine import affine, affine_backward
from xpcnn.ops.conv import (
    conv1d,
    conv1d_backward,
    conv2d,
    conv2d_backward,
    conv3d,
    conv3d_backward,
)
from xpcnn.ops.conv_pool import conv2d_relu_max_pool2d, conv2d_relu_max_pool2d_backward
from xpcnn.ops.loss import softmax_cross_entropy, softmax_cross_entropy_backward
from xpcnn.ops.pool import (
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
)
from xpcnn.ops.window import conv_output_size

__all__ = [
    "affine",
    "affine_backward",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_backward",
    "conv3d",
    "conv3d_backward",
    "conv_output_size",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "relu",
    "relu_backward",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
]
