#!/usr/bin/env python3
"""Repeat the book's experiment with either initial weights and count the filters that are still alive.

    python scripts/book_experiment.py [--init book] [--seeds 0 1 2 3] [--epochs 10] [--curves curves.png]

The simple ConvNet (30 5×5 filters, 100 hidden units) on MNIST, AdaGrad with learning rate 0.06, batches of 100. A
filter is alive if it is above 0 anywhere in any of the first 1,000 test images; a dead one gets no gradient any more.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import xpcnn as xc
from xpcnn import models, ops, optim
from xpcnn.report import draw_curves

INITIAL = {"book": optim.Normal(0.01), "he": optim.HeNormal()}
AUTHOR = {"train_accuracy": 0.9972, "test_accuracy": 0.9860}  # after ten epochs
PROBES = 1000  # images on which a filter is looked for


def main():
    """Read the options, train once per seed and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--init", choices=list(INITIAL), default="book", help="the book's N(0, 0.01), or He's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each part")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--curves", metavar="PNG", help="draw the last seed's curves")
    parser.add_argument("--json", action="store_true", help="print every record as JSON instead")
    options = parser.parse_args()
    try:
        results = [experiment(options, seed) for seed in options.seeds]
        if options.curves:
            draw(options, results[-1])
    except xc.XpcnnError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps(results, indent=2))
    return 0


def experiment(options, seed):
    """Train with one seed, printing each epoch; return its records."""
    train, test = (part.first(options.limit) if options.limit else part for part in xc.load_dataset("mnist"))
    model = xc.Model(models.simple_convnet(init=INITIAL[options.init]), options.device, seed)
    trainer = xc.Trainer(model, optim.adagrad(lr=0.06))
    say = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    say(f"{options.init}'s initial weights, seed {seed}")
    say("epoch      loss      train       test     time")

    def on_epoch(epoch, losses):
        loss = "-" if epoch.loss is None else f"{epoch.loss:.5f}"
        say(f"{epoch.epoch:5d}  {loss:>8}  {accuracies(asdict(epoch))}  {epoch.seconds:5.1f} s")

    history = trainer.fit(train, test, epochs=options.epochs, batch_size=100, on_epoch=on_epoch)
    alive, hidden = living(model, test.images[:PROBES])
    say(f"{'author':>5}{'':>10}{accuracies(AUTHOR)}")
    say(f"alive: {alive} of 30 filters, {hidden} of 100 hidden units\n")
    records = [asdict(epoch) for epoch in history.epochs]
    counts = {"filters_alive": alive, "hidden_alive": hidden}
    return {"init": options.init, "seed": seed, **counts, "epochs": records, "losses": history.losses}


def accuracies(record):
    """Return both accuracies in per cent."""
    return f"{100 * record['train_accuracy']:7.2f} %  {100 * record['test_accuracy']:7.2f} %"


def living(model, images):
    """Return how many filters and how many hidden units are above 0 for at least one of the images."""
    params = model.parameters()
    y, _ = ops.conv2d(model.as_input(images), params["conv1/weight"], params["conv1/bias"])  # (N, 30, 24, 24)
    pooled, _ = ops.max_pool2d(ops.relu(y)[0], 2)
    hidden, _ = ops.affine(pooled, params["affine1/weight"], params["affine1/bias"])  # (N, 100)
    y, hidden = model.backend.to_numpy(y), model.backend.to_numpy(hidden)
    return int(np.sum(y.max(axis=(0, 2, 3)) > 0)), int(np.sum(hidden.max(axis=0) > 0))


def draw(options, result):
    """Draw one run's curves."""
    title = f"the book's experiment, {options.init}'s initial weights, seed {result['seed']}"
    draw_curves(options.curves, result["losses"], result["epochs"], title)


if __name__ == "__main__":
    sys.exit(main())
