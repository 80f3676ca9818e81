"""One task of `bench_gpu.py` in a process of its own: reads it as JSON, answers with lines of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time

BATCHES = 8  # that those sides take in turn which are given one at a time


def main():
    """Do the task."""
    task, answer = json.loads(sys.argv[1]), speaker()
    WORK[task["work"]](task, answer)


def speaker():
    """Return a function that answers; whatever libraries print goes to standard error from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(found):
        out.write(json.dumps(found) + "\n")
        out.flush()

    return answer


def read(task):
    """Return a network's data: description, weights, data set, and the first batches of its first epoch."""
    import numpy as np

    with np.load(task["data"]) as file:
        data = {name: file[name] for name in ("images", "labels")}
        data["values"] = {name[7:]: file[name] for name in file.files if name.startswith("values/")}
        data["config"], order = json.loads(str(file["config"])), file["order"]
    rows = [order[begin : begin + task["batch"]] for begin in range(0, len(order), task["batch"])][:BATCHES]
    return data | {"batches": [(data["images"][chosen], data["labels"][chosen]) for chosen in rows]}


def prepare(task, answer):
    """Write what all sides are given."""
    import bench_gpu_xpcnn

    bench_gpu_xpcnn.prepare(task)
    answer({})


def step(task, answer):
    """Get ready, say so with the first losses, and measure or count whenever told to."""
    begin = time.perf_counter()
    side = importlib.import_module(f"bench_gpu_{task['library']}")
    training = side.Training(task, read(task))
    ready = {"losses": training.losses, "note": training.note, "library": side.library()}
    answer(ready | {"ready_s": round(time.perf_counter() - begin, 2)})
    for line in sys.stdin:
        answer(getattr(training, line.strip())())


def gradients(task, answer):
    """Compare gradients with float64's."""
    import bench_gpu_facts

    answer(bench_gpu_facts.gradients(task))


def fact(task, answer):
    """Try one of the facts that the design rests on."""
    import bench_gpu_facts

    answer(bench_gpu_facts.find(task))


def start(task, answer):
    """Say how long after the process was started each stage was reached; the last are a step, and recorded ones."""
    import bench_gpu_train

    answer(bench_gpu_train.start(task))


def goal(task, answer):
    """Train until an accuracy is reached."""
    import bench_gpu_train

    answer(bench_gpu_train.goal(task))


WORK = {"prepare": prepare, "step": step, "gradients": gradients, "fact": fact, "start": start, "goal": goal}


if __name__ == "__main__":
    main()
