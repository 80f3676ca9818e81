#!/usr/bin/env python3
"""Measure what batch normalisation, He's initial values and Adam change, each alone and all together.

    python scripts/compare_cures.py [--images 5000] [--epochs 2] [--seeds 0 1 2]

Two convolutions and two fully connected layers with ReLU learn the first images of MNIST in batches of 50. Every
combination of initial values, optimizer and normalisation is trained once per seed; printed are the mean of the last
epoch's losses and of the accuracies on 10,000 test images, with the lowest and highest of the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import xpcnn as xc
from xpcnn import optim
from xpcnn.layers import Affine, BatchNorm, Conv2D, MaxPool2D, ReLU, Sequential

INITIAL = {"N(0, 0.01)": optim.Normal(0.01), "He": optim.HeNormal()}
OPTIMIZERS = {"SGD 0.05": lambda: optim.sgd(lr=0.05), "Adam 0.001": lambda: optim.adam(lr=0.001)}
NORMALISED = {"-": False, "batch norm": True}
BATCH = 50


def main():
    """Read the options, train every combination and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    train, test = xc.load_dataset("mnist")
    rows = []
    if not options.json:
        print(f"{'initial':<12}{'optimizer':<12}{'norm':<12}{'loss':>8}{'test':>12}{'lowest':>12}{'highest':>12}")
    for names in itertools.product(INITIAL, OPTIMIZERS, NORMALISED):
        runs = [measure(names, train.first(options.images), test, seed, options) for seed in options.seeds]
        rows.append(dict(zip(("initial", "optimizer", "norm"), names, strict=True), runs=runs))
        if not options.json:
            print(line(names, runs), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


def network(init, normalised):
    """Describe conv → pool → conv → pool → affine → affine, normalised before each ReLU or not."""
    options = {"init": init, "bias": not normalised}  # which the normalisation would take away again

    def block(layer, *rest):
        return [layer, *([BatchNorm()] if normalised else []), ReLU(), *rest]

    first = block(Conv2D(8, 5, **options), MaxPool2D(2))
    second = block(Conv2D(16, 5, **options), MaxPool2D(2))
    return Sequential(*first, *second, *block(Affine(64, **options)), Affine(10, init=init), input_shape=(1, 28, 28))


def measure(names, train, test, seed, options):
    """Train one combination with one seed; return its last loss and its test accuracy."""
    initial, optimizer, norm = names
    model = xc.Model(network(INITIAL[initial], NORMALISED[norm]), options.device, seed)
    trainer = xc.Trainer(model, OPTIMIZERS[optimizer]())
    losses = []
    for epoch in range(options.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(train))
        batches = [order[first : first + BATCH] for first in range(0, len(train), BATCH)]
        losses = [float(trainer.step(train.images[rows], train.labels[rows])) for rows in batches]
    return {"loss": float(np.mean(losses)), "test_accuracy": xc.evaluate(model, test)[0]}


def line(names, runs):
    """Return one combination's line."""
    right = [100 * run["test_accuracy"] for run in runs]
    figures = "".join(f"{value:10.2f} %" for value in (np.mean(right), min(right), max(right)))
    return "".join(f"{name:<12}" for name in names) + f"{np.mean([run['loss'] for run in runs]):8.3f}" + figures


if __name__ == "__main__":
    main()
