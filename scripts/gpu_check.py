"""The work of gpu_check.sh: run everything on the GPU and write one report, after each part, whatever fails."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {  # module -> distribution
    "array_api_compat": "array-api-compat", "array_api_extra": "array-api-extra", "threadpoolctl": "threadpoolctl",
    "safetensors": "safetensors", "click": "click", "rich": "rich", "PIL": "pillow", "pytest": "pytest",
    "array_api_strict": "array-api-strict", "hypothesis": "hypothesis", "matplotlib": "matplotlib",
}  # fmt: skip
PARTS = ("verify", "tests", "train", "timings")


def main():
    """Run the parts that were asked for and write the report."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description="Check xpcnn on an NVIDIA GPU.")
    parser.add_argument("report", nargs="?", type=Path, help="the JSON file to write")
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s, which to run")
    parser.add_argument("--quick", action="store_true", help="run backend tests on CuPy alone")
    options = parser.parse_args()
    usual = Path(os.environ.get("XPCNN_REPORT_DIR", "."), time.strftime("gpu-report-%Y%m%d-%H%M%S.json"))
    path = options.report or usual
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="xpcnn-gpu-check-"))
    environment = prepare(folder)
    report = {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "ok": False, "machine": machine(environment)}
    wanted = [part for part in PARTS if part in options.parts.split(",")]
    for part in wanted:
        work = {"verify": verify, "tests": tests, "train": train, "timings": timings}[part]
        report[part] = work(folder, environment, options.quick)
        report["ok"] = all(report.get(done, {}).get("ok") for done in wanted)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'all is well' if report['ok'] else 'SOMETHING FAILED'}: {path}", flush=True)
    return 0 if report["ok"] else 1


def prepare(folder):
    """Return the environment for the parts: this tree's xpcnn, and missing packages from wheels/."""
    paths = [str(ROOT)]
    missing = {module: name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None}
    wheels, target = ROOT / "wheels", folder / "packages"
    if missing and wheels.is_dir():
        files = [str(file) for file in wheels.glob("*.whl") if wanted_wheel(file, missing.values())]
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            str(target),
        ]
        subprocess.run([*command, *files], check=True)
        paths.append(str(target))
        missing = {module: name for module, name in missing.items() if not PathFinder.find_spec(module, [str(target)])}
    if missing:
        lacking = ", ".join(missing.values())
        print(f"gpu_check: error: {sys.executable} lacks {lacking}; run ./scripts/gpu_check.sh --bundle where there is "
              f"a network and bring the folder wheels/ along.", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    inherited = os.environ.get("PYTHONPATH")
    paths += [inherited] if inherited else []
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUPY_TF32": "0", "JAX_PLATFORMS": "cpu"}


def wanted_wheel(file, names):
    """Whether a wheel is one of the distributions, or something that they need."""
    needs = {
        "rich": ["markdown-it-py", "mdurl", "pygments"], "hypothesis": ["sortedcontainers"],
        "pytest": ["pluggy", "iniconfig", "packaging"],
        "matplotlib": ["contourpy", "cycler", "fonttools", "kiwisolver", "packaging", "pyparsing", "python-dateutil"],
    }  # fmt: skip
    every = {name for top in names for name in [top, *needs.get(top, [])]}
    return file.name.split("-")[0].lower().replace("_", "-") in every


def machine(environment):
    """Return what xpcnn says of this machine, and the driver."""
    info = run([sys.executable, "-m", "xpcnn", "info", "--json"], environment)
    facts = json.loads(info["stdout"]) if info["rc"] == 0 else {"error": info["output"]}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    versions = "import cupy; r = cupy.cuda.runtime; print(r.runtimeGetVersion(), r.driverGetVersion())"
    facts["nvidia_smi"] = run(query, environment)["output"].strip()
    facts["cuda_runtime_and_driver"] = run([sys.executable, "-c", versions], environment)["stdout"].strip()
    commit = run(["git", "rev-parse", "HEAD"], environment)
    facts["commit"] = commit["stdout"].strip() if commit["rc"] == 0 else "unknown"
    return facts


def tests(folder, environment, quick):
    """Run the whole suite; CuPy must be among its backends. What needs a network is left out."""
    command = [sys.executable, "-m", "pytest", "-q", "--require=cupy", "-m", "not network", "-p", "no:cacheprovider"]
    done = run([*command, "--maxfail=50", *(["--only=cupy"] if quick else [])], environment, limit=1500)
    lines = done["output"].strip().splitlines() or [""]
    print(f"tests: {lines[-1]}", flush=True)
    return {
        "ok": done["rc"] == 0,
        "seconds": done["seconds"],
        "summary": lines[-1],
        "counts": {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1])},
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "tail": done["output"][-8000:] if done["rc"] else "",
    }


