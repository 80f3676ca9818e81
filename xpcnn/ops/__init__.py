"""Pure forward and backward pairs: ``NAME(...) -> (y, saved)`` and ``NAME_backward(dy, saved)``.

A loss's backward is ``NAME_backward(saved, dy=None)``. ``saved`` refers to the inputs; leave them as they are until
backward has run. Nothing else is shared: y is new memory. Arrays may be float32 or float64 and, where the library has
them, float16 or bfloat16, which are computed in float32; all arrays of one call have one dtype.
"""

from xpcnn.ops.activation import (
    clip,
    clip_backward,
    elu,
    elu_backward,
    hard_sigmoid,
    hard_sigmoid_backward,
    hard_swish,
    hard_swish_backward,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu6,
    relu6_backward,
    relu_backward,
    selu,
    selu_backward,
)
from xpcnn.ops.adaptive_pool import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    global_max_pool2d,
    global_max_pool2d_backward,
)
from xpcnn.ops.affine import affine, affine_backward
from xpcnn.ops.avg_pool import (
    avg_pool1d,
    avg_pool1d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool3d,
    avg_pool3d_backward,
)
from xpcnn.ops.binary_loss import binary_cross_entropy_with_logits, binary_cross_entropy_with_logits_backward
from xpcnn.ops.conv import conv1d, conv1d_backward, conv2d, conv2d_backward, conv3d, conv3d_backward
from xpcnn.ops.conv_pool import conv2d_relu_max_pool2d, conv2d_relu_max_pool2d_backward
from xpcnn.ops.conv_transpose import (
    conv_transpose1d,
    conv_transpose1d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose3d,
    conv_transpose3d_backward,
)
from xpcnn.ops.cross_entropy import softmax_cross_entropy, softmax_cross_entropy_backward
from xpcnn.ops.dropout import dropout, dropout_backward
from xpcnn.ops.norm import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
)
from xpcnn.ops.pool import (
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
)
from xpcnn.ops.smooth import (
    gelu,
    gelu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    softplus,
    softplus_backward,
    tanh,
    tanh_backward,
)
from xpcnn.ops.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from xpcnn.ops.squared_error import (
    half_squared_error,
    half_squared_error_backward,
    mean_squared_error,
    mean_squared_error_backward,
)
from xpcnn.ops.upsample import upsample2d, upsample2d_backward
from xpcnn.ops.window import conv_output_size

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "affine",
    "affine_backward",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "clip",
    "clip_backward",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_backward",
    "conv3d",
    "conv3d_backward",
    "conv_output_size",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "dropout",
    "dropout_backward",
    "elu",
    "elu_backward",
    "gelu",
    "gelu_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "global_max_pool2d",
    "global_max_pool2d_backward",
    "group_norm",
    "group_norm_backward",
    "half_squared_error",
    "half_squared_error_backward",
    "hard_sigmoid",
    "hard_sigmoid_backward",
    "hard_swish",
    "hard_swish_backward",
    "layer_norm",
    "layer_norm_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "log_softmax",
    "log_softmax_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "mean_squared_error",
    "mean_squared_error_backward",
    "relu",
    "relu6",
    "relu6_backward",
    "relu_backward",
    "selu",
    "selu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "softplus",
    "softplus_backward",
    "tanh",
    "tanh_backward",
    "upsample2d",
    "upsample2d_backward",
]
