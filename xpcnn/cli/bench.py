"""``xpcnn bench``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from xpcnn import models, optim
from xpcnn.backend import resolve_backend
from xpcnn.cli.common import MODELS, device_option, open_for_use, precision_option, threads_option
from xpcnn.cli.explain import read_numbers
from xpcnn.errors import XpcnnError
from xpcnn.kernels.threads import thread_count
from xpcnn.model import Model
from xpcnn.report.profile import Meter, Profile, profiling
from xpcnn.training import Trainer
from xpcnn.training.build import USUAL

WARM = 2  # calls before those that are timed
OTHER = "other"
SMALL, MANY = 0.0015, 3  # share of a step below which layers' rows are shown as one, from so many on
Table = list[dict[str, Any]]


@click.command("bench")
@click.argument("model", metavar="MODEL")
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Images at a time.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="How often each is timed.")
@click.option(
    "--input-shape", callback=read_numbers, metavar="CxHxW", help="One image's shape.  [default: the model's]"
)
@click.option("--optimizer", type=click.Choice(list(USUAL)), default="adagrad", show_default=True)
@device_option
@precision_option
@threads_option
@click.option("--profile", "profiled", is_flag=True, help="Show the training step's time by layer and by kernel.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench_command(
    model: str, batch_size: int, steps: int, input_shape: Any, optimizer: str, device: str, precision: str,
    profiled: bool, as_json: bool,
) -> None:  # fmt: skip
    """Time training steps and predictions of MODEL: a name that gradcheck knows, a run's directory or a model file.

    The images are noise. They lie on the device before the clock starts, but for the single image, which comes from
    the host and whose outputs go back there.
    """
    opened = _opened(model, input_shape, device, precision)
    images, labels = _data(opened, batch_size)
    usual = USUAL[optimizer]
    slow = usual | {"lr": usual["lr"] / 10}  # noise must not drive it out of bounds
    trainer = Trainer(opened, optim.OPTIMIZERS[optimizer](**slow))
    result = {
        "model": model, "input_shape": opened.input_shape, "parameters": opened.net.parameter_count(opened.input_shape),
        "device": opened.backend.label, "threads": thread_count(), "batch_size": batch_size, "steps": steps,
        "optimizer": optimizer, "precision": precision,
    }  # fmt: skip
    before = peak_memory()
    x, t = opened.backend.asarray(images), opened.backend.asarray(labels)
    work = {
        "training step": (lambda: trainer.step(x, t), batch_size),
        "prediction": (lambda: opened.predict(x, batch_size=batch_size), batch_size),
        "prediction of one image": (lambda: opened.predict(images[:1]), 1),
    }
    result["times"] = {name: _times(call, count, steps, opened) for name, (call, count) in work.items()}
    result["peak_memory"], result["memory_before"] = peak_memory(), before
    if profiled:
        result["profile"] = _profiled(trainer, x, t, steps)
    click.echo(json.dumps(result)) if as_json else _show(result)


def peak_memory() -> int | None:
    """Return the most bytes this process has had resident, or None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(lines[0][1]) << 10 if lines else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _opened(name: str, input_shape: Any, device: str, precision: str) -> Model:
    """Return a new model of a name, or a saved one."""
    known = name.replace("_", "-")
    if known in MODELS:
        build = getattr(models, known.replace("-", "_"))
        return Model(build(input_shape) if input_shape else build(), resolve_backend(device), precision=precision)
    if not Path(name).exists():
        raise XpcnnError(f"there is no model {name!r}: name one of {', '.join(MODELS)}, a run's directory or a file.")
    if input_shape:
        raise XpcnnError("--input-shape is for a model of a name; a saved one has its own.")
    return open_for_use(name, device, precision)[0]