def verify(folder, environment, quick):
    """Check every op against its definition; the certificate says how far off each was."""
    path = folder / "certificate.json"
    command = [sys.executable, "-m", "xpcnn", "verify", "--device", "cuda", "--out", str(path)]
    done = run([*command, *(["--cases", "40"] if quick else [])], environment, limit=600)
    print(f"verify: {(done['stdout'].strip().splitlines() or [done['output'][-500:]])[-1]}", flush=True)
    certificate = json.loads(path.read_text()) if path.exists() else {}
    return {
        "ok": done["rc"] == 0,
        "seconds": done["seconds"],
        "certificate": certificate,
        "tail": done["output"][-4000:],
    }


def train(folder, environment, quick):
    """Run the default experiment on the GPU twice: with a cold (perhaps) and with a warm kernel cache."""
    runs = []
    for attempt in ("first", "second"):
        out = folder / attempt
        command = [sys.executable, "-m", "xpcnn", "train", "--device", "cuda", "--out", str(out)]
        done = run(command, environment, limit=300)
        lines = (out / "metrics.jsonl").read_text().splitlines() if done["rc"] == 0 else []
        epochs = [record for record in map(json.loads, lines) if "epoch" in record]
        print(f"train ({attempt}): {done['seconds']:.1f} s, {epochs[-1:] or done['output'][-500:]}", flush=True)
        runs.append({"rc": done["rc"], "seconds": done["seconds"], "epochs": epochs, "tail": done["output"][-2000:]})
    losses = [[epoch["loss"] for epoch in one["epochs"]] for one in runs]
    reached = all(one["rc"] == 0 and one["epochs"][-1]["test_accuracy"] >= 0.986 for one in runs)
    return {"ok": reached, "same_losses_twice": losses[0] == losses[1], "runs": runs}


def timings(folder, environment, quick):
    """Time training steps on the GPU, beside PyTorch where it sees the GPU."""
    steps = []
    for model in ("simple-convnet", "lenet5"):
        for size in ("100", "1000"):
            command = [sys.executable, "scripts/bench_step.py", "--json", "--device", "cuda", "--rounds", "3"]
            done = run([*command, "--model", model, "--batch-size", size], environment, limit=300)
            result = json.loads(done["stdout"]) if done["rc"] == 0 else {"error": done["output"][-2000:]}
            print(
                f"step of {model}, batch {size}: {result.get('xpcnn', result)}, ratio {result.get('ratio')}", flush=True
            )
            steps.append(result)
    return {"ok": all("error" not in result for result in steps), "steps": steps}


def run(command, environment, limit=120):
    """Run a command in the repository's root; return its status, its output and how long it took."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
        rc, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        rc, stdout, stderr = 124, (error.stdout or b"").decode(errors="replace"), f"\nstopped after {limit} s"
    except OSError as error:
        rc, stdout, stderr = 127, "", f"{command[0]}: {error.strerror}"
    return {"rc": rc, "stdout": stdout, "output": stdout + stderr, "seconds": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    sys.exit(main())
