"""One measurement of `bench_parallel.py` on every rank: reads a task as JSON; rank 0 prints what was found as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np

import xpcnn as xc
from xpcnn import parallel
from xpcnn.data import Dataset, load_dataset
from xpcnn.kernels.threads import thread_count

SHAPES = {"simple_convnet": (1, 28, 28), "lenet5": (1, 28, 28), "resnet20": (3, 32, 32), "mobilenet_v2": (3, 32, 32)}
WARM = 3  # steps before those that are timed, and sums


def main():
    """Do the task."""
    task, group = json.loads(sys.argv[1]), parallel.world()
    found = WORK[task["work"]](task, group)
    if group.rank == 0:
        print(json.dumps(found | {"ranks": group.size, "threads": thread_count()}))


def steps(task, group):
    """Time training steps; note the losses, and what part of each step went by in sums over the ranks."""
    spent, sizes = watched(group)
    data, clock, marks = data_for(task), time.perf_counter, []
    network, sgd = task["network"], xc.optim.sgd(0.01, momentum=0.9)
    options = {} if network in ("simple_convnet", "lenet5") else {"input_shape": SHAPES[network], "classes": 10}
    trainer = xc.Trainer(xc.Model(getattr(xc.models, network)(**options), "cpu"), sgd, group=group)

    def mark(epoch, images):
        marks.append((clock(), sum(spent), sum(sizes)))

    history = trainer.fit(data, epochs=1, batch_size=task["batch"], evaluate_train=False, on_step=mark)
    pairs = list(zip(marks[WARM - 1 :], marks[WARM:], strict=False))
    return {
        "ms": [1e3 * (after[0] - before[0]) for before, after in pairs],
        "sum_ms": statistics.median(1e3 * (after[1] - before[1]) for before, after in pairs),
        "sum_bytes": pairs[-1][1][2] - pairs[-1][0][2],
        "losses": [float(loss) for loss in history.losses[:3]],
    }


def watched(group):
    """Let a group note the seconds and bytes of every sum of gradients."""
    own, spent, sizes = group.flat_sum, [], []

    def noted(arrays, backend):
        begin = time.perf_counter()
        total = own(arrays, backend)
        spent.append(time.perf_counter() - begin)
        sizes.append(total.nbytes)
        return total

    group.flat_sum = noted
    return spent, sizes


def data_for(task):
    """Return as many labelled images as are trained on: MNIST's where they fit, else noise."""
    images = task["batch"] * (WARM + task["steps"])
    if SHAPES[task["network"]] == (1, 28, 28):
        return load_dataset("mnist")[0].first(images)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, *SHAPES[task["network"]]), dtype=np.uint8)
    return Dataset(pixels, rng.integers(0, 10, images), tuple("0123456789"))


def sums(task, group):
    """Time sums of float32 arrays of each size, by MPI and as gradients are added up."""
    backend = xc.resolve_backend("cpu")
    ways = {"mpi": group.sum, "gradients": lambda array: group.flat_sum([array], backend)}
    return {name: [timed(way, size, task["repeats"], group) for size in task["bytes"]] for name, way in ways.items()}


def timed(add_up, size, repeats, group):
    """Return a sum's median milliseconds, of which each takes as long as the slowest rank."""
    array, times = np.ones(size // 4, np.float32), []
    for _ in range(WARM + repeats):
        group.any(False)  # so that all begin together
        begin = time.perf_counter()
        total = add_up(array)
        times.append(time.perf_counter() - begin)
    assert total[0] == total[-1] == group.size
    return 1e3 * float(np.median(np.max(group.gathered(times[WARM:]), axis=0)))


WORK = {"steps": steps, "sums": sums}


if __name__ == "__main__":
    main()
