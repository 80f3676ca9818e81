#!/usr/bin/env python3
"""Tell faces from background with targets ±1, tanh and half the squared error, by cross-validation.

    python scripts/face_detection.py [--data faces] [--folds 10] [--epochs 30] [--seeds 0 1 2]

The faces are those of ``skimage.data.lfw_subset`` (100 faces, 100 patches of background, 25×25), which scikit-image
brings along. ``--data digits`` needs nothing else: MNIST's digits against windows cut between two of them. Every image
is held out once; an output above 0 says face. What is trained never sees the images that it is measured with.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import xpcnn as xc
from xpcnn.layers import Affine, Conv2D, MaxPool2D, Sequential, Tanh

BATCH = 20


def main():
    """Read the options, cross-validate once per seed and print each fold's accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["faces", "digits"], default="faces")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights, folds and order")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.data == "faces" and importlib.util.find_spec("skimage") is None:
        parser.error("the faces need scikit-image (pip install scikit-image); --data digits needs nothing.")
    images, targets = {"faces": faces, "digits": digits}[options.data]()
    if not 2 <= options.folds <= len(images) // 2:
        parser.error(f"--folds must be from 2 to {len(images) // 2}, not {options.folds}.")
    results = {}
    for seed in options.seeds:
        results[seed] = cross_validate(images, targets, options, seed)
        if not options.json:
            print(report(results[seed], seed), flush=True)
    if options.json:
        print(json.dumps(results))


def faces():
    """Return scikit-image's 100 faces and 100 patches of background, standardised, and their targets."""
    from skimage.data import lfw_subset

    return standardised(lfw_subset()), np.repeat([1.0, -1.0], 100)


def digits(count=200):
    """Return as many digits, and windows cut between two of them, standardised, and their targets."""
    images = xc.load_dataset("mnist")[0].images[: 3 * count, 0]  # (3N, 28, 28)
    centred, left, right = images[:count], images[count::2], images[count + 1 :: 2]
    between = np.concatenate([left[:, :, 14:], right[:, :, :14]], axis=2)  # (N, 28, 28)
    return standardised(np.concatenate([centred, between])), np.repeat([1.0, -1.0], count)


def standardised(images):
    """Return images (N, 1, H, W), each with mean 0 and standard deviation 1, so that brightness tells nothing."""
    x = images[:, None].astype(np.float64)
    x = x - x.mean(axis=(2, 3), keepdims=True)
    return (x / x.std(axis=(2, 3), keepdims=True)).astype(np.float32)


def network(shape):
    """Describe conv → pool → conv → pool → fully connected, with tanh throughout and one output."""
    first, second = (Conv2D(8, 5), Tanh(), MaxPool2D(2)), (Conv2D(16, 3), Tanh(), MaxPool2D(2))
    return Sequential(*first, *second, Affine(32), Tanh(), Affine(1), Tanh(), input_shape=shape)


def cross_validate(images, targets, options, seed):
    """Return, for every fold, how many of its images were told right and how many it has."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(np.flatnonzero(targets == side)) for side in (1, -1)]
    found = []
    for fold in range(options.folds):
        held_out = np.concatenate([side[fold :: options.folds] for side in sides])  # as many of either kind
        rest = np.setdiff1d(np.arange(len(images)), held_out)
        model = xc.Model(network(images.shape[1:]), options.device, seed)
        train(model, images[rest], targets[rest], options.epochs, rng)
        right = np.sign(model.predict(images[held_out])[:, 0]) == targets[held_out]
        found.append((int(right.sum()), len(held_out)))
    return found


def train(model, images, targets, epochs, rng):
    """Fit a model to targets ±1 with Adam."""
    trainer = xc.Trainer(model, xc.optim.adam(lr=0.001), loss="half_squared_error")
    t = targets.astype(np.float32)[:, None]  # (N, 1)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for first in range(0, len(images), BATCH):
            rows = order[first : first + BATCH]
            trainer.step(images[rows], t[rows])


def report(found, seed):
    """Return one cross-validation's line."""
    right, images = (sum(column) for column in zip(*found, strict=True))
    folds = " ".join(f"{100 * r / n:.0f}" for r, n in found)
    return f"seed {seed}: {100 * right / images:.1f} % of {images} held out ({folds})"


if __name__ == "__main__":
    main()
