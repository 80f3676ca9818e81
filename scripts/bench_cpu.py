#!/usr/bin/env python3
"""Time xpcnn on the CPU beside PyTorch eager: same weights, same data, same threads, alternating processes.

    python scripts/bench_cpu.py [--only step,one,many,conv,start] [--networks ...] [--peers torch,compile,jax]
                                [--threads 2] [--rounds 5] [--seconds 0.5] [--json FILE] [--quick]

What is measured, each with xpcnn's usual kernels (``xpcnn``) and with its pure NumPy ones (``numpy``, that is
``XPCNN_KERNELS=numpy``):

step    One training step from given weights: simple_convnet and lenet5 with 100 MNIST images as bytes and AdaGrad,
        resnet20 with 64 and mobilenet_v2 (stem for 32×32 images, no dropout) with 32 noise images and SGD with
        momentum; ``Trainer.step`` beside forward, ``cross_entropy``, ``backward`` and ``step`` of PyTorch. Eight
        batches are taken in turn.
one     ``Model.predict`` of one image; beside it modules in eval mode under ``torch.inference_mode``.
many    The same of 256 images.
conv    Single convolutions and their gradients (x, weight and bias), stride 1, sizes kept: 3×3, 1×1 and depthwise.
        GFLOP/s counts multiplications and additions of the definition; beside it NumPy's own float32 product of the
        matrices that the convolution amounts to, (F, C·K) by (C·K, N·O), into a given array.
start   From a command's start to its end: ``xpcnn predict MODEL IMAGE``, a minimal PyTorch script with a state dict
        (`bench_cpu_predict.py`), and ``import numpy`` alone. Modules are in the disk's cache.

Every figure but those of start comes from fresh processes, one per library and round, in turn; each warms up and then
times single calls for about ``--seconds``. A round's figure is its median; printed are the median over the rounds and
(least..most). A ratio is the peer's figure over xpcnn's (of GFLOP/s, xpcnn's over the peer's): above 1 means that xpcnn
is faster, or needs less memory. Memory is the most that a process had resident; in brackets, what the work added to the
imports. Everything is float32; PyTorch has its default layout and settings. With ``compile`` and ``jax``, compilation
falls into the warming up. Threads that spin while they wait suffer most from other work on the machine: a section
during which others took more than 5 % of the cores' time says so.

The first losses, some logits and some numbers of every convolution are compared: a relative difference above 1e-3 ends
the run with status 1. So does a measurement that fails. What is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench_cpu_machine import cpu_name, cpu_seconds, version
from bench_cpu_tables import OURS, difference, figure_row, figures, rate, rate_rows, ratio_names, row, spread

HERE = Path(__file__).resolve().parent
THREADS = ("XPCNN_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SECTIONS = ("step", "one", "many", "conv", "start")
PEERS = {"torch": "torch", "compile": "torch", "jax": "jax"}  # and what they need
SGD = {"resnet20": 0.01, "mobilenet_v2": 0.001}  # learning rates; larger ones let rounding grow within few updates
BATCHES = {"simple_convnet": 100, "lenet5": 100, "resnet20": 64, "mobilenet_v2": 32}
ADAGRAD = {"simple_convnet": 0.01, "lenet5": 0.01}
TITLES = {"step": "training step", "one": "prediction of one image", "many": "prediction of 256 images"}
USUAL = {"networks": list(BATCHES), "rounds": 5, "seconds": 0.5}
QUICK = {"networks": ["simple_convnet", "resnet20"], "rounds": 1, "seconds": 0.2}
QUICK_CONVOLUTIONS = 4
CONVOLUTIONS = (  # kernel, channels (as many filters), size, groups
    *((3, c, s, 1) for c, s in [(64, 56), (128, 28), (256, 14), (256, 7)]),
    *((3, c, s, 1) for c, s in [(16, 56), (32, 56), (32, 28), (64, 28), (64, 14), (128, 14), (128, 7)]),
    *((1, c, s, 1) for c, s in [(64, 56), (128, 28), (256, 14)]),
    *((3, c, s, c) for c, s in [(64, 56), (128, 28), (256, 14)]),
)
FLOPS = 1.5e9  # that a convolution's batch is chosen for, within MOST_IMAGES
MOST_IMAGES = 64
STARTS = 5  # at least so many
STARTED = ("model.safetensors", "digit.png", "state.pt", "start.npz")  # the files
BARE = "import numpy"
TOLERANCE = 1e-3
DISTURBED = 0.05  # the share of the cores' time that others may take
LIMIT = 300  # seconds of one process


@dataclass
class Bench:
    """A run: what was asked for, where files lie, what has been found."""

    options: argparse.Namespace
    folder: Path
    sides: list[str]
    found: dict = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def main():
    """Read the options, measure what was asked for and print the tables."""
    options = read_options()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="xpcnn-bench-") as folder:
        bench = Bench(options, Path(folder), [*OURS, *installed(options.peers)])
        bench.found["machine"] = machine(bench)
        for section in options.only:
            before = cpu_seconds()
            MEASURES[section](bench, section)
            note_others(bench, section, before)
        bench.found |= {"faults": bench.faults, "seconds": time.perf_counter() - begin}
    if options.json:
        options.json.write_text(json.dumps(bench.found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{bench.found['seconds']:.0f} s")
    for fault in bench.faults:
        print(f"bench_cpu: error: {fault}", file=sys.stderr)
    return 1 if bench.faults else 0


def read_options():
    """Return the command's options, or end it with status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=some_of(SECTIONS), default=list(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--networks", type=some_of(BATCHES), help=f"of {','.join(BATCHES)}")
    parser.add_argument("--peers", type=some_of(PEERS, True), default=["torch"], help=f"of {','.join(PEERS)}; or ''")
    parser.add_argument("--threads", type=count, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=count, help="processes per library and figure; 5")
    parser.add_argument("--seconds", type=seconds, help="of timing in each process; 0.5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--quick", action="store_true", help="one short round, two networks, four convolutions")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else USUAL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    try:
        if options.json:
            options.json.open("a").close()
    except OSError as error:
        parser.error(f"argument --json: {error.strerror}: {options.json}")
    return options


