#!/usr/bin/env python3
"""Train one network in xpcnn, PyTorch and Keras, from the same initial weights with the same batches, side by side.

    python scripts/compare_frameworks.py [--model two-conv-net] [--epochs 2] [--frameworks xpcnn,torch,keras]

Each framework trains in a process of its own: plain SGD in float32, uint8 batches normalised there, the loss of every
update kept. The PyTorch and Keras networks (Keras on its torch backend) are built from xpcnn's description and filled
with xpcnn's initial weights. Printed are the losses side by side, the largest difference between a loss and that of the
first framework, both accuracies and the time of an epoch without its evaluation. Each adds up in an order of its own:
now and then the last bit decides a ReLU or a maximum the other way, and training lets that grow, also between PyTorch
and Keras on PyTorch. A framework that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

NEEDS = {"xpcnn": ("xpcnn",), "torch": ("torch",), "keras": ("keras", "torch")}
NETWORKS = ("two-conv-net", "simple-convnet", "lenet5")
EVALUATION_BATCH = 1000
ROWS = 12  # of the table of losses, about
EARLY = 100  # updates, before rounding has grown much


def main():
    """Read the options, train in each framework and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--epochs", type=count, default=2)
    parser.add_argument("--batch-size", type=count, default=100)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N images of each part")
    parser.add_argument("--every", type=count, metavar="K", help="print the loss of every K-th update")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=count, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--frameworks", type=frameworks, default=list(NEEDS), help="some of xpcnn,torch,keras")
    parser.add_argument("--json", action="store_true", help="print every loss as JSON instead")
    parser.add_argument("--worker", choices=list(NEEDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(train(options)))
        return
    for name in [name for name in options.frameworks if not installed(name)]:
        print(f"{name} is left out: {' or '.join(NEEDS[name])} is not installed.", file=sys.stderr)
        options.frameworks.remove(name)
    if not options.frameworks:
        parser.error("none of the frameworks asked for is installed.")
    results = {name: run_worker(options, name) for name in options.frameworks}
    print(json.dumps(results, indent=2) if options.json else "\n".join(table(options, results)))


def count(text):
    """Return a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def frameworks(text):
    """Return the frameworks of a list with commas, each once."""
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"takes {', '.join(NEEDS)}, not {', '.join(map(repr, unknown))}")
    return names


def installed(name):
    """Whether everything a framework needs is installed."""
    return all(importlib.util.find_spec(module) for module in NEEDS[name])


def run_worker(options, name):
    """Train in a process with one framework and return what it came to."""
    environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), str(options.threads))
    environment |= {"KERAS_BACKEND": "torch"} | ({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def train(options):
    """Train in this process; return every update's loss, the accuracies and the seconds of each epoch."""
    import xpcnn as xc

    parts = xc.load_dataset("mnist")
    data, test = (part.first(options.limit) if options.limit else part for part in parts)
    net = getattr(xc.models, options.model.replace("-", "_"))(data.images.shape[1:], len(data.classes))
    model = xc.Model(net, options.device if options.worker == "xpcnn" else "cpu", options.seed)
    version, step, predict = TRAINERS[options.worker](model, options)
    losses, seconds = [], []
    for epoch in range(options.epochs):
        order = np.random.default_rng([options.seed, epoch]).permutation(len(data))
        start = time.perf_counter()
        chosen = [order[first : first + options.batch_size] for first in range(0, len(data), options.batch_size)]
        found = [step(data.images[rows], data.labels[rows]) for rows in chosen]
        losses += [float(loss) for loss in found]  # read back once, which waits for the device
        seconds.append(time.perf_counter() - start)
    accuracies = {"train_accuracy": accuracy(predict, data), "test_accuracy": accuracy(predict, test)}
    return {"version": version, "images": len(data), "losses": losses, **accuracies, "seconds": seconds}


def accuracy(predict, data):
    """Return the fraction of a data set that a function from images to logits gets right."""
    right = 0
    for first in range(0, len(data), EVALUATION_BATCH):
        rows = slice(first, first + EVALUATION_BATCH)
        right += int(np.sum(predict(data.images[rows]).argmax(axis=1) == data.labels[rows]))
    return right / len(data)


def xpcnn_trainer(model, options):
    """Return the version, a function that makes one update and one that predicts, for xpcnn."""
    import xpcnn as xc

    trainer = xc.Trainer(model, xc.optim.sgd(lr=options.lr))
    return xc.__version__, trainer.step, lambda images: np.asarray(model.predict(images))


def torch_trainer(model, options):
    """Return the same for PyTorch, eager."""
    import torch

    torch.set_num_threads(options.threads)
    net = torch_twin(model).to(options.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=options.lr)
    scale, shift = scaling(model)

    def logits(images):
        return net(torch.tensor(images, device=options.device) * scale + shift)

    def step(images, labels):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(images), torch.tensor(labels, device=options.device).long())
        loss.backward()
        optimizer.step()
        return loss.detach()

    def predict(images):
        with torch.no_grad():
            return logits(images).cpu().numpy()

    return torch.__version__, step, predict


