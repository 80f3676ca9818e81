"""Named architectures: each takes ``(input_shape, classes, ...)`` and returns a description, with no arrays in it."""

from xpcnn.models.densenet_bc import densenet_bc
from xpcnn.models.lenet5 import lenet5
from xpcnn.models.mobilenet_v2 import mobilenet_v2
from xpcnn.models.pooled_convnet import pooled_convnet
from xpcnn.models.resnet import resnet8, resnet18, resnet20
from xpcnn.models.simple_convnet import simple_convnet
from xpcnn.models.two_conv_net import two_conv_net
from xpcnn.models.vgg11 import vgg11

__all__ = [
    "densenet_bc",
    "lenet5",
    "mobilenet_v2",
    "pooled_convnet",
    "resnet8",
    "resnet18",
    "resnet20",
    "simple_convnet",
    "two_conv_net",
    "vgg11",
]
