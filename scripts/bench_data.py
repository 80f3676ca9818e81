#!/usr/bin/env python3
"""Time what the loader and augmentation cost a training on the CPU, and augmentation alone.

    python scripts/bench_data.py [--networks simple_convnet,lenet5,resnet20] [--threads 2] [--rounds 7] [--steps 60]
                                 [--only steps,alone] [--json FILE]

steps   Epochs of so many training steps: simple_convnet and lenet5 with 100 MNIST images and AdaGrad, resnet20 with 64
        noise images of 3×32×32 and SGD with momentum. ``memory`` takes each batch out of arrays in memory by a shuffled
        order, as training without a loader does; ``loader`` has a `Loader` bring them, read ahead by its thread, in
        ``shift`` with crop and flip, in ``warp`` with rotation, translation and scaling, in ``inline`` the same
        without a thread. An epoch's order and random numbers are drawn within its time.
alone   Augmentation of one batch at a time in one thread, in images per second; beside it PyTorch's operations on the
        whole batch, with as many threads as asked for: a gather for crop and flip, ``affine_grid`` and ``grid_sample``
        on floats for the rest (which is what PyTorch takes).

All variants are timed in turn within one process, each first in another round's place; a round gives one ratio to
``memory`` of the same round. Printed are medians over the rounds; in brackets the least and the most. A run during
which other processes took more than 5 % of the cores' time says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
from bench_cpu import count, some_of
from bench_cpu_machine import cpu_name, cpu_seconds

import xpcnn as xc
from xpcnn.data import Augment, Dataset, Loader, load_dataset
from xpcnn.random import Key

NETWORKS = {"simple_convnet": 100, "lenet5": 100, "resnet20": 64}  # and their batches
SHIFT, WARP = Augment(crop=2, flip=True), Augment(rotate=10, translate=0.1, scale=0.1)
VARIANTS = {  # augmentation and prefetching
    "loader": (None, 2),
    "shift": (SHIFT, 2),
    "warp": (WARP, 2),
    "inline": (WARP, 0),
}
ALONE = {"shift": SHIFT, "warp": WARP, "all": Augment(2, True, 10, 0.1, 0.1, 0.2, 0.2, 8, 0.4, 1.0)}
SIZES = ((100, 1, 28, 28), (64, 3, 32, 32), (64, 3, 224, 224))
DISTURBED = 0.05  # the share of the cores' time that others may take


def main():
    """Read the options, measure and print."""
    options = read_options()
    xc.set_num_threads(options.threads)
    print(f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    found = {"cpu": cpu_name(), "threads": options.threads, "rounds": options.rounds, "steps_a_round": options.steps}
    for section, measure in {"steps": all_steps, "alone": all_alone}.items():
        if section in options.only:
            before = cpu_seconds()
            found[section] = measure(options)
            found.setdefault("others", {})[section] = others_since(before)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read_options():
    """Return the command's options, or end it with status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=some_of(["steps", "alone"]), default=["steps", "alone"], help="of steps,alone")
    parser.add_argument("--networks", type=some_of(NETWORKS), default=list(NETWORKS), help=f"of {','.join(NETWORKS)}")
    parser.add_argument("--threads", type=count, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--steps", type=count, default=60, help="of an epoch, of which a round times one per variant")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    return parser.parse_args()


def others_since(before):
    """Return what share of the cores' time other processes took, and say if it is much."""
    passed, spent, own = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
    share = max(0.0, spent - own) / passed if passed else 0.0
    if share > DISTURBED:
        print(f"DISTURBED: other processes took {100 * share:.0f} % of the cores' time during this.", flush=True)
    return share


def all_steps(options):
    """Measure every network's training steps."""
    print(f"\n{'ms a step':<22}{'memory':>9}" + "".join(f"{name + ' / memory':>26}" for name in VARIANTS))
    return [steps_of(name, options) for name in options.networks]


def steps_of(name, options):
    """Measure a network's training steps from memory and through the loader, in turn."""
    batch = NETWORKS[name]
    data, trainer = data_for(name, batch * options.steps), trainer_for(name)
    runs = {"memory": lambda epoch: from_memory(data, batch, epoch)}
    for variant, (augment, prefetch) in VARIANTS.items():
        runs[variant] = Loader(data, batch, augment=augment, prefetch=prefetch).epoch
    for x, t in list(runs["memory"](0))[:5]:
        trainer.step(x, t)
    times = {variant: [] for variant in runs}
    for number in range(options.rounds):
        for variant in rotated(list(runs), number):
            begin = time.perf_counter()
            for x, t in runs[variant](1 + number):
                trainer.step(x, t)
            times[variant].append(1e3 * (time.perf_counter() - begin) / options.steps)
    ratios = {v: [a / b for a, b in zip(times[v], times["memory"], strict=True)] for v in VARIANTS}
    shown = "".join(f"{spread(values):>26}" for values in ratios.values())
    print(f"{f'{name}, {batch}':<22}{statistics.median(times['memory']):>9.3f}{shown}", flush=True)
    return {"network": name, "batch": batch, "ms": times, "ratios": ratios}


def rotated(names, number):
    """Return the names in their order, beginning with another one in each round."""
    first = number % len(names)
    return names[first:] + names[:first]


def spread(values):
    """Return a text with the median, the least and the most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}..{max(values):.3f})"


def data_for(name, images):
    """Return so many labelled images for a network."""
    if name != "resnet20":
        return load_dataset("mnist")[0].first(images)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    return Dataset(pixels, rng.integers(0, 10, images), tuple("0123456789"))


def trainer_for(name):
    """Return a trainer of a network's."""
    network = getattr(xc.models, name)() if name != "resnet20" else xc.models.resnet20((3, 32, 32), 10)
    optimizer = xc.optim.sgd(0.01, momentum=0.9) if name == "resnet20" else xc.optim.adagrad(0.01)
    return xc.Trainer(xc.Model(network, "cpu"), optimizer)


def from_memory(data, batch, epoch):
    """Yield an epoch's batches as training takes them from arrays."""
    order = Key(0).child("shuffle", epoch).generator().permutation(len(data))
    for start in range(0, len(data), batch):
        rows = order[start : start + batch]
        yield np.take(data.images, rows, axis=0), np.take(data.labels, rows, axis=0)


def all_alone(options):
    """Measure augmentation alone, beside PyTorch's if it is installed."""
    sides = {"xpcnn": ours, "torch": pytorchs} if importlib.util.find_spec("torch") else {"xpcnn": ours}
    print(f"\n{'images/s, augmentation':<26}" + "".join(f"{side:>14}" for side in sides))
    found = []
    for size in SIZES:
        for name, augment in ALONE.items():
            calls = {side: make(augment, size, options.threads) for side, make in sides.items()}
            calls = {side: call for side, call in calls.items() if call}
            rates = {side: [] for side in calls}
            for number in range(options.rounds):
                for side in rotated(list(calls), number):
                    rates[side].append(size[0] / seconds_of(calls[side]))
            median = {side: statistics.median(values) for side, values in rates.items()}
            label = f"{name}, {'×'.join(map(str, size))}"
            print(f"{label:<26}" + "".join(f"{median[s]:>14,.0f}" for s in median), flush=True)
            found.append({"augmentation": name, "size": size, "images_per_second": rates})
    return found


def seconds_of(call, least=0.02):
    """Return the seconds of one call, from as many as take about the least time."""
    call()
    calls, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < least:
        call()
        calls += 1
    return passed / calls


def ours(augment, size, threads):
    """Return a call that augments a batch of bytes."""
    images = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    labels, table = np.arange(size[0]) % 10, augment.draw(Key(0), size[0], size[1:])
    return lambda: augment.apply(images, labels, table, 10)


def pytorchs(augment, size, threads):
    """Return a call that does the same in PyTorch, or None for what it takes many operations for."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    rng, (n, _, h, w) = np.random.default_rng(0), size
    images = torch.asarray(rng.integers(0, 256, size, dtype=np.uint8))
    if augment is SHIFT:
        down, right, mirror = (torch.asarray(rng.integers(0, most, (n, 1, 1, 1))) for most in (5, 5, 2))
        rows, columns = torch.arange(h)[:, None] + down, torch.arange(w) + right
        columns = torch.where(mirror > 0, w + 3 - columns, columns)
        which = torch.arange(n)[:, None, None, None], torch.arange(size[1])[:, None, None]
        return lambda: functional.pad(images, (2, 2, 2, 2))[(*which, rows, columns)]
    if augment is WARP:
        theta = torch.asarray(rng.random((n, 2, 3), dtype=np.float32)) * 0.1 + torch.eye(2, 3)
        floats, options = images.float(), {"padding_mode": "zeros", "align_corners": False}
        return lambda: functional.grid_sample(
            floats, functional.affine_grid(theta, size, align_corners=False), **options
        )
    return None


if __name__ == "__main__":
    main()
