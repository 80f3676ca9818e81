"""The work of gpu_check.sh: run everything on the GPU and write one report, after each part, whatever fails."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from bench_gpu import no_gpu
from bench_gpu_machine import machine
from bench_gpu_process import WorkError, run

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {  # module -> distribution
    "array_api_compat": "array-api-compat", "array_api_extra": "array-api-extra", "threadpoolctl": "threadpoolctl",
    "safetensors": "safetensors", "click": "click", "rich": "rich", "PIL": "pillow", "pytest": "pytest",
    "array_api_strict": "array-api-strict", "hypothesis": "hypothesis", "matplotlib": "matplotlib",
}  # fmt: skip
USEFUL = {"xdist": "pytest-xdist", "cudnn": "nvidia-cudnn-frontend", "ml_dtypes": "ml_dtypes"}
ALONG = {  # what a distribution needs beside itself
    "rich": ["markdown-it-py", "mdurl", "pygments"], "hypothesis": ["sortedcontainers"],
    "pytest": ["pluggy", "iniconfig", "packaging"], "pytest-xdist": ["execnet"],
    "matplotlib": ["contourpy", "cycler", "fonttools", "kiwisolver", "packaging", "pyparsing", "python-dateutil"],
}  # fmt: skip
LIMITS = {"verify": 300, "tests": 900, "train": 120, "recipes": 300, "bench": 600}  # seconds; the keys are the parts
QUICK = {"verify": 90, "tests": 240, "train": 60, "recipes": 90, "bench": 400}
SPARE = 10  # seconds of a budget that are kept for writing the report
DRY_TESTS = ["tests/test_house.py", "tests/test_backend.py"]
DRY_BENCH = ["--dry-run", "--only", "step", "--networks", "simple_convnet", "--peers", ""]
ENOUGH = 0.986  # of the test images
RECIPES = {"mnist-fast": 0.99, "mnist-best": 0.995, "fashion-resnet": 0.93}  # and what they reach on a CPU
DRY_RECIPE = ["--model", "lenet5", "--epochs", "1", "--batch-size", "1000", "--set", "warmup=0"]


@dataclass
class Check:
    """A run: what was asked for, where files lie, until when."""

    options: argparse.Namespace
    folder: Path
    environment: dict[str, str]
    end: float

    @property
    def device(self):
        """Where it runs."""
        return "cpu" if self.options.dry_run else "cuda"

    def limit(self, part):
        """Return how many seconds a part may take."""
        most = (QUICK if self.options.quick else LIMITS)[part]
        return max(0.0, min(most, self.end - time.monotonic() - SPARE))

    def python(self, *arguments, limit):
        """Run Python in the repository's root; return its output, or the fault and what was complained of."""
        command = [sys.executable, *map(str, arguments)]
        try:
            return {"rc": 0} | run(command, self.environment, limit, cwd=ROOT)
        except WorkError as error:
            return {"rc": error.status, "fault": str(error), "stdout": error.printed, "tail": error.tail}


def main():
    """Run the parts that were asked for and write the report."""
    options = read_options()
    path = options.report or Path(
        os.environ.get("XPCNN_REPORT_DIR", "."), time.strftime("gpu-report-%Y%m%d-%H%M%S.json")
    )
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xpcnn-gpu-check-") as folder:
        check = Check(options, Path(folder), {}, begin + options.budget)
        check.environment = prepare(check)
        if not options.dry_run and (missing := no_gpu(check.environment)):
            print(f"gpu_check: error: nothing can be checked without a GPU: {missing}", file=sys.stderr)
            return 2
        report = {"ok": False, "dry_run": options.dry_run, "quick": options.quick, "asked": options.parts}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n", encoding="utf-8")
        except OSError as error:
            print(f"gpu_check: error: the report cannot be written to {path}: {error.strerror}", file=sys.stderr)
            return 2
        report["machine"] = machine(check.environment)
        for part in options.parts:
            report[part] = timed(check, part)
            print(f"{part}: {report[part]['summary']}", flush=True)
            report["seconds"] = round(time.monotonic() - begin, 1)
            report["ok"] = all(report.get(done, {}).get("ok") for done in options.parts)
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{'all is well' if report['ok'] else 'SOMETHING FAILED'}: {path}", flush=True)
    return 0 if report["ok"] else 1


