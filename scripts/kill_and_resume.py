#!/usr/bin/env python3
"""Kill training processes with SIGKILL at random instants, resume them, and compare the bits of what they end with.

    python scripts/kill_and_resume.py --times 50

Each of the runs trains the same network on the same images: augmented, with batch norm, momentum, a moving average of
the weights, a one-cycle schedule and checkpoints every 20 ms. The first is left alone. Of every other one the process
is killed at an instant drawn from the time that the first took, is resumed, perhaps killed again, and at last goes on
to its end: model, checkpoint and metrics must then be the first one's, but for the times in them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

OPTIONS = [
    *("--model", "resnet20", "--epochs", "2", "--batch-size", "20", "--optimizer", "sgd", "--weight-decay", "1e-4"),
    *("--schedule", "one-cycle", "--ema", "0.9", "--label-smoothing", "0.1", "--checkpoint-every", "0.02"),
    *("--set", "augment.crop=2", "--set", "augment.rotate=10", "--set", "augment.mixup=0.2"),
    *("--device", "cpu", "--quiet"),
]


def main() -> int:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--images", type=int, default=400, help="to train on")
    arguments = parser.parse_args()
    instants = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder) / "data.npz", arguments.images)
        start = time.perf_counter()
        assert train(data, Path(folder) / "whole") == 0
        usual = time.perf_counter() - start
        expected = ending(Path(folder) / "whole")
        right = sum(
            trial(data, Path(folder) / f"run{number}", instants, usual, expected) for number in range(arguments.times)
        )
    print(f"{right} of {arguments.times} killed and resumed runs ended with the bits of the one that was left alone")
    return 0 if right == arguments.times else 1


def prepare(path: Path, count: int) -> Path:
    """Write images of random squares with their places as classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (count, 16, 16)).astype(np.uint8)
    labels = rng.integers(0, 4, count)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 100
    half = 4 * count // 5
    np.savez(path, x_train=images[:half], y_train=labels[:half], x_test=images[half:], y_test=labels[half:])
    return path


def train(data: Path, run: Path, kill_after: float | None = None) -> int | None:
    """Begin or resume a run; return its exit status, or None if it was killed."""
    begun = (run / "config.toml").exists()
    if not begun:
        shutil.rmtree(run, ignore_errors=True)  # what is left of a process that was killed while it began
    options = ["--resume", str(run), "--quiet"] if begun else [f"--dataset=npz:{data}", "--out", str(run), *OPTIONS]
    process = subprocess.Popen([sys.executable, "-m", "xpcnn", "train", *options], stdout=subprocess.DEVNULL)
    try:
        return process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def trial(data: Path, run: Path, instants: random.Random, usual: float, expected: object) -> bool:
    """Kill a run, up to three times, let it end, and say whether it ended as it should."""
    moments = [instants.uniform(0.0, 1.1 * usual) for _ in range(instants.randint(1, 3))]
    for moment in moments:
        if train(data, run, moment) is not None:
            break
    status = train(data, run)
    same = status == 0 and ending(run) == expected
    print(f"killed after {', '.join(f'{moment:.2f}' for moment in moments)} s: {'same' if same else 'DIFFERENT'}")
    return same


def ending(run: Path) -> object:
    """Return all that a run ended with, but for times: arrays as bytes."""
    arrays = {
        (name, path): (array.dtype.str, array.shape, array.tobytes())
        for name in ("model", "checkpoint")
        for path, array in load_file(run / f"{name}.safetensors").items()
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{name: value for name, value in line.items() if "second" not in name} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