def keras_trainer(model, options):
    """Return the same for Keras on PyTorch."""
    import keras
    import torch

    torch.set_num_threads(options.threads)
    net = keras_twin(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=keras.optimizers.SGD(learning_rate=options.lr), loss=loss)

    def step(images, labels):
        net.reset_metrics()  # the loss returned is a running mean otherwise
        return net.train_on_batch(images, labels)

    return keras.__version__, step, net.predict_on_batch


def torch_twin(model):
    """Return PyTorch modules for a model's network, with its weights; they take normalised images."""
    import torch
    from torch import nn

    modules = []
    for name, layer, kind, shape in described(model):
        if kind == "Conv2D":
            options = {option: getattr(layer, option) for option in ("stride", "dilation", "groups", "bias")}
            conv = nn.Conv2d(shape[0], layer.filters, layer.kernel_size, **options)
            (top, bottom), (left, right) = pads(layer, shape)
            modules += [nn.ZeroPad2d((left, right, top, bottom)), conv]
        elif kind == "MaxPool2D":
            options = {option: getattr(layer, option) for option in ("stride", "padding", "dilation", "ceil_mode")}
            modules.append(nn.MaxPool2d(layer.kernel_size, **options))
        elif kind == "Affine":
            modules += [nn.Flatten(), nn.Linear(int(np.prod(shape)), layer.out, layer.bias)]
        else:
            modules.append(getattr(nn, kind)())
        with torch.no_grad():
            for which, values in weights(model, name).items():
                values = values.T if kind == "Affine" and which == "weight" else values
                getattr(modules[-1], which).copy_(torch.from_numpy(values.copy()))
    return nn.Sequential(*modules)


def keras_twin(model):
    """Return a Keras network for a model's, with its weights; it takes uint8 images."""
    import keras

    first, kl = {"data_format": "channels_first"}, keras.layers
    rows = described(model)
    scale, shift = scaling(model)
    layers = [keras.Input(rows[0][3], dtype="uint8"), kl.Rescaling(scale, shift)]
    for name, layer, kind, shape in rows:
        if kind == "Conv2D":
            options = {"strides": layer.stride, "dilation_rate": layer.dilation, "groups": layer.groups}
            conv = kl.Conv2D(layer.filters, layer.kernel_size, use_bias=layer.bias, name=name, **options, **first)
            layers += [kl.ZeroPadding2D(pads(layer, shape), **first), conv]
        elif kind == "MaxPool2D":
            if (layer.padding, layer.dilation, layer.ceil_mode) != (0, 1, False):
                sys.exit(f"layer {name}: Keras's max pooling has no padding, dilation or ceil_mode.")
            layers.append(kl.MaxPooling2D(layer.kernel_size, layer.stride, **first))
        elif kind == "Affine":  # flattened in the order of memory; Flatten("channels_first") would put channels last
            layers += [kl.Flatten(data_format="channels_last"), kl.Dense(layer.out, use_bias=layer.bias, name=name)]
        elif kind == "Flatten":
            layers.append(kl.Flatten(data_format="channels_last"))
        else:
            layers.append(kl.Activation(kind.lower()))
    net = keras.Sequential(layers)
    for name, _, kind, _ in rows:
        values = weights(model, name)
        if kind == "Conv2D":
            values["weight"] = values["weight"].transpose(2, 3, 1, 0)  # (F, C, KH, KW) -> (KH, KW, C, F)
        if values:
            net.get_layer(name).set_weights(list(values.values()))
    return net


