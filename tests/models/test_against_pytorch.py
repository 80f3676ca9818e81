"""Every architecture's output, gradients and running statistics against PyTorch's, at small sizes."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import models

torch_mirror = pytest.importorskip("torch_mirror")

CPU = xc.resolve_backend("cpu")
SMALL = {
    "simple_convnet": (models.simple_convnet, (1, 12, 11), {"filters": 4, "hidden": 6}),
    "lenet5": (models.lenet5, (2, 16, 14), {}),
    "lenet5-unpadded": (models.lenet5, (1, 32, 20), {}),
    "two_conv_net": (models.two_conv_net, (2, 14, 17), {"filters": (4, 5), "hidden": 6, "kernel_size": 3}),
    "vgg11": (models.vgg11, (3, 17, 20), {"hidden": 32, "dropout": 0.0}),
    "vgg11-batch-norm": (models.vgg11, (1, 32, 32), {"hidden": 32, "dropout": 0.0, "batch_norm": True}),
    "pooled_convnet": (models.pooled_convnet, (2, 18, 13), {"filters": (4, 5), "kernel_sizes": (5, 3)}),
    "resnet8": (models.resnet8, (3, 17, 16), {"width": 4}),
    "resnet8-two-blocks": (models.resnet8, (1, 16, 18), {"width": 3, "blocks": 2}),
    "resnet20": (models.resnet20, (3, 9, 8), {"blocks": 1}),
    "resnet20-two-blocks": (models.resnet20, (1, 8, 8), {"blocks": 2}),
    "resnet18": (models.resnet18, (3, 9, 8), {}),
    "resnet18-large": (models.resnet18, (1, 33, 40), {"stem": "large"}),
    "mobilenet_v2": (models.mobilenet_v2, (3, 9, 8), {"width": 0.25, "dropout": 0.0}),
    "mobilenet_v2-large": (models.mobilenet_v2, (3, 33, 40), {"width": 0.25, "dropout": 0.0, "stem": "large"}),
    "densenet_bc": (models.densenet_bc, (3, 9, 8), {"depth": 16, "growth": 4}),
    "densenet_bc-deeper": (models.densenet_bc, (1, 8, 8), {"depth": 22, "growth": 3}),
}


def test_every_model_is_among_them():
    assert {name.partition("-")[0] for name in SMALL} == set(models.__all__)


def one_step(name, dtype):
    """Compare one step of training.

    In float32 PyTorch's own gradients of the deepest network are off by 3e-4, and of some other seeds by far more: an
    input of a ReLU is then so near 0 that rounding changes its sign.
    """
    make, shape, options = SMALL[name]
    tolerance = {"float64": 1e-10, "float32": 1e-3}[dtype]
    torch_mirror.check(make(shape, 5, **options), shape, CPU, dtype, batch=4, tolerance=tolerance, seed=1)


@pytest.mark.parametrize("name", models.__all__)
def test_training_computes_pytorchs_numbers(name, dtype):
    one_step(name, dtype)


SLOW = ("resnet18-large", "vgg11-batch-norm", "mobilenet_v2-large")
VARIANTS = [name for name in SMALL if "-" in name]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in VARIANTS])
def test_training_of_variants_computes_pytorchs_numbers(name):
    one_step(name, "float64")


@pytest.mark.parametrize("name", ["resnet20", "densenet_bc", "mobilenet_v2"])
def test_models_predict_with_the_statistics_they_were_given(name, rng):
    """`Model.predict` is PyTorch's eval mode, dropout included; training moves the statistics that it uses."""
    make, shape, options = SMALL[name]
    net = make(shape, 5, **{key: value for key, value in options.items() if key != "dropout"})
    params, state = torch_mirror.draw(net, shape)
    model = xc.Model(net, "cpu", dtype="float64", values=params | state)
    x = rng.standard_normal((3, *shape))
    for _ in range(2):
        own = model.parameters(), model.state()
        expected = torch_mirror.outcome(net, *own, x, np.zeros((3, 5)), train=False)
        torch_mirror.close(model.backend, model.predict(x), expected.y, "y")
        xc.Trainer(model, xc.optim.sgd(0.01)).step(x, [0, 1, 2])
