"""The work of gpu_check.sh: run everything on the GPU and write one report, whatever fails on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {  # module -> distribution
    "array_api_compat": "array-api-compat", "array_api_extra": "array-api-extra", "threadpoolctl": "threadpoolctl",
    "safetensors": "safetensors", "click": "click", "rich": "rich", "PIL": "pillow", "pytest": "pytest",
    "array_api_strict": "array-api-strict", "hypothesis": "hypothesis",
}  # fmt: skip


def main():
    """Run the parts and write the report."""
    usual = Path(os.environ.get("XPCNN_REPORT_DIR", "."), time.strftime("gpu-report-%Y%m%d-%H%M%S.json"))
    report_path = Path(sys.argv[1]) if len(sys.argv) > 1 else usual
    folder = Path(tempfile.mkdtemp(prefix="xpcnn-gpu-check-"))
    environment = prepare(folder)
    report = {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": machine(environment)}
    report["tests"] = tests(folder, environment)
    report["train"] = train(folder, environment)
    report["timings"] = timings(environment)
    report["ok"] = all(report[part].get("ok") for part in ("tests", "train", "timings"))
    report_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'all is well' if report['ok'] else 'SOMETHING FAILED'}: {report_path}")
    return 0 if report["ok"] else 1


def prepare(folder):
    """Return the environment for the parts: this tree's xpcnn, and missing packages from wheels/."""
    paths = [str(ROOT)]
    missing = {module: name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None}
    wheels = ROOT / "wheels"
    if missing and wheels.is_dir():
        target = folder / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--target", str(target), *map(str, pick(wheels, missing.values()))], check=True)
        paths.append(str(target))
        missing = {module: name for module, name in missing.items() if not (target / module).exists()}
    if missing:
        lacking = ", ".join(missing.values())
        print(f"gpu_check: error: {sys.executable} lacks {lacking}; run ./scripts/gpu_check.sh --bundle where there is "
              f"a network and bring the folder wheels/ along.", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])]), "CUPY_TF32": "0"}


def pick(wheels, names):
    """Return the wheels of distributions and of what they need."""
    extra = {"rich": ["markdown-it-py", "mdurl", "pygments"], "hypothesis": ["sortedcontainers"],
             "pytest": ["pluggy", "iniconfig", "packaging"]}  # fmt: skip
    wanted = {name for top in names for name in [top, *extra.get(top, [])]}
    return [p for p in wheels.glob("*.whl") if p.name.split("-")[0].lower().replace("_", "-") in wanted]


def machine(environment):
    """Return what xpcnn says of this machine, and the driver."""
    facts = json.loads(run([sys.executable, "-m", "xpcnn", "info", "--json"], environment)["output"])
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    versions = "import cupy; r = cupy.cuda.runtime; print(r.runtimeGetVersion(), r.driverGetVersion())"
    facts["nvidia_smi"] = run(query, environment)["output"].strip()
    facts["cuda_runtime_and_driver"] = run([sys.executable, "-c", versions], environment)["output"].strip()
    facts["commit"] = run(["git", "rev-parse", "HEAD"], environment)["output"].strip()
    facts["processor"] = platform.processor()
    return facts


def tests(folder, environment):
    """Run the whole suite; CuPy must be among its backends. What needs a network is left out."""
    command = [sys.executable, "-m", "pytest", "-q", "--require=cupy", "-m", "not network", "-p", "no:cacheprovider"]
    done = run([*command, "--maxfail=50"], environment, limit=1500)
    (folder / "tests.txt").write_text(done["output"], encoding="utf-8")
    summary = done["output"].strip().splitlines()[-1] if done["output"].strip() else ""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", summary)}
    failures = [line for line in done["output"].splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(f"tests: {summary}")
    return {
        "ok": done["rc"] == 0,
        "summary": summary,
        "counts": counts,
        "failures": failures,
        "tail": done["output"][-4000:],
    }


def train(folder, environment):
    """Run the default experiment on the GPU, twice: with a cold and with a warm kernel cache."""
    results = []
    for attempt in ("first", "second"):
        out = folder / attempt
        command = [sys.executable, "-m", "xpcnn", "train", "--device", "cuda", "--out", str(out)]
        done = run(command, environment, limit=600)
        lines = (out / "metrics.jsonl").read_text().splitlines() if done["rc"] == 0 else []
        epochs = [record for record in map(json.loads, lines) if "epoch" in record]
        print(f"train ({attempt}): {done['seconds']:.1f} s, {epochs[-1:] or done['output'][-500:]}")
        results.append({"rc": done["rc"], "seconds": done["seconds"], "epochs": epochs, "tail": done["output"][-2000:]})
    same = [[e.get("loss") for e in r["epochs"]] for r in results]
    reached = all(r["rc"] == 0 and r["epochs"][-1]["test_accuracy"] >= 0.986 for r in results)
    return {"ok": reached, "same_losses_twice": same[0] == same[1], "runs": results}


def timings(environment):
    """Time training steps on the GPU, beside PyTorch where it sees the GPU."""
    results = []
    for model in ("simple-convnet", "lenet5"):
        for size in ("100", "1000"):
            command = [sys.executable, "scripts/bench_step.py", "--json", "--device", "cuda", "--rounds", "3"]
            done = run([*command, "--model", model, "--batch-size", size], environment, limit=300)
            result = json.loads(done["output"]) if done["rc"] == 0 else {"error": done["output"][-2000:]}
            print(f"step of {model}, batch {size}: {result.get('xpcnn', result)}, ratio {result.get('ratio')}")
            results.append(result)
    return {"ok": all("error" not in result for result in results), "steps": results}


def run(command, environment, limit=120):
    """Run a command in the repository's root; return its status, its output and how long it took."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=limit)  # fmt: skip
        rc, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        rc, output = 124, f"{(error.stdout or b'').decode(errors='replace')}\nstopped after {limit} s"
    except FileNotFoundError:
        rc, output = 127, f"{command[0]} is not there"
    return {"rc": rc, "output": output, "seconds": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    sys.exit(main())
