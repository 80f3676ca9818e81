#!/usr/bin/env python3
"""Kill training processes with SIGKILL at random instants, resume them, and compare the bits of what they end with.

    python scripts/kill_and_resume.py --times 50
    python scripts/kill_and_resume.py --times 20 --ranks 2 [--resume-ranks 3]

Each of the runs trains the same network on the same images: augmented, with batch norm, momentum, a moving average of
the weights, a one-cycle schedule and checkpoints every 20 ms. The first is left alone. Of every other one the process
is killed at an instant drawn from the time that the first took, is resumed, perhaps killed again, and at last goes on
to its end: model, checkpoint and metrics must then be the first one's, but for the times in them.

With ``--ranks`` a run is several processes of one thread each, started by mpiexec, of which one is killed: a rank, or
sometimes mpiexec. All others must be gone within seconds. With ``--resume-ranks`` it goes on with another number of
them; sums then have another order, so that it computes in float64 with statistics of the whole batch, and the weights
are compared to 1e-9 of the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

OPTIONS = [
    *("--model", "resnet20", "--epochs", "2", "--batch-size", "20", "--optimizer", "sgd", "--weight-decay", "1e-4"),
    *("--schedule", "one-cycle", "--ema", "0.9", "--label-smoothing", "0.1", "--checkpoint-every", "0.02"),
    *("--set", "augment.crop=2", "--set", "augment.rotate=10", "--set", "augment.mixup=0.2"),
    *("--device", "cpu", "--quiet"),
]
EXACT = ["--dtype", "float64", "--sync-batchnorm"]  # for another number of ranks
TOLERANCE = 1e-9  # of an array's largest number
RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")  # how launchers tell a rank's number
SOON = 5.0  # seconds within which all ranks must be gone


@dataclass
class Trials:
    """What all runs have in common, and how long their processes lived on after one was killed."""

    data: Path
    instants: random.Random
    ranks: int
    resume_ranks: int
    usual: float = 0.0
    expected: dict = field(default_factory=dict)
    lived_on: list[float] = field(default_factory=list)

    @property
    def is_exact(self):
        """Whether sums have the same order throughout."""
        return self.ranks == self.resume_ranks


def main() -> int:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--images", type=int, default=400, help="to train on")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run, started by mpiexec")
    parser.add_argument("--resume-ranks", type=int, help="processes that go on with it; as many")
    given = parser.parse_args()
    if max(given.ranks, given.resume_ranks or 1) > 1 and launcher() is None:
        parser.error("--ranks needs mpiexec, such as that of `pip install mpich`, beside this Python or on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder) / "data.npz", given.images)
        trials = Trials(data, random.Random(given.seed), given.ranks, given.resume_ranks or given.ranks)
        start = time.perf_counter()
        assert train(trials, Path(folder) / "whole") == 0
        trials.usual = time.perf_counter() - start
        trials.expected = ending(Path(folder) / "whole")
        right = sum(trial(trials, Path(folder) / f"run{number}") for number in range(given.times))
    what = "the bits" if trials.is_exact else "the weights"
    print(f"{right} of {given.times} killed and resumed runs ended with {what} of the one that was left alone")
    if trials.lived_on:
        print(f"all processes of a run were gone {max(trials.lived_on):.2f} s after one was killed, or sooner")
    return 0 if right == given.times else 1


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


def train(trials: Trials, run: Path, kill_after: float | None = None, victim: int = 0) -> int | None:
    """Begin or resume a run; return its exit status, or None if a process of it was killed."""
    begun = (run / "config.toml").exists()
    if not begun:
        shutil.rmtree(run, ignore_errors=True)  # what is left of a process that was killed while it began
    exact = [] if trials.is_exact else EXACT
    first = [f"--dataset=npz:{trials.data}", "--out", str(run), *OPTIONS, *exact]
    process = start(
        trials.resume_ranks if begun else trials.ranks, ["--resume", str(run), "--quiet"] if begun else first
    )
    try:
        return process.wait(kill_after)
    except subprocess.TimeoutExpired:
        trials.lived_on.append(kill(process, victim))
        return None


def launcher() -> str | None:
    """Return the mpiexec beside this Python, or else the PATH's."""
    return shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


def start(ranks: int, options: list[str]) -> subprocess.Popen:
    """Start a training of so many processes."""
    command = [sys.executable, "-m", "xpcnn", "train", *options]
    if ranks == 1:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)
    command = [launcher(), "-n", str(ranks), *command]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, **quiet, env=os.environ | {"XPCNN_NUM_THREADS": "1"})


def kill(process: subprocess.Popen, victim: int) -> float:
    """Kill a rank, or the process that was started if there is none of that number; return when all were gone."""
    there = ranks_of(process.pid)
    begin = time.perf_counter()
    with suppress(ProcessLookupError):
        os.kill(there.get(victim, process.pid), signal.SIGKILL)
    process.wait(SOON)
    while any(map(is_alive, there.values())):
        assert time.perf_counter() < begin + SOON, f"ranks {sorted(there)} live on after one was killed"
        time.sleep(0.01)
    return time.perf_counter() - begin


def ranks_of(pid: int) -> dict[int, int]:
    """Return the process ids of a launcher's ranks, by their numbers."""
    found = {}
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            words = dict(part.partition("=")[::2] for part in Path(f"/proc/{child}/environ").read_text().split("\0"))
            number = next((words[name] for name in RANK if name in words), None)
            found |= ranks_of(child) if number is None else {int(number): child}
    return found


def is_alive(pid: int) -> bool:
    """Whether a process still runs."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def trial(trials: Trials, run: Path) -> bool:
    """Kill a run, up to three times, let it end, and say whether it ended as it should."""
    instants, said = trials.instants, []
    for _ in range(instants.randint(1, 3)):
        moment, victim = instants.uniform(0.0, 1.1 * trials.usual), instants.randrange(-1, trials.ranks)
        said.append(f"{moment:.2f} s" + ("" if trials.ranks == 1 else f" ({'mpiexec' if victim < 0 else victim})"))
        if train(trials, run, moment, victim) is not None:
            break
    status = train(trials, run)
    same = status == 0 and is_same(trials, ending(run))
    print(f"killed after {', '.join(said)}: {'same' if same else 'DIFFERENT'}", flush=True)
    return same


def ending(run: Path) -> dict:
    """Return all that a run ended with, but for times."""
    arrays = {
        f"{name}: {path}": array
        for name in ("model", "checkpoint")
        for path, array in load_file(run / f"{name}.safetensors").items()
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if "second" not in name} for line in lines]
    return {"arrays": arrays, "lines": lines}


def is_same(trials: Trials, found: dict) -> bool:
    """Whether a run ended as the first did."""
    pairs = [(found["arrays"].get(path), array) for path, array in trials.expected["arrays"].items()]
    if len(pairs) != len(found["arrays"]) or any(
        a is None or (a.dtype, a.shape) != (b.dtype, b.shape) for a, b in pairs
    ):
        return False
    if trials.is_exact:
        return all(a.tobytes() == b.tobytes() for a, b in pairs) and found["lines"] == trials.expected["lines"]
    return all(
        np.abs(a - b).max(initial=0) <= TOLERANCE * np.abs(b).max(initial=1) for a, b in pairs if a.dtype == "f8"
    )


if __name__ == "__main__":
    sys.exit(main())
