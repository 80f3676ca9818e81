"""xpcnn's side of `bench_cpu.py`, through its public functions, and the making of what both sides are given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import xpcnn as xc
from xpcnn.layers import to_config

VERSION = xc.__version__
BATCHES = 8  # different ones, taken in turn
MANY = 256  # images in the larger prediction
NETWORKS = {
    "simple_convnet": xc.models.simple_convnet,
    "lenet5": xc.models.lenet5,
    "resnet20": xc.models.resnet20,
    "mobilenet_v2": lambda: xc.models.mobilenet_v2((3, 32, 32), 10, dropout=0.0),
}


def prepare(task, data):
    """Write a network's description, weights, running statistics, batches and images to a file."""
    net, rng = NETWORKS[task["network"]](), np.random.default_rng(0)
    model = xc.Model(net, "cpu")
    values = model.parameters() | {path: _statistics(path, old, rng) for path, old in model.state().items()}
    images, labels = _images(model, BATCHES * task["batch"], rng)
    arrays = {f"values/{path}": value for path, value in values.items()}
    np.savez(task["target"], images=images, labels=labels, config=json.dumps(to_config(net)), **arrays)


def _statistics(path, old, rng):
    """Return running statistics that a swap or a fault in folding would show."""
    drawn = 0.5 + rng.random(old.shape) if path.endswith("var") else 0.1 * rng.standard_normal(old.shape)
    return drawn.astype(old.dtype)


def _images(model, count, rng):
    """Return images and labels: MNIST's where they fit, else noise."""
    count = max(count, MANY)
    if model.input_shape == (1, 28, 28):
        train, _ = xc.load_dataset("mnist")
        return train.images[:count], train.labels[:count]
    return rng.standard_normal((count, *model.input_shape), dtype=np.float32), rng.integers(0, 10, count)


def _model(task, data):
    return xc.Model(NETWORKS[task["network"]](), "cpu", values=data["values"])


def training(task, data):
    """Return a function that makes the update of a given number and returns its loss."""
    rule = xc.optim.adagrad(task["lr"]) if task["adagrad"] else xc.optim.sgd(task["lr"], momentum=0.9)
    trainer, batches = xc.Trainer(_model(task, data), rule), data["batches"]
    return lambda number: trainer.step(*batches[number % len(batches)])


def prediction(task, data):
    """Return a function from nothing to the logits of the task's images."""
    model, x = _model(task, data), data["images"]
    return lambda: model.predict(x)


def convolution(task, x, weight, bias, dy, options):
    """Return a function that convolves, and one that returns the gradients of x, weight and bias."""
    _, saved = xc.ops.conv2d(x, weight, bias, **options)
    return lambda: xc.ops.conv2d(x, weight, bias, **options)[0], lambda: xc.ops.conv2d_backward(dy, saved)


def prepare_start(task, data):
    """Train simple_convnet for one step; write the model, its weights for PyTorch, and a picture."""
    from PIL import Image

    train, test = xc.load_dataset("mnist")
    model = xc.Model(xc.models.simple_convnet(), "cpu", classes=train.classes, dataset="mnist")
    xc.Trainer(model, xc.optim.adagrad(0.01)).step(train.images[:100], train.labels[:100])
    folder = Path(task["target"])
    model.save(folder / "model.safetensors")
    arrays = {f"values/{path}": value for path, value in model.parameters().items()}
    np.savez(folder / "start.npz", **arrays)
    Image.fromarray(test.images[0, 0]).save(folder / "digit.png")
