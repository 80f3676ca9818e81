#!/usr/bin/env python3
"""Time how fast an imported ONNX file predicts, beside onnxruntime on the same file.

    python scripts/bench_onnx.py [FILE.onnx --input-shape C,H,W] [--batches 1,6,32] [--threads 2] [--rounds 15]
                                 [--json FILE]

Without a file it takes the angle classifier of the package rapidocr-onnxruntime, for images of 3×48×192. Both sides
compute with the same number of threads, in turn, a block of predictions each; onnxruntime's threads are told not to
spin after their work (they would take the other side's cores), and spinning ones are timed by themselves. Printed are
medians of the blocks, in milliseconds per image, their ratio, and the largest difference of the outputs, relative to
the largest output. A run during which other processes took more than 5 % of the cores' time says so.
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
from bench_cpu import count
from bench_cpu_machine import cpu_name, cpu_seconds
from bench_data import others_since

import xpcnn as xc

PACKAGE, NAME, SHAPE = "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (3, 48, 192)
IMAGES = 40  # of a block, at least


def main():
    """Read the options, measure and print."""
    options = read_options()
    xc.set_num_threads(options.threads)
    model = xc.Model.from_onnx(options.file, "cpu", input_shape=options.input_shape)
    sessions = {"waiting": session(options, "0"), "spinning": session(options, "1")}
    print(f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'batch':>6}{'xpcnn':>10}{'waiting':>10}{'ratio':>7}{'spinning':>10}{'ratio':>7}{'difference':>12}")
    before = cpu_seconds()
    rows = [measured(model, sessions, batch, options.rounds) for batch in options.batches]
    found = {"cpu": cpu_name(), "threads": options.threads, "file": options.file.name, "rows": rows}
    found["others"] = others_since(before)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read_options():
    """Return the command's options, or end it with status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--input-shape", type=numbers, default=None, metavar="C,H,W")
    parser.add_argument("--batches", type=numbers, default=(1, 6, 32))
    parser.add_argument("--threads", type=count, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=count, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    options = parser.parse_args()
    if importlib.util.find_spec("onnxruntime") is None:
        parser.error("onnxruntime is not installed")
    if options.file is None:
        package = importlib.util.find_spec(PACKAGE)
        if package is None:
            parser.error(f"name a file, or install {PACKAGE.replace('_', '-')} (pip install --no-deps)")
        options.file, options.input_shape = Path(package.submodule_search_locations[0]) / NAME, SHAPE
    return options


def numbers(text):
    """Return whole numbers above 0, parted by commas."""
    return tuple(count(part) for part in text.split(","))


def session(options, spinning):
    """Return onnxruntime's session, whose threads spin after their work or not."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = options.threads
    chosen.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    return onnxruntime.InferenceSession(str(options.file), chosen, providers=["CPUExecutionProvider"])


def measured(model, sessions, batch, rounds):
    """Time one size of batch and print its row."""
    x = np.random.default_rng(0).standard_normal((batch, *model.input_shape)).astype(np.float32)
    runs = {"xpcnn": lambda: model.predict(x)}
    runs |= {name: lambda one=one: one.run(None, {one.get_inputs()[0].name: x})[0] for name, one in sessions.items()}
    times = {name: [] for name in runs}
    expected = runs["waiting"]()
    difference = float(abs(runs["xpcnn"]() - expected).max() / abs(expected).max())
    for _ in range(rounds):
        for name, run in runs.items():
            if name == "spinning":
                continue
            times[name].append(block(run, batch))
    times["spinning"] = [block(runs["spinning"], batch) for _ in range(rounds)]
    ms = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: ms["xpcnn"] / ms[name] for name in sessions}
    print(f"{batch:>6}{ms['xpcnn']:>10.3f}{ms['waiting']:>10.3f}{ratios['waiting']:>7.2f}{ms['spinning']:>10.3f}"
          f"{ratios['spinning']:>7.2f}{difference:>12.1e}")  # fmt: skip
    return {"batch": batch, "ms_per_image": ms, "ratios": ratios, "difference": difference}


def block(run, batch):
    """Return the milliseconds per image of a block of predictions, after one that is not timed."""
    run()
    repeats = max(2, IMAGES // batch)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return 1e3 * (time.perf_counter() - start) / repeats / batch


if __name__ == "__main__":
    main()