def described(model):
    """Return every layer's name, itself, its kind and its input shape, or stop at one that has no twin."""
    children = model.net.children(model.input_shape)
    rows = [(name, layer, type(layer).__name__, shape) for name, layer, shape, _ in children]
    for name, layer, kind, _ in rows:
        windowed = (getattr(layer, "mode", None), getattr(layer, "center", None))
        if kind not in TWINS or windowed[0] == "convolution" or windowed[1] is not None:
            sys.exit(f"layer {name}, {layer}, has no twin; those are {', '.join(TWINS)}, without mode and center.")
    return rows


def pads(layer, shape):
    """Return a convolution's padding as ((top, bottom), (left, right))."""
    from xpcnn.ops.window import ints, padding_pairs

    kernel, stride, dilation = (ints(n, getattr(layer, n), 2, 1) for n in ("kernel_size", "stride", "dilation"))
    return tuple(padding_pairs(layer.padding, shape[1:], kernel, stride, dilation))


def weights(model, name):
    """Return one layer's initial weights on the host: its weight, then its bias."""
    to_host = model.backend.to_numpy
    return {path.partition("/")[2]: to_host(w) for path, w in model.parameters().items() if path.startswith(f"{name}/")}


def scaling(model):
    """Return (scale, shift) that normalise uint8 images: ``x · scale + shift``."""
    return 1 / (255 * model.normalise.std), -model.normalise.mean / model.normalise.std


def table(options, results):
    """Return the lines of the report."""
    first = next(iter(results.values()))
    updates = len(first["losses"])
    every = options.every or max(1, updates // ROWS)
    shown = [1, *range(every, updates + 1, every)] if every > 1 else list(range(1, updates + 1))
    length = f"{first['images']:,} training images, {options.epochs} epoch{'s' if options.epochs > 1 else ''}"
    yield f"{options.model} on MNIST, {length}, batch {options.batch_size}"
    yield f"sgd, lr {options.lr:g}, seed {options.seed}, float32, {options.device}, {options.threads} threads"
    yield ""
    yield line("loss of update", [f"{name} {r['version'].partition('+')[0]}" for name, r in results.items()])
    for update in shown:
        yield line(f"{update:,}", [f"{r['losses'][update - 1]:.5f}" for r in results.values()])
    for label, end in (("largest difference", updates), (f"  in the first {EARLY}", EARLY)):
        others = [difference(r["losses"][:end], first["losses"][:end]) for r in list(results.values())[1:]]
        yield line(label, ["", *(f"{value:.1e}" for value in others)])
    for part in ("train", "test"):
        yield line(f"{part} accuracy", [f"{100 * r[f'{part}_accuracy']:.2f} %" for r in results.values()])
    yield line("seconds per epoch", [f"{sum(r['seconds']) / len(r['seconds']):.2f}" for r in results.values()])


def line(label, cells):
    """Return one line of the table."""
    return f"{label:<18}" + "".join(f"{cell:>15}" for cell in cells)


def difference(losses, reference):
    """Return the largest difference between two runs' losses."""
    return max(abs(a - b) for a, b in zip(losses, reference, strict=True))


TRAINERS = {"xpcnn": xpcnn_trainer, "torch": torch_trainer, "keras": keras_trainer}
TWINS = ("Conv2D", "MaxPool2D", "Affine", "Flatten", "ReLU", "Sigmoid", "Tanh")


if __name__ == "__main__":
    main()
