"""Many cases of every op, and the certificate that says how they came out."""

from __future__ import annotations

import importlib
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

import xpcnn
from xpcnn.backend import Backend, device_name
from xpcnn.random import Key
from xpcnn.verify.cases import draw_case
from xpcnn.verify.check import TOLERANCE, Check
from xpcnn.verify.draw import Case
from xpcnn.verify.expected import expect


@dataclass
class Row:
    """How one op came out in one dtype: largest errors over its cases, and the first case that failed, in words."""

    op: str
    dtype: str
    cases: int
    forward: float = 0.0
    gradient: float = 0.0
    failed: int = 0
    first: str = ""


def measure(backend: Backend, op: str, cases: int, seed: int) -> list[Row]:
    """Run an op's cases and return a row for each dtype.

    Parameters
    ----------
    backend : Backend
        Where to compute.
    op : str
        The op's name, a key of `xpcnn.verify.OPS`.
    cases : int
        How many to draw; the first ones are the same however many.
    seed : int
        Of the cases.
    """
    rows = [Row(op, dtype, cases) for dtype in TOLERANCE]
    for number in range(cases):
        case = nth_case(op, number, seed)
        expected = expect(case)
        for row in rows:
            found = Check(case, expected, backend, row.dtype)
            row.forward, row.gradient = max(row.forward, found.forward), max(row.gradient, found.gradient)
            row.failed += bool(found.faults)
            if found.faults and not row.first:
                row.first = f"case {number}, {case}: {'; '.join(found.faults)}"
    return rows


def nth_case(op: str, number: int, seed: int) -> Case:
    """Return a case that depends on the op, its number and the seed only."""
    rng = Key(seed).child("verify", op, number).generator()
    return draw_case(op, lambda choices: choices[int(rng.integers(len(choices)))])


def certificate(backend: Backend, rows: Sequence[Row], seed: int, seconds: float) -> dict[str, Any]:
    """Return what was run, where and how it came out, as JSON can hold it; an error without a number is null."""
    return {
        "ok": not any(row.failed for row in rows),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": backend.name,
        "device": device_name(backend),
        "versions": versions(backend),
        "platform": platform.platform(),
        "seed": seed,
        "seconds": round(seconds, 1),
        "results": [
            {
                "op": row.op,
                "dtype": row.dtype,
                "backend": backend.name,
                "cases": row.cases,
                "largest_forward_error": _finite(row.forward),
                "largest_gradient_error": _finite(row.gradient),
                "tolerance": TOLERANCE[row.dtype],
                "ok": not row.failed,
                "failed_cases": row.failed,
                "first_failure": row.first or None,
            }
            for row in rows
        ],
    }


def versions(backend: Backend) -> dict[str, Any]:
    """Return the versions of what computed; of CUDA's runtime and driver too where CuPy did."""
    found = {"xpcnn": xpcnn.__version__, "python": platform.python_version(), "numpy": np.__version__}
    found[backend.name] = backend.version
    if backend.name == "cupy":
        runtime = importlib.import_module(backend.name).cuda.runtime
        found |= {"cuda_runtime": runtime.runtimeGetVersion(), "cuda_driver": runtime.driverGetVersion()}
    return found


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
