"""What `bench_gpu.py` says of the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from bench_cpu_machine import cpu_name

QUERY = "name,driver_version,memory.total,memory.used,utilization.gpu,power.limit,clocks.max.sm"
LIBRARIES = (
    "numpy", "cupy-cuda13x", "cupy-cuda12x", "nvidia-cudnn-frontend", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12",
    "nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "ml_dtypes", "torch", "triton", "jax", "jaxlib",
)  # fmt: skip


def machine(environment):
    """Return what runs where: GPU, driver, versions, commit and date."""
    facts = {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "gpu": gpu(), "cpu": cpu_name(), "cores": os.cpu_count()}
    facts["versions"] = {"python": platform.python_version()} | versions()
    facts["info"] = json.loads(said([sys.executable, "-m", "xpcnn", "info", "--json"], environment) or "{}")
    cuda = "import cupy; r = cupy.cuda.runtime; print(r.runtimeGetVersion(), r.driverGetVersion())"
    facts["cuda_runtime_and_driver"] = said([sys.executable, "-c", cuda], environment)
    git = ["git", "-C", str(Path(__file__).parent)]
    facts["commit"] = said([*git, "rev-parse", "HEAD"], environment) or "unknown"
    facts["changed_since"] = bool(said([*git, "status", "--porcelain"], environment))
    return facts


def gpu():
    """Return what nvidia-smi says of the first GPU that may be used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    only = [f"--id={chosen}"] if chosen else []
    line = said(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", *only], os.environ).partition("\n")[0]
    return dict(zip(QUERY.split(","), map(str.strip, line.split(",")), strict=False)) if line else {}


def versions():
    """Return the versions of what is installed of the libraries."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def said(command, environment):
    """Return what a command prints, or nothing if it fails."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