def read_options():
    """Return the command's options, or end it with status 2."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description="Check xpcnn on an NVIDIA GPU.")
    parser.add_argument("report", nargs="?", type=Path, help="the JSON file to write")
    parser.add_argument("--parts", default=",".join(LIMITS), help="of %(default)s, which to run")
    parser.add_argument("--budget", type=int, default=0, help="seconds for everything; 540 with --quick, else 1800")
    parser.add_argument("--data-dir", help="Fashion-MNIST's four files, for its recipe")
    parser.add_argument("--quick", action="store_true", help="backend tests on CuPy alone, a short bench")
    parser.add_argument("--dry-run", action="store_true", help="a little of everything, on the CPU: tries this script")
    options = parser.parse_args()
    wanted = options.parts.split(",")
    if unknown := [part for part in wanted if part not in LIMITS]:
        parser.error(f"argument --parts: takes some of {','.join(LIMITS)}, not {','.join(unknown)!r}")
    if options.budget < 0:
        parser.error(f"argument --budget: must be seconds, not {options.budget}")
    options.parts = [part for part in LIMITS if part in wanted]
    options.budget = options.budget or (540 if options.quick or options.dry_run else 1800)
    return options


def timed(check, part):
    """Run a part, if there is time for it; whatever happens ends in a summary."""
    limit, begin = check.limit(part), time.monotonic()
    if limit < 1:
        return {"ok": False, "summary": "LEFT OUT, no time is left"}
    try:
        found = PARTS[part](check, limit)
    except (OSError, ValueError, LookupError) as error:  # a file that is not there, or is not what it should be
        found = {"ok": False, "summary": f"FAILED: {type(error).__name__}: {error}"}
    return found | {"seconds": round(time.monotonic() - begin, 1)}


def prepare(check):
    """Return the environment for the parts: this tree's xpcnn, and missing packages from wheels/."""
    paths = [str(ROOT)]
    missing = {module: name for module, name in (NEEDED | USEFUL).items() if importlib.util.find_spec(module) is None}
    wheels, target = ROOT / "wheels", check.folder / "packages"
    if missing and wheels.is_dir():
        files = [str(file) for file in wheels.glob("*.whl") if wanted_wheel(file, missing.values())]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        if files:
            run([*command, "--target", str(target), *files], dict(os.environ), 300)
        paths.append(str(target))
        missing = {module: name for module, name in missing.items() if not PathFinder.find_spec(module, [str(target)])}
    if lacking := ", ".join(name for module, name in missing.items() if module in NEEDED):
        print(f"gpu_check: error: {sys.executable} lacks {lacking}; run ./scripts/gpu_check.sh --bundle where there is "
              f"a network and bring the folder wheels/ along.", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    for name in missing.values():
        print(f"{name} is not installed; what needs it is left out.", flush=True)
    inherited = os.environ.get("PYTHONPATH")
    paths += [inherited] if inherited else []
    chosen = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    chosen.pop("CUPY_TF32", None)  # products in tests are float32's
    return chosen


def wanted_wheel(file, names):
    """Whether a wheel is one of the distributions, or something that they need."""
    every = {name for top in names for name in [top, *ALONG.get(top, [])]}
    return file.name.split("-")[0].lower().replace("_", "-") in {name.lower().replace("_", "-") for name in every}


def verify(check, limit):
    """Check every op against its definition; the certificate says how far off each was."""
    path = check.folder / "certificate.json"
    cases = ["--cases", "3"] if check.options.dry_run else ["--cases", "40"] if check.options.quick else []
    done = check.python("-m", "xpcnn", "verify", "--device", check.device, "--out", path, *cases, limit=limit)
    certificate = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    summary = done.get("fault") or (done["stdout"].strip().splitlines() or [""])[-1].partition(";")[0]
    return {"ok": done["rc"] == 0, "summary": summary, "certificate": certificate, "tail": done.get("tail", "")}


def tests(check, limit):
    """Run the whole suite; CuPy must be among its backends. What needs a network is left out."""
    command = ["-m", "pytest", "-q", "-m", "not network", "-p", "no:cacheprovider"]
    if check.options.dry_run:
        command += ["--only=numpy", *DRY_TESTS]
    else:
        command += ["--require=cupy", "--maxfail=50", *(["--only=cupy"] if check.options.quick else [])]
        command += ["-n", str(min(8, os.cpu_count() or 1))] if has(check, "xdist") else []
    done = check.python(*command, limit=limit)
    lines = done["stdout"].strip().splitlines() or [done.get("fault", "")]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    last = done["fault"] if done["rc"] == 124 else lines[-1]
    return {
        "ok": done["rc"] == 0,
        "summary": last.strip("= "),
        "counts": {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1])},
        "failures": failures,
        "tail": "\n".join([*lines, done.get("tail", "")])[-12000:] if done["rc"] else "",
    }


def has(check, module):
    """Whether the parts' Python can import a module."""
    return check.python("-c", f"import {module}", limit=60)["rc"] == 0