def some_of(names, none_too=False):
    """Return a reader of lists with commas."""

    def read(text):
        chosen = list(dict.fromkeys(filter(None, text.split(","))))
        unknown = [name for name in chosen if name not in names]
        if unknown or not (chosen or none_too):
            raise argparse.ArgumentTypeError(f"takes some of {','.join(names)}, not {','.join(unknown)!r}")
        return chosen

    return read


def count(text):
    """Return a whole number from 1 to 10000."""
    if not text.isdecimal() or not 1 <= int(text) <= 10000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 10000, not {text!r}")
    return int(text)


def seconds(text):
    """Return a number from 0 to 60."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 60:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 60, not {text!r}")
    return number


def installed(peers):
    """Return the peers that can run here; the others are named."""
    there = [name for name in peers if importlib.util.find_spec(PEERS[name])]
    for name in [name for name in peers if name not in there]:
        print(f"{name} is left out: {PEERS[name]} is not installed.")
    if not there:
        print("There is no peer: xpcnn is timed alone.")
    return there


def environment(bench, side):
    """Return the environment of a side's processes."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = os.environ | dict.fromkeys(THREADS, str(bench.options.threads))
    chosen |= {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    chosen.pop("XPCNN_KERNELS", None)
    return chosen | ({"XPCNN_KERNELS": "numpy"} if side == "numpy" else {})


def machine(bench):
    """Return and print what runs where."""
    facts = {name: getattr(bench.options, name) for name in ("threads", "rounds", "seconds")}
    facts |= {"cpu": cpu_name(), "cores": os.cpu_count()}
    facts["info"] = json.loads(xpcnn_info(bench, "xpcnn", "--json") or "{}")
    said = {side: xpcnn_info(bench, side).splitlines() for side in OURS}
    facts["kernels"] = {side: [text.strip() for text in lines if "kernel" in text] for side, lines in said.items()}
    libraries = dict.fromkeys(["numpy", *(PEERS[peer] for peer in bench.sides[len(OURS) :])])
    facts["versions"] = {"python": platform.python_version()} | {name: version(name) for name in libraries}
    facts["load"] = os.getloadavg()[0]
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, load {facts['load']:.1f}")
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    for side, lines in facts["kernels"].items():
        print(f"{side}: {'; '.join(lines) or 'xpcnn info does not say which kernels run'}")
    return facts


def note_others(bench, section, before):
    """Note, and say if it is much, what share of the cores' time others took during a section."""
    passed, spent, own = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
    share = max(0.0, spent - own) / passed if passed else 0.0
    bench.found.setdefault("others", {})[section] = share
    if share > DISTURBED:
        print(f"DISTURBED: other processes took {100 * share:.0f} % of the cores' time during this.", flush=True)


def xpcnn_info(bench, side, *options):
    """Return what ``xpcnn info`` prints, or nothing if it fails."""
    command = [sys.executable, "-m", "xpcnn", "info", *options]
    done = subprocess.run(command, env=environment(bench, side), capture_output=True, text=True)
    if done.returncode:
        bench.faults.append(f"xpcnn info failed: {last_line(done.stderr)}")
    return "" if done.returncode else done.stdout


def work(bench, side, **task):
    """Do a task in a process of its own; return what it found, or None and note the fault."""
    task |= {"side": side, "threads": bench.options.threads}
    command = [sys.executable, str(HERE / "bench_cpu_work.py"), json.dumps(task)]
    try:
        done = subprocess.run(command, env=environment(bench, side), capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        fault = f"stopped after {LIMIT} s"
    else:
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        fault = last_line(done.stderr)
    bench.faults.append(f"{side}, {task['work']} {task.get('network', '')}: {fault}")
    return None


def last_line(text):
    """Return the last line of what a process complained of."""
    return (text.strip().splitlines() or ["it ended without a word"])[-1]


def alternate(bench, measures, rounds=None):
    """Call each side's measure in turn, round after round; a side that fails is left out from then on."""
    runs = {side: [] for side in measures}
    failed = set()
    for _ in range(rounds or bench.options.rounds):
        for side, measure in measures.items():
            run = None if side in failed else measure()
            if run is None:
                failed.add(side)
            else:
                runs[side].append(run)
    return {side: found for side, found in runs.items() if side not in failed}


def compare(bench, runs, what):
    """Return the largest relative difference to the first side's numbers, and note one that is too large."""
    first = next(iter(runs), None)
    worst = {}
    for side, found in runs.items():
        pairs = [pair for run in found for pair in zip(run["check"], runs[first][0]["check"], strict=True)]
        worst[side] = max(difference(*pair) for pair in pairs)
        if worst[side] > TOLERANCE:
            bench.faults.append(f"{what}: {side} differs from {first} by {worst[side]:.1e} of the largest number")
    return max(worst.values(), default=0.0)


def networks(bench, section):
    """Measure one kind of work of every network."""
    measured, peers = bench.found.setdefault(section, []), bench.sides[len(OURS) :]
    print("\n" + row(f"{TITLES[section]}, ms", bench.sides, [*ratio_names(peers), "difference"]), flush=True)
    for network in bench.options.networks:
        task = {"work": section, "network": network, "batch": {"one": 1, "many": 256}.get(section, BATCHES[network])}
        task |= {"data": str(prepared(bench, network)), "seconds": bench.options.seconds}
        task |= {"adagrad": network in ADAGRAD, "lr": (ADAGRAD | SGD)[network]}
        runs = alternate(bench, {side: lambda side=side, task=task: work(bench, side, **task) for side in bench.sides})
        result = {"network": network, "batch": task["batch"]} | figures(runs)
        result["difference"] = compare(bench, runs, f"{section} {network}")
        measured.append(result | {"runs": runs})
        label = f"{network}, {task['batch']}"
        print(figure_row(label, result["ms"], bench.sides, peers, f"{result['difference']:.0e}"), flush=True)
    print(row("  peak memory, MB", bench.sides, ratio_names(peers)))
    for result in measured:
        print(figure_row(f"{result['network']}, {result['batch']}", result["peak_mb"], bench.sides, peers))


def prepared(bench, network):
    """Return the file of what all sides are given for a network, which is made once."""
    file = bench.folder / f"{network}.npz"  # missing if making it fails, which every side will then say
    if not file.exists():
        work(bench, "xpcnn", work="prepare", network=network, batch=BATCHES[network], target=str(file))
    return file


def convolutions(bench, section):
    """Measure single convolutions and their gradients."""
    cases = [described(*case) for case in CONVOLUTIONS[: QUICK_CONVOLUTIONS if bench.options.quick else None]]
    task = {"work": section, "cases": cases, "seconds": bench.options.seconds / 6}
    sides = [*OURS, *(side for side in bench.sides if side == "torch")]
    measures = {side: lambda side=side: work(bench, side, **task) for side in sides}
    measures["gemm"] = lambda: work(bench, "gemm", **task | {"work": "gemm"})
    runs = alternate(bench, measures)
    gemm = runs.pop("gemm", [])
    apart = compare(bench, runs, section)
    result = {"cases": cases, "difference": apart, "runs": runs | {"gemm": gemm}}
    for direction, products in (("forward", 1), ("backward", 2)):
        rates = {side: rate(found, cases, direction, products) for side, found in runs.items()}
        rates["gemm"] = rate(gemm, cases, "forward", 1)
        result[f"{direction}_gflops"] = rates
        print("\n" + "\n".join(rate_rows(direction, cases, rates, sides)))
    print(f"largest difference {apart:.0e}", flush=True)
    bench.found[section] = result


def described(kernel, channels, size, groups):
    """Return a convolution with the batch that brings it near FLOPS."""
    work_of_one = 2 * channels * channels // groups * kernel**2 * size**2
    batch = 1
    while batch < MOST_IMAGES and 1.5 * batch * work_of_one < FLOPS:
        batch *= 2
    case = {"kernel": kernel, "channels": channels, "filters": channels, "size": size, "groups": groups}
    return case | {"batch": batch, "gflop": batch * work_of_one / 1e9}


def starts(bench, section):
    """Measure from a command's start to its end, having predicted one picture."""
    commands = starters(bench)
    measures = {name: lambda name=name: start(bench, name, commands[name]) for name in commands}
    rounds = 1 + max(STARTS, bench.options.rounds)  # the first brings the files into memory
    runs = {name: found[1:] for name, found in alternate(bench, measures, rounds).items()}
    classes = {name: sorted({run["class"] for run in found}) for name, found in runs.items() if name != BARE}
    if len({number for found in classes.values() for number in found}) > 1:
        bench.faults.append(f"start: the commands found different classes: {classes}")
    shown, peers = list(commands), [name for name in commands if name == "torch"]
    print("\n" + row("start to prediction", shown, ratio_names(peers)))
    bench.found[section] = {"runs": runs}
    for label, key in (("ms", "ms"), ("peak memory, MB", "peak_mb")):
        found = {name: spread([run[key] for run in own]) for name, own in runs.items()}
        bench.found[section][key] = found
        print(figure_row(f"  {label}", found, shown, peers), flush=True)


def starters(bench):
    """Return the commands that are compared, having made their files."""
    model, image, state, data = (str(bench.folder / name) for name in STARTED)
    work(bench, "xpcnn", work="prepare-start", target=str(bench.folder))
    ours = [sys.executable, "-m", "xpcnn", "predict", model, image, "--device", "cpu", "--top", "1", "--json"]
    commands = dict.fromkeys(OURS, ours)
    if "torch" in bench.sides and work(bench, "torch", work="prepare-start", data=data, target=state) is not None:
        commands["torch"] = [sys.executable, str(HERE / "bench_cpu_predict.py"), state, image]
    return commands | {BARE: [sys.executable, "-c", "import numpy; print(-1)"]}


def start(bench, name, command):
    """Run a command; return its time, its memory and the class that it found."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment(bench, name), stdout=subprocess.PIPE, stderr=errors)
        printed = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        errors.seek(0)
        if process.returncode:
            bench.faults.append(f"{name}, start: {last_line(errors.read())}")
            return None
    answer = json.loads(printed)
    answer = answer if isinstance(answer, int) else int(answer[0]["predictions"][0]["class"])
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {"ms": 1e3 * elapsed, "peak_mb": usage.ru_maxrss / unit, "class": answer}


MEASURES = {"step": networks, "one": networks, "many": networks, "conv": convolutions, "start": starts}


if __name__ == "__main__":
    sys.exit(main())
