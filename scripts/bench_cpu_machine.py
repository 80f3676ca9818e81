"""What `bench_cpu.py` says of the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def cpu_name():
    """Return the processor's name as far as it is known."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(name):
    """Return an installed library's version."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def cpu_seconds():
    """Return the seconds that have passed on all cores, those spent by anybody, and those by this run's processes."""
    file, own = Path("/proc/stat"), os.times()
    ticks = [int(text) for text in file.read_text().split("\n")[0].split()[1:9]] if file.exists() else [0] * 8
    idle = ticks[3] + ticks[4]
    spent = [number / os.sysconf("SC_CLK_TCK") for number in (sum(ticks), sum(ticks) - idle)]
    return *spent, own.user + own.system + own.children_user + own.children_system
