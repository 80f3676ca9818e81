#!/usr/bin/env python3
"""Time one training step beside PyTorch eager: same initial weights, same batches, alternating processes, medians.

    python scripts/bench_step.py [--model simple-convnet] [--batch-size 100] [--device cpu] [--threads 2]

Each round starts one process per library, which warms up and then times single steps (the device synchronised).
Reported are the median step of each, their ratio (PyTorch / xpcnn: above 1 means xpcnn is faster), the peak resident
memory and the loss that both arrive at.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

WARM_UP = 20


def xpcnn_steps(options):
    """Return a function that makes one step, and one that waits for the device."""
    import xpcnn as xc

    model, x, t = start(options, options.device)
    trainer = xc.Trainer(model, xc.optim.adagrad(lr=0.01))
    x, t = model.backend.asarray(x), model.backend.asarray(t)
    return lambda: trainer.step(x, t), model.backend.synchronize


def torch_steps(options):
    """Return the same two functions for PyTorch eager."""
    import torch

    torch.set_num_threads(options.threads)
    model, x, t = start(options, "cpu")
    device = "cuda" if options.device.startswith("cu") and options.device != "cpu" else "cpu"
    net = torch_network(options.model, torch.nn)
    with torch.no_grad():
        for theirs, (path, ours) in zip(net.parameters(), model.parameters().items(), strict=True):
            theirs.copy_(torch.tensor(ours.T if path.startswith("affine") and ours.ndim == 2 else ours))
    net.to(device)
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.01, eps=1e-7)
    x, t = torch.tensor(x, device=device), torch.tensor(t, device=device).long()

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x * (1 / 255)), t)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, torch.cuda.synchronize if device == "cuda" else lambda: None


def torch_network(name, nn):
    """Return the network of a name as PyTorch modules."""
    if name == "simple-convnet":
        features = nn.Conv2d(1, 30, 5), nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(*features, nn.Flatten(), nn.Linear(4320, 100), nn.ReLU(), nn.Linear(100, 10))
    first = nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
    head = nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
    return nn.Sequential(*first, *second, nn.Flatten(), *head)


def start(options, device):
    """Return a model with its initial weights and one batch of MNIST."""
    import xpcnn as xc

    build = {"simple-convnet": xc.models.simple_convnet, "lenet5": xc.models.lenet5}[options.model]
    train, _ = xc.load_dataset("mnist")
    return xc.Model(build(), device), train.images[: options.batch_size], train.labels[: options.batch_size]


def work(options):
    """Time steps in this process and print them."""
    step, wait = {"xpcnn": xpcnn_steps, "torch": torch_steps}[options.worker](options)
    for _ in range(WARM_UP):
        step()
    times = []
    for _ in range(options.steps):
        wait()
        begin = time.perf_counter()
        loss = step()
        wait()
        times.append(1e3 * (time.perf_counter() - begin))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms": times, "memory": memory, "loss": float(loss)}))


def measure(options):
    """Run the workers in turn and return the medians."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(options.threads), "OMP_NUM_THREADS": str(options.threads)}
    runs = {"xpcnn": [], "torch": []}
    usable = "import torch" if options.device in ("cpu", "numpy") else "import torch; assert torch.cuda.is_available()"
    if subprocess.run([sys.executable, "-c", usable], capture_output=True).returncode:
        del runs["torch"]
    for _ in range(options.rounds):
        for library, found in runs.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", library]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found.append(json.loads(done.stdout))
    result = {"model": options.model, "batch_size": options.batch_size, "device": options.device}
    result |= {"threads": options.threads, "numpy": np.__version__}
    for library, found in runs.items():
        result[library] = {
            "median_ms": round(statistics.median(ms for run in found for ms in run["ms"]), 3),
            "round_medians_ms": [round(statistics.median(run["ms"]), 3) for run in found],
            "peak_mb": round(max(run["memory"] for run in found)),
            "loss": found[-1]["loss"],
        }
    if "torch" in runs:
        result["ratio"] = round(result["torch"]["median_ms"] / result["xpcnn"]["median_ms"], 2)
    return result


def main():
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["simple-convnet", "lenet5"], default="simple-convnet")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=["xpcnn", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{options.model}, batch {options.batch_size}, {options.device}, {options.threads} threads")
    for library in ("xpcnn", "torch"):
        if library in result:
            row = result[library]
            print(f"  {library:<6} {row['median_ms']:8.2f} ms   {row['peak_mb']:5d} MB   loss {row['loss']:.6f}")
    if "ratio" in result:
        print(f"  ratio  {result['ratio']:8.2f}")


if __name__ == "__main__":
    main()
