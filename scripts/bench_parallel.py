#!/usr/bin/env python3
"""Time training on several ranks of this machine, and sums over them; foretell larger runs from that with a model.

    python scripts/bench_parallel.py [--only steps,sums,model] [--ranks 1,2] [--threads 1] [--network simple_convnet]
                                     [--batch 256] [--rounds 5] [--steps 40] [--latency 20] [--bandwidth 10]
                                     [--json FILE]

steps   Training steps of a global batch, of which each rank computes its part: ``Trainer.fit`` on MNIST's images (on
        noise for networks of another shape), float32, SGD with momentum, started by ``mpiexec -n RANKS``, each rank
        with so many threads. Without ``--ranks`` and ``--threads``: 1, 2 and 4 ranks and as many threads, as far as
        there are cores for them. Images per second; the ratio to 1 rank with 1 thread of the same round; the part of a
        step's time that sums take, waiting for the slowest rank included.
sums    The sum of float32 arrays over the ranks, by size: as gradients are added up (``Group.flat_sum``, which on one
        machine is in memory that the ranks share), and by MPI (``Group.sum``). From the latter, by least squares of
        the relative errors, latency and bandwidth of a ring: a sum of n bytes over p ranks takes
        2(p - 1)·latency + 2(p - 1)/p·n/bandwidth (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for
        clusters of workstations", 2009), which is what an algorithm with the least traffic can reach.
model   A MODEL, NOT A MEASUREMENT: a step of p ranks, one to a machine, takes the time that one rank with the first
        number of threads was measured to need for its part of the batch, and that of one sum of the gradients in a
        ring with the given --latency (microseconds) and --bandwidth (Gbit/s), which are assumptions. Nothing overlaps
        and no rank is late. "Same batch" divides the global batch among the ranks; "batch each" gives each rank one.

Every figure comes from fresh processes, one per variant and round, in turn. Printed are medians over the rounds; in
brackets the least and the most. A section during which others took more than 5 % of the cores' time says so. The first
losses are compared: a relative difference above 1e-3 ends the run with status 1, and so does a failed measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bench_cpu import THREADS, count, last_line, some_of
from bench_cpu_machine import cpu_name, cpu_seconds
from bench_cpu_tables import difference

HERE = Path(__file__).resolve().parent
SECTIONS = ("steps", "sums", "model")
NETWORKS = ("simple_convnet", "lenet5", "resnet20", "mobilenet_v2")
BYTES = [4**power << 10 for power in range(9)]  # 1 KiB to 64 MiB
LARGEST = 64  # ranks that the model foretells
REPEATS = 9  # sums of a size in a process
DISTURBED = 0.05  # the share of the cores' time that others may take
TOLERANCE = 1e-3
LIMIT = 300  # seconds of one process
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass
class Bench:
    """A run: what was asked for, what has been found."""

    options: argparse.Namespace
    found: dict = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def main():
    """Read the options, measure what was asked for and print the tables."""
    options = read_options()
    begin, bench = time.perf_counter(), Bench(options)
    print(f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    bench.found |= {"cpu": cpu_name(), "cores": os.cpu_count(), "network": options.network, "batch": options.batch}
    for section in options.only:
        before = cpu_seconds()
        bench.found[section] = MEASURES[section](bench)
        note_others(bench, section, before)
    bench.found |= {"faults": bench.faults, "seconds": time.perf_counter() - begin}
    if options.json:
        options.json.write_text(json.dumps(bench.found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{bench.found['seconds']:.0f} s")
    for fault in bench.faults:
        print(f"bench_parallel: error: {fault}", file=sys.stderr)
    return 1 if bench.faults else 0


def read_options():
    """Return the command's options, or end it with status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=some_of(SECTIONS), default=list(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--ranks", type=counts, help="such as 1,2,4")
    parser.add_argument("--threads", type=counts, help="of each rank, such as 1,2")
    parser.add_argument("--network", choices=NETWORKS, default="simple_convnet")
    parser.add_argument("--batch", type=count, default=256, help="images of all ranks together")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--steps", type=count, default=40, help="timed in each process")
    parser.add_argument("--latency", type=positive, default=20.0, help="of the model's network, in microseconds")
    parser.add_argument("--bandwidth", type=positive, default=10.0, help="of the model's network, in Gbit/s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = options.ranks is None and options.threads is None
    ranks, threads = options.ranks or [1, 2, 4], options.threads or ([1, 2, 4] if free else [1])
    options.variants = [(r, t) for r in ranks for t in threads if options.ranks or r * t <= cores] or [(1, 1)]
    if (1, 1) not in options.variants:
        options.variants.insert(0, (1, 1))
    if max(ranks for ranks, _ in options.variants) > 1 and launcher() is None:
        parser.error(
            "several ranks need mpiexec, such as that of `pip install mpich`, beside this Python or on the PATH"
        )
    return options


def counts(text):
    """Return a list of whole numbers."""
    return list(dict.fromkeys(count(part) for part in text.split(",")))


def positive(text):
    """Return a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def launcher():
    """Return the mpiexec beside this Python, or else the PATH's."""
    return shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


def note_others(bench, section, before):
    """Note, and say if it is much, what share of the cores' time others took during a section."""
    passed, spent, own = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
    share = max(0.0, spent - own) / passed if passed else 0.0
    bench.found.setdefault("others", {})[section] = share
    if share > DISTURBED:
        print(f"DISTURBED: other processes took {100 * share:.0f} % of the cores' time during this.", flush=True)


def work(bench, ranks, threads, **task):
    """Do a task on so many ranks; return what it found, or None and note the fault."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = os.environ | dict.fromkeys(THREADS, str(threads)) | ROOT | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(HERE / "bench_parallel_work.py"), json.dumps(task)]
    if ranks > 1:
        command = [launcher(), "-n", str(ranks), *command]
    try:
        done = subprocess.run(command, env=chosen, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        fault = f"stopped after {LIMIT} s"
    else:
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        fault = last_line(done.stderr)
    bench.faults.append(f"{ranks} ranks, {threads} threads, {task['work']}: {fault}")
    return None


def in_turn(bench, variants):
    """Do each variant's task in turn, round after round; those that fail are left out from then on."""
    runs, failed = {name: [] for name in variants}, set()
    for _ in range(bench.options.rounds):
        for name, (ranks, threads, task) in variants.items():
            found = None if name in failed else work(bench, ranks, threads, **task)
            failed |= {name} if found is None else set()
            runs[name] += [found] if found else []
    return {name: found for name, found in runs.items() if name not in failed}


def steps_task(options, batch):
    """Return the task of training steps."""
    return {"work": "steps", "network": options.network, "batch": batch, "steps": options.steps}


def steps(bench):
    """Measure training steps of every number of ranks and threads."""
    options = bench.options
    task = steps_task(options, options.batch)
    runs = in_turn(bench, {variant: (*variant, task) for variant in options.variants})
    print(f"\n{options.network}, global batch {options.batch}")
    print(f"{'ranks':>5} {'threads':>7}{'images/s':>28}{'to 1 × 1':>24}{'ms a step':>11}{'of it sums':>12}")
    found = []
    for (ranks, threads), measured in runs.items():
        rates = [1e3 * options.batch / statistics.median(run["ms"]) for run in measured]
        result = {"ranks": ranks, "threads": threads, "images_per_second": rates, "runs": measured}
        base = found[0]["images_per_second"] if found else rates
        result["ratios"] = [rate / one for rate, one in zip(rates, base, strict=True)]
        ms = statistics.median(statistics.median(run["ms"]) for run in measured)
        part = statistics.median(run["sum_ms"] / statistics.median(run["ms"]) for run in measured)
        print(
            f"{ranks:>5} {threads:>7}{spread(rates, 0):>28}{spread(result['ratios'], 2):>24}{ms:>11.2f}"
            f"{f'{100 * part:.1f} %' if ranks > 1 else '-':>12}",
            flush=True,
        )
        compare(bench, measured, found[0]["runs"] if found else measured, f"{ranks} ranks, {threads} threads")
        found.append(result)
    return found


def compare(bench, runs, first, what):
    """Note a loss that differs from the first variant's."""
    worst = max(difference(run["losses"], first[0]["losses"]) for run in runs)
    if worst > TOLERANCE:
        bench.faults.append(f"{what}: the losses differ from those of 1 rank by {worst:.1e}")


def spread(values, digits):
    """Return a text with the median, the least and the most."""
    median, least, most = (f"{f(values):,.{digits}f}" for f in (statistics.median, min, max))
    return f"{median} ({least}..{most})"


def sums(bench):
    """Measure sums of every size over every number of ranks, and fit a ring to them."""
    ranks = sorted({ranks for ranks, _ in bench.options.variants if ranks > 1})
    task = {"work": "sums", "bytes": BYTES, "repeats": REPEATS}
    runs, found = in_turn(bench, {number: (number, 1, task) for number in ranks}), []
    for number, measured in runs.items():
        ms = {way: medians(run[way] for run in measured) for way in ("gradients", "mpi")}
        latency, bandwidth = fitted(number, BYTES, [1e-3 * t for t in ms["mpi"]])
        print(f"\n{f'ms of a sum over {number} ranks':<30}{'gradients':>10}{'MPI':>10}{'as a ring':>12}")
        foretold = [1e3 * ring(number, size, latency, bandwidth) for size in BYTES]
        for size, own, mpi, told in zip(BYTES, ms["gradients"], ms["mpi"], foretold, strict=True):
            print(f"{label(size):<30}{own:>10.3f}{mpi:>10.3f}{told:>12.3f}")
        print(f"the ring: latency {1e6 * latency:.1f} µs, bandwidth {8e-9 * bandwidth:.1f} Gbit/s", flush=True)
        found.append({"ranks": number, "bytes": BYTES, "ms": ms, "latency": latency, "bandwidth": bandwidth})
    return found


def medians(rounds):
    """Return the median over the rounds of each of several figures."""
    return [statistics.median(figures) for figures in zip(*rounds, strict=True)]


def label(size):
    """Return a number of bytes as text."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def ring(ranks, size, latency, bandwidth):
    """Return the seconds of a sum of so many bytes in a ring."""
    return 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def fitted(ranks, sizes, seconds):
    """Return the latency (s) and bandwidth (bytes/s) whose ring has the least squared relative errors."""
    terms = [[ring(ranks, 0, 1.0, 1.0), ring(ranks, size, 0.0, 1.0)] for size in sizes]
    matrix = np.asarray(terms) / np.asarray(seconds)[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(matrix, np.ones(len(sizes)), rcond=None)
    return max(float(latency), 0.0), 1 / max(float(per_byte), 1e-15)


def model(bench):
    """Foretell runs of one rank on each of several machines."""
    options, found = bench.options, []
    latency, bandwidth, batch = 1e-6 * options.latency, 1e9 / 8 * options.bandwidth, options.batch
    ranks = [1 << power for power in range(LARGEST.bit_length()) if 1 << power <= min(batch, LARGEST)]
    threads = options.variants[0][1]
    tasks = {p: (1, threads, steps_task(options, -(-batch // p))) for p in ranks}
    alone = in_turn(bench, tasks)
    if 1 not in alone:
        return found
    ms = {p: statistics.median(statistics.median(run["ms"]) for run in runs) for p, runs in alone.items()}
    size = gradient_bytes(bench)
    print(
        f"\nA MODEL, NOT A MEASUREMENT: {options.network}, {size / 1e6:.2f} MB of gradients, {threads} threads a rank,"
    )
    print(f"assumed: a network with {options.latency:g} µs and {options.bandwidth:g} Gbit/s, nothing else in the way")
    print(f"{'ranks':>5}{'a part, ms':>12}{'sum, ms':>10}{'same batch, images/s':>24}{'batch each, images/s':>30}")
    for p in ms:
        total = 1e3 * ring(p, size, latency, bandwidth)
        same, each = 1e3 * batch / (ms[p] + total), 1e3 * batch * p / (ms[1] + total)
        gains = same * ms[1] / 1e3 / batch, each * ms[1] / 1e3 / batch
        shown = [f"{rate:,.0f} ({gain:.1f}×)" for rate, gain in zip((same, each), gains, strict=True)]
        print(f"{p:>5}{ms[p]:>12.2f}{total:>10.2f}{shown[0]:>24}{shown[1]:>30}")
        found.append({"ranks": p, "step_ms": ms[p], "sum_ms": total, "same_batch": same, "batch_each": each})
    return {"latency": latency, "bandwidth": bandwidth, "bytes": size, "foretold": found}


def gradient_bytes(bench):
    """Return how many bytes a step adds up."""
    measured = [run for row in bench.found.get("steps", []) if row["ranks"] > 1 for run in row["runs"]]
    if measured:
        return measured[0]["sum_bytes"]
    net = getattr(__import__("xpcnn").models, bench.options.network)()
    return 4 * net.parameter_count(net.input_shape)


MEASURES = {"steps": steps, "sums": sums, "model": model}


if __name__ == "__main__":
    sys.exit(main())
