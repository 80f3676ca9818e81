"""One measurement of `bench_cpu.py` in a process of its own: reads a task as JSON, prints what was found as JSON."""

from __future__ import annotations

import importlib
import itertools
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

MODULES = {"xpcnn": "xpcnn", "numpy": "xpcnn", "torch": "torch", "compile": "torch", "jax": "jax"}
CHECKED = 3  # updates whose losses are compared
ROWS = 5  # images at both ends of a batch whose logits are compared
SAMPLE = 50  # numbers of a convolution's results that are compared
MOST = 1000  # calls timed


def main():
    """Do the task."""
    task = json.loads(sys.argv[1])
    module = MODULES.get(task["side"])
    side = importlib.import_module(f"bench_cpu_{module}") if module else None
    base = peak_memory()
    found = WORK[task["work"]](side, task)
    print(json.dumps({"base_mb": base, "peak_mb": peak_memory(), "version": getattr(side, "VERSION", "")} | found))


def peak_memory():
    """Return the most memory this process has had resident, in MB.

    Linux adds the memory of the process that started it to ``ru_maxrss``, so that the kernel's own account is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if lines:
            return round(int(lines[0][1]) / 1024, 1)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def timed(call, seconds, begun):
    """Return the milliseconds of single calls, at least one, for about so many seconds.

    Calls warm up before, until a fifth of that time has passed since the first was begun.
    """
    clock, times = time.perf_counter, []
    while clock() < begun + 0.2 * seconds:
        call()
    end = clock() + seconds
    while not times or (clock() < end and len(times) < MOST):
        begin = clock()
        call()
        times.append(clock() - begin)
    return [round(1e3 * t, 5) for t in times]


def read(task):
    """Return a network's data: description, weights and, of the images, what the work takes."""
    with np.load(task["data"]) as file:
        data = {"values": {name[7:]: file[name] for name in file.files if name.startswith("values/")}}
        if "config" in file.files:
            data["config"] = json.loads(str(file["config"]))
        if task["work"] == "step":
            size, images, labels = task["batch"], file["images"], file["labels"]
            starts = range(0, len(images) - size + 1, size)
            data["batches"] = [(images[i : i + size].copy(), labels[i : i + size].copy()) for i in starts]
        elif task["work"] in ("one", "many"):
            data["images"] = file["images"][: task["batch"]].copy()
    return data


def step(side, task):
    """Time training steps; what is compared are the first losses."""
    make = side.training(task, read(task))
    begun, numbers = time.perf_counter(), itertools.count()
    losses = [float(make(next(numbers))) for _ in range(CHECKED)]
    return {"check": [losses], "ms": timed(lambda: make(next(numbers)), task["seconds"], begun)}


def predict(side, task):
    """Time predictions; what is compared are logits."""
    call, begun = side.prediction(task, read(task)), time.perf_counter()
    y = np.asarray(call(), dtype=np.float64)
    rows = np.concatenate([y[:ROWS], y[-ROWS:]])
    return {"check": [rows.ravel().tolist()], "ms": timed(call, task["seconds"], begun)}


def convolutions(side, task):
    """Time single convolutions and their gradients; what is compared are some of the numbers."""
    found = {"check": [], "forward": [], "backward": []}
    for case in task["cases"]:
        options = {"padding": case["kernel"] // 2, "groups": case["groups"]}
        forward, backward = side.convolution(task, *arrays(case), options)
        found["check"] += [sample(np.asarray(result)) for result in (forward(), *backward())]
        for name, call in (("forward", forward), ("backward", backward)):
            found[name].append(timed(call, task["seconds"], time.perf_counter()))
    return found


def products(side, task):
    """Time NumPy's product of the matrices that each convolution amounts to, (F, C·K) by (C·K, N·O)."""
    rng, found = np.random.default_rng(0), []
    for case in task["cases"]:
        if case["groups"] > 1:
            found.append([])
            continue
        inner, columns = case["channels"] * case["kernel"] ** 2, case["batch"] * case["size"] ** 2
        a = rng.standard_normal((case["filters"], inner), dtype=np.float32)
        b = rng.standard_normal((inner, columns), dtype=np.float32)
        y = np.empty((case["filters"], columns), np.float32)
        found.append(timed(lambda a=a, b=b, y=y: np.matmul(a, b, out=y), task["seconds"], time.perf_counter()))
    return {"forward": found, "version": np.__version__}


def arrays(case):
    """Return a convolution's x, weight, bias and dy."""
    rng = np.random.default_rng(0)
    n, c, f, k, s = (case[name] for name in ("batch", "channels", "filters", "kernel", "size"))
    shapes = (n, c, s, s), (f, c // case["groups"], k, k), (f,), (n, f, s, s)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def sample(array):
    """Return some of an array's numbers, from all over it."""
    flat = array.ravel()
    return flat[np.linspace(0, flat.size - 1, SAMPLE).astype(int)].tolist()


def prepare(side, task):
    """Write what both sides are given."""
    side.prepare(task, None)
    return {}


def prepare_start(side, task):
    """Write what the cold start reads."""
    side.prepare_start(task, read(task) if "data" in task else None)
    return {}


WORK = {
    "step": step,
    "one": predict,
    "many": predict,
    "conv": convolutions,
    "gemm": products,
    "prepare": prepare,
    "prepare-start": prepare_start,
}


if __name__ == "__main__":
    main()