def train(check, limit):
    """Run the default experiment twice: it must reach enough, and the same; then at each lower precision."""
    runs, end = [], time.monotonic() + limit
    lower = () if check.options.dry_run else ("tf32", "bf16")  # which CPUs do not have
    for attempt, precision in (("first", "float32"), ("second", "float32"), *zip(lower, lower, strict=True)):
        out = check.folder / attempt
        command = ["-m", "xpcnn", "train", "--device", check.device, "--precision", precision, "--out", out]
        command += ["--model", "lenet5", "--epochs", "1", "--batch-size", "1000"] if check.options.dry_run else []
        done = check.python(*command, limit=max(1.0, end - time.monotonic()))
        if done["rc"]:
            return {"ok": False, "summary": f"FAILED: {done['fault']}", "runs": runs, "tail": done["tail"]}
        runs.append({"precision": precision, "wall_s": done["seconds"], "epochs": read_epochs(out)})
    losses = [[epoch["loss"] for epoch in one["epochs"]] for one in runs]
    accuracy = min(one["epochs"][-1]["test_accuracy"] for one in runs)
    reached = [(one["precision"], 100 * one["epochs"][-1]["test_accuracy"], one["wall_s"]) for one in runs]
    each = ", ".join(f"{share:.2f} % at {precision} in {wall:.1f} s" for precision, share, wall in reached)
    same = losses[0] == losses[1]
    summary = f"of the test images {each}; losses of the first two {'the same' if same else 'NOT THE SAME'}"
    enough = accuracy >= ENOUGH or check.options.dry_run
    return {"ok": enough and same, "summary": summary, "same_losses_twice": same, "runs": runs}


def recipes(check, limit):
    """Train by recipes, and go on with the device where a run on the CPU was ended by its time limit."""
    dry, data = DRY_RECIPE if check.options.dry_run else [], check.options.data_dir
    names = ["mnist-fast"] if dry else [name for name in RECIPES if data or name != "fashion-resnet"]
    jobs = {name: ["--recipe", name, *dry, "--device", check.device] for name in names}
    if "fashion-resnet" in jobs:
        jobs["fashion-resnet"] += ["--data-dir", data]
    jobs["begun"] = ["--recipe", "mnist-fast", *dry, "--device", "cpu", "--time-limit", "3s"]
    jobs["resumed"] = ["--resume", check.folder / "begun", "--device", check.device]
    runs, end = [], time.monotonic() + limit
    for name, options in jobs.items():
        out = [] if name == "resumed" else ["--out", check.folder / name]
        done = check.python("-m", "xpcnn", "train", *options, *out, limit=max(1.0, end - time.monotonic()))
        if done["rc"]:
            return {"ok": False, "summary": f"FAILED: {name}: {done['fault']}", "runs": runs, "tail": done["tail"]}
        if name != "begun":
            records = read_epochs(check.folder / ("begun" if name == "resumed" else name))
            runs.append({"recipe": name, "wall_s": done["seconds"], "epochs": records})
    reached = {one["recipe"]: one["epochs"][-1]["test_accuracy"] for one in runs}
    enough = all(share >= RECIPES.get(name, RECIPES["mnist-fast"]) for name, share in reached.items())
    summary = ", ".join(f"{one['recipe']} {100 * reached[one['recipe']]:.2f} %, {one['wall_s']:.1f} s" for one in runs)
    return {"ok": enough or check.options.dry_run, "summary": summary, "runs": runs}


def read_epochs(run):
    """Return the epochs of a run's metrics."""
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in records if "epoch" in record]


def bench(check, limit):
    """Measure with `bench_gpu.py`; a missed target is no failure of this check, a failed measurement is."""
    path = check.folder / "bench.json"
    command = ["scripts/bench_gpu.py", "--json", path, "--budget", max(1, int(limit - SPARE))]
    command += ["--quick"] if check.options.quick or check.options.dry_run else []
    command += ["--dry-run", "--only", "step", "--networks", "simple_convnet"] if check.options.dry_run else []
    environment = {name: text for name, text in check.environment.items() if name != "JAX_PLATFORMS"}
    done = Check(check.options, check.folder, environment, check.end).python(*command, limit=limit)
    found = json.loads(text) if path.exists() and (text := path.read_text(encoding="utf-8")) else {}
    listed = found.get("targets", [])
    met = sum(row["met"] is True for row in listed)
    summary = f"{met} of {len(listed)} targets reached, {len(found.get('faults', []))} measurements failed"
    summary = done["fault"] if done["rc"] and not found.get("faults") else summary
    print(done["stdout"], flush=True)
    return {"ok": done["rc"] == 0, "summary": summary, "found": found, "tail": done.get("tail", "")}


PARTS = {"verify": verify, "tests": tests, "train": train, "recipes": recipes, "bench": bench}


if __name__ == "__main__":
    sys.exit(main())
