"""``xpcnn info``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
from typing import Any

import click
import numpy as np

import xpcnn
from xpcnn.backend import cuda_devices, device_name, resolve_backend
from xpcnn.kernels import native
from xpcnn.kernels.threads import cores, thread_count

LIBRARIES = {
    "numpy": ("numpy",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "torch": ("torch",),
    "jax": ("jax",),
    "array_api_strict": ("array-api-strict",),
}


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info_command(as_json: bool) -> None:
    """Print backends, devices, versions and BLAS."""
    facts = collect()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"xpcnn {facts['xpcnn']}, Python {facts['python']}, {facts['platform']}")
    click.echo(f"cores: {facts['cores']}, threads used: {facts['threads']}")
    click.echo(
        "BLAS:  "
        + (", ".join(f"{b['name']} {b['version']}, {b['threads']} thread(s)" for b in facts["blas"]) or "unknown")
    )
    click.echo(f"CPU kernels: {facts['kernels']}")
    click.echo("backends:")
    for name, version in facts["backends"].items():
        click.echo(f"  {name:<17} {version or 'not installed'}")
    click.echo("CUDA devices:")
    for device in facts["cuda_devices"] or [facts["cuda_missing"]]:
        click.echo(f"  {device}")
    click.echo(f"--device auto: {facts['auto']}")


def collect() -> dict[str, Any]:
    """Return what the library finds on this machine."""
    count, missing = cuda_devices()
    auto = resolve_backend("auto")
    return {
        "xpcnn": xpcnn.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "cores_of_machine": os.cpu_count(),
        "threads": thread_count(),
        "blas": _blas(),
        "kernels": native.description(),
        "backends": {name: _version(name, packages) for name, packages in LIBRARIES.items()},
        "cuda_devices": [device_name(resolve_backend(f"cuda:{index}")) for index in range(count)],
        "cuda_missing": missing,
        "auto": f"{auto.label}: {auto.reason}",
    }


def _version(name: str, packages: tuple[str, ...]) -> str | None:
    """Return an installed library's version, without importing it."""
    if importlib.util.find_spec(name) is None:
        return None
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"


def _blas() -> list[dict[str, Any]]:
    """Return the BLAS libraries in use; NumPy's own word where they cannot be asked."""
    from threadpoolctl import threadpool_info

    loaded = [library for library in threadpool_info() if library["user_api"] == "blas"]
    if loaded:
        return [
            {"name": library["internal_api"], "version": library["version"], "threads": library["num_threads"]}
            for library in loaded
        ]
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return [{"name": built["name"], "version": built["version"], "threads": "unknown"}]
