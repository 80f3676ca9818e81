#!/usr/bin/env python3
"""Measure xpcnn on an NVIDIA GPU beside PyTorch and JAX: same weights, same batches, data on the GPU, turn by turn.

    python scripts/bench_gpu.py [--only facts,gradients,step,seed,images,goal] [--networks ...] [--precisions ...]
                                [--peers torch,compile,reduce-overhead,graph,jax] [--rounds 3] [--seconds 0.5]
                                [--budget 480] [--json FILE] [--quick] [--dry-run]

facts      What the CUDA path rests on, each tried: products of cuBLAS recorded and replayed bit for bit; cuDNN's plans
           recorded without PyTorch; replays undisturbed by memory taken between them; recorded training bit for bit
           equal to single steps.
gradients  Of one batch, in float32 without TF32, beside NumPy's in float64.
step       A training step in float32: simple_convnet and lenet5 with 100 MNIST images and AdaGrad, resnet20 and
           resnet18 (32×32) with 512 noise images and SGD with momentum; xpcnn recorded and eager; PyTorch eager,
           compiled, compiled with mode "reduce-overhead", and as one hand-made graph of the whole step; JAX jitted.
seed       ``xpcnn train --device cuda`` with its 10 epochs, from an empty and from a filled kernel cache; and how long
           after a process's start the first step is done.
images     resnet20's and resnet18's images per second at every precision, xpcnn by each engine of convolutions,
           PyTorch with channels last (at bf16 with AMP), eager and compiled.
goal       Seconds to 99 % of MNIST's test images, training and evaluation, kernels compiled.

Images are bytes, on the GPU, scaled in the step. xpcnn's recorded steps also gather their batch; PyTorch's and JAX's
are given batches that lie ready, eight in turn. All sides of a table live in processes of their own, warm up at the
same time and then measure one after another, round after round, each for about ``--seconds``. A round's figure is the
time of many steps by events on the stream (JAX: the host's clock, nothing being waited for in between) over their
number; printed are the median over the rounds and (least..most). A ratio is a side's time over recorded xpcnn's: above
1 means that xpcnn is faster. Kernels are those of one step: of xpcnn, a graph's nodes; of PyTorch, what its profiler
sees. PyTorch has cuDNN's autotuning and its fused optimizers.

What fails is said in the report, and the rest goes on; status 1 then. What there is no time left for is named.
``--dry-run`` does everything, tiny, on the CPU, with nothing recorded: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from bench_cpu import count, some_of
from bench_gpu_machine import machine, said
from bench_gpu_parts import BATCHES, MEASURES, PEERS, Bench, environment
from bench_gpu_tables import target_rows, targets

PARTS = ("facts", "gradients", "step", "seed", "images", "goal")  # in this order: the costly ones come last
PRECISIONS = ("bf16", "tf32", "float32")
USUAL = {"networks": list(BATCHES), "precisions": list(PRECISIONS), "peers": list(PEERS), "rounds": 3, "seconds": 0.5}
QUICK = USUAL | {"networks": ["simple_convnet", "resnet20"], "precisions": ["bf16"], "seconds": 0.2}
QUICK["peers"] = ["torch", "compile", "graph"]
DRY = {"peers": ["torch", "graph", "jax"], "precisions": ["bf16", "float32"], "rounds": 1, "seconds": 0.0}


def main():
    """Read the options, measure what was asked for and print the tables."""
    options = read_options()
    if not options.dry_run and (missing := no_gpu(environment())):
        print(f"bench_gpu: error: no GPU can be measured: {missing}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xpcnn-bench-") as folder:
        bench = Bench(options, Path(folder), begin + options.budget)
        bench.found |= introduced(bench)
        for part in options.only:
            print(f"\n== {part}", flush=True)
            if bench.left(1.0):
                MEASURES[part](bench)
            else:
                bench.leave_out(part)
            conclude(bench, time.monotonic() - begin)
    if not options.dry_run:
        print("\n".join(target_rows(bench.found["targets"])))
    print(f"\n{bench.found['seconds']:.0f} s")
    for fault in bench.faults:
        print(f"bench_gpu: error: {fault}", file=sys.stderr)
    return 1 if bench.faults else 0


def read_options():
    """Return the command's options, or end it with status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=some_of(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--networks", type=some_of(BATCHES), help=f"of {','.join(BATCHES)}")
    parser.add_argument("--precisions", type=some_of(PRECISIONS), help=f"of {','.join(PRECISIONS)}, for images")
    parser.add_argument("--peers", type=some_of(PEERS, True), help=f"of {','.join(PEERS)}; or ''")
    parser.add_argument("--rounds", type=count, help="measurements of each side; 3")
    parser.add_argument("--seconds", type=float, help="of each measurement; 0.5")
    parser.add_argument("--budget", type=count, default=480, help="seconds for everything; 480")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there, after each part")
    parser.add_argument("--quick", action="store_true", help="two networks, bf16 alone, fewer peers, one seed")
    parser.add_argument("--dry-run", action="store_true", help="everything, tiny, on the CPU: tries this script")
    options = parser.parse_args()
    for name, value in ((QUICK if options.quick else USUAL) | (DRY if options.dry_run else {})).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.only = [part for part in PARTS if part in options.only]
    if not 0 <= options.seconds <= 60:
        parser.error(f"argument --seconds: must be a number from 0 to 60, not {options.seconds!r}")
    try:
        if options.json:
            options.json.open("a").close()
    except OSError as error:
        parser.error(f"argument --json: {error.strerror}: {options.json}")
    return options


def no_gpu(environment):
    """Return why xpcnn finds no GPU, or nothing."""
    code = "from xpcnn.backend import cuda_devices; n, why = cuda_devices(); print('' if n else why)"
    text = said([sys.executable, "-c", f"{code}; print('asked')"], environment).splitlines()
    return "xpcnn cannot be imported." if not text else (text[0] if text[0] and text[0] != "asked" else "")


def introduced(bench):
    """Return and print what runs where, having left out what cannot run."""
    options = bench.options
    facts = machine(bench.environment())
    print(facts["gpu"].get("name", f"dry run on {facts['cpu']}, no figure means anything"), end="; ")
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()), flush=True)
    asked = {name: getattr(options, name) for name in ("only", "networks", "precisions", "rounds", "seconds", "budget")}
    bench.found["dry_run"] = options.dry_run
    there = peers_there(options)
    for peer in options.peers:
        if peer not in there:
            bench.leave_out(f"the peer {peer}", f"{'JAX' if peer == 'jax' else 'PyTorch'} cannot compute here")
    options.peers = there
    return {"machine": facts, "asked": asked | {"quick": options.quick, "peers": there}}


def peers_there(options):
    """Return the peers that can run here."""
    gpu = "True" if options.dry_run else "torch.cuda.is_available()"
    torch_runs = (
        find_spec("torch") and said([sys.executable, "-c", f"import torch; print({gpu})"], os.environ) == "True"
    )
    jax_runs = find_spec("jax") and (options.dry_run or any(find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)))
    return [peer for peer in options.peers if (jax_runs if peer == "jax" else torch_runs)]


def conclude(bench, seconds):
    """Bring the report up to date."""
    bench.found |= {
        "faults": bench.faults,
        "seconds": round(seconds, 1),
        "targets": [] if bench.options.dry_run else targets(bench.found),
    }
    if bench.options.json:
        bench.options.json.write_text(json.dumps(bench.found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