def _data(model: Model, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images and labels."""
    if len(model.output_shape) != 1:
        raise XpcnnError(f"bench needs a model with one row of outputs per image, not {model.output_shape}.")
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *model.input_shape), np.uint8), rng.integers(0, model.output_shape[0], count)


def _times(call: Callable[[], Any], images: int, steps: int, model: Model) -> dict[str, float]:
    """Return the median and least milliseconds of a call, and images per second."""
    seconds = []
    for number in range(WARM + steps):
        model.backend.synchronize()
        start = time.perf_counter()
        call()
        model.backend.synchronize()
        if number >= WARM:
            seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds))
    return {"median_ms": 1e3 * median, "least_ms": 1e3 * min(seconds), "images_per_second": images / median}


def _profiled(trainer: Trainer, x: Any, t: Any, steps: int) -> dict[str, Any]:
    """Return the mean milliseconds of steps by layer and by kernel; each list adds up to the whole step."""
    loss, optimizer = trainer.loss, trainer.optimizer
    with profiling(trainer.model) as profile:
        layers = profile.layers
        trainer.loss = layers.timed(loss[0], "loss", "forward"), layers.timed(loss[1], "loss", "backward")
        trainer.optimizer = optimizer._replace(update=layers.timed(optimizer.update, "update", "update"))
        step = layers.timed(profile.kernels.timed(trainer.step, OTHER, ""), OTHER, OTHER)
        try:
            start = time.perf_counter()
            for _ in range(steps):
                step(x, t)
            seconds = time.perf_counter() - start
        finally:
            trainer.loss, trainer.optimizer = loss, optimizer
    return {
        "step_ms": 1e3 * seconds / steps,
        "layers": _by_layer(profile, steps),
        "kernels": _by_kernel(profile, steps),
    }


def _by_layer(profile: Profile, steps: int) -> Table:
    """Return a row per layer in the order they run, then the loss, the update and what is left."""
    meter = profile.layers
    scale = 1e3 / steps
    total = _total(meter)
    rows: Table = []
    names = [(row.path, row.type) for row in profile.rows]
    for path, kind in (*names, ("loss", ""), ("update", ""), (OTHER, "")):
        forward, backward = meter.of(path, "forward"), meter.of(path, "backward")
        rest = sum(meter.of(path, phase).seconds for phase in ("update", OTHER))
        products, seconds = forward.products + backward.products, forward.seconds + backward.seconds
        rows.append(
            {
                "layer": path, "type": kind, "forward_ms": scale * forward.seconds,
                "backward_ms": scale * backward.seconds, "ms": scale * (seconds + rest),
                "share": (seconds + rest) / total, "multiply_adds": products // steps,
                "gflops": 2e-9 * products / seconds if products else None,
            }
        )  # fmt: skip
    return rows


def _by_kernel(profile: Profile, steps: int) -> Table:
    """Return a row per kernel, the longest first, then what is left: time outside kernels."""
    meter = profile.kernels
    total = _total(meter)
    ordered = sorted(meter.spent.items(), key=lambda item: (item[0][0] == OTHER, -item[1].seconds - item[1].beside))
    return [
        {
            "kernel": name, "module": module, "calls": spent.calls / steps, "ms": 1e3 * spent.seconds / steps,
            "helpers_ms": 1e3 * spent.beside / steps, "share": spent.seconds / total,
        }
        for (name, module), spent in ordered if spent.calls
    ]  # fmt: skip


def _total(meter: Meter) -> float:
    """Return all seconds of the thread that ran the steps."""
    return sum(spent.seconds for spent in meter.spent.values())


def _show(result: dict[str, Any]) -> None:
    """Print the times, and the profile if there is one."""
    shape = "×".join(map(str, result["input_shape"]))
    precision = "" if result["precision"] == "float32" else f"{result['precision']}, "
    click.echo(
        f"{result['model']} on images {shape}, {result['parameters']:,} parameters, {result['optimizer']}, "
        f"{precision}{result['device']}, {result['threads']} thread(s)"
    )
    heading = f"batch size {result['batch_size']}, {result['steps']} times"
    click.echo(f"\n{heading:<34}{'median':>12}{'least':>12}")
    for name, found in result["times"].items():
        times = f"{found['median_ms']:>9.3f} ms{found['least_ms']:>9.3f} ms"
        click.echo(f"{name:<34}{times}{found['images_per_second']:>14,.0f} images/s")
    if result["peak_memory"]:
        peak, before = result["peak_memory"] / 1e6, result["memory_before"] / 1e6
        click.echo(f"{'peak memory of the process':<34}{peak:>9.0f} MB, {before:.0f} MB of it before the first step")
    if "profile" in result:
        _show_profile(result["profile"])


def _shortened(rows: Table) -> Table:
    """Add up the rows that would show as nothing: they go before the loss."""
    small = [row for row in rows if row["share"] < SMALL and row["type"] and not row["multiply_adds"]]
    if len(small) < MANY:
        return rows
    sums = {key: sum(row[key] for row in small) for key in ("forward_ms", "backward_ms", "ms", "share")}
    whole = {"layer": f"{len(small)} more", "type": "", "multiply_adds": 0, "gflops": None} | sums
    left = [row for row in rows if row not in small]
    return [*(row for row in left if row["type"]), whole, *(row for row in left if not row["type"])]


def _show_profile(profile: dict[str, Any]) -> None:
    """Print the two tables."""
    width = max(len(row["layer"]) for row in profile["layers"]) + 2
    click.echo(f"\nA training step by layer, ms (mean; {profile['step_ms']:.3f} ms while profiled)")
    click.echo(
        f"{'layer':<{width}}{'type':<16}{'forward':>9}{'backward':>10}{'both':>9}{'share':>8}{'multiply-adds':>17}"
        f"{'GFLOP/s':>9}"
    )
    for row in _shortened(profile["layers"]):
        times = f"{row['forward_ms']:>9.3f}{row['backward_ms']:>10.3f}{row['ms']:>9.3f}{100 * row['share']:>6.1f} %"
        work = f"{row['multiply_adds']:>17,}{row['gflops']:>9.1f}" if row["gflops"] else ""
        click.echo(f"{row['layer']:<{width}}{row['type']:<16}{times}{work}")
    width = max(len(row["kernel"]) for row in profile["kernels"]) + 2
    click.echo("\nThe same by kernel, ms, each without those it calls; helpers are threads at the same time")
    click.echo(f"{'kernel':<{width}}{'module':<16}{'calls':>9}{'ms':>9}{'share':>8}{'helpers':>9}")
    for row in profile["kernels"]:
        calls = f"{row['calls']:>9.0f}" if row["module"] else " " * 9
        times = f"{calls}{row['ms']:>9.3f}{100 * row['share']:>6.1f} %{row['helpers_ms']:>9.3f}"
        click.echo(f"{row['kernel']:<{width}}{row['module']:<16}{times}")
