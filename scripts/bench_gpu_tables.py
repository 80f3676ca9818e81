"""Lines of `bench_gpu.py`'s tables, and how what was found compares with what the GPU path must reach."""

from __future__ import annotations

from bench_cpu_tables import number_text, spread

MET = {True: "reached", False: "MISSED", None: "not measured"}


def sides_table(title, result):
    """Yield a line for every side: a step's time, images per second, the time over xpcnn's, kernels."""
    yield f"\n{title:<36}{'ms a step (least..most)':>30}{'images/s':>12}{'/ xpcnn':>9}{'kernels':>9}  by"
    ours = result["sides"].get("xpcnn", {}).get("ms", {}).get("median")
    for side, found in result["sides"].items():
        ms = found["ms"]
        figure = f"{small(ms['median'])} ({small(ms['least'])}..{small(ms['most'])})"
        ratio = f"{ms['median'] / ours:.2f}" if ours else "-"
        kernels = found["kernels"].get("kernels", "-")
        line = f"  {side:<34}{figure:>30}{found['images_per_second']:>12,.0f}{ratio:>9}{kernels:>9}  {found['clock']}"
        yield line + (f"; {found['note']}" if found["note"] else "")
    if result["difference"] is not None:
        yield f"  losses of the first updates differ by at most {result['difference']:.0e}"


def small(ms):
    """Return milliseconds with three digits or so, and as many below one tenth."""
    return f"{ms:.4f}" if ms < 0.1 else number_text(ms)


def side_result(ready, runs, kernels, batch):
    """Return what there is to say of one side, from its rounds."""
    ms = spread([run["ms"] for run in runs])
    found = {"ms": ms, "images_per_second": 1e3 * batch / ms["median"], "clock": runs[0]["clock"], "kernels": kernels}
    return found | {"steps": runs[0]["steps"], "rounds": [run["ms"] for run in runs]} | ready


def targets(found):
    """Return the issue's targets beside what was found: reached, missed, or not measured."""
    return [
        target(
            "seed run: 10 epochs, full accuracies, kernels compiled", "s", at(found, "seed", "warm", "training_s"), 1.0
        ),
        target("seed run: test accuracy", "", at(found, "seed", "warm", "test_accuracy"), 0.986, least=True),
        *step_targets(found.get("step", [])),
        *image_targets(found.get("images", [])),
        target("gradients, float32: relative error", "", largest(found), 1e-5),
        target("before the first step, cold", "s", at(found, "seed", "start", "cold", "first_step"), 10.0),
        target("before the first step, warm", "s", at(found, "seed", "start", "warm", "first_step"), 2.0),
    ]


def target(what, unit, value, limit, least=False):
    """Return one target: a most, or a least."""
    met = None if value is None else bool(value >= limit if least else value <= limit)
    return {"what": what, "unit": unit, "found": value, "most" if not least else "least": limit, "met": met}


def step_targets(measured):
    """Return how much faster than PyTorch's the step of simple_convnet is."""
    sides = next((result["sides"] for result in measured if result["network"] == "simple_convnet"), {})
    return [
        target("simple_convnet: times faster than PyTorch eager", "×", quotient(sides, "torch eager"), 3.0, True),
        target("simple_convnet: times faster than PyTorch captured", "×", quotient(sides, "torch graph"), 1.0, True),
    ]


def image_targets(measured):
    """Return the networks' rates relative to PyTorch's compiled ones, at bf16."""
    found = {result["network"]: result["sides"] for result in measured if result["precision"] == "bf16"}
    text = "{}, bf16: images/s relative to PyTorch AMP, channels last, compiled"
    return [
        target(text.format(network), "×", quotient(found.get(network, {}), "torch compile"), 1.0, True)
        for network in ("resnet20", "resnet18")
    ]


def quotient(sides, peer):
    """Return how many times longer a peer's step takes than xpcnn's, if both were measured."""
    both = [sides.get(side, {}).get("ms", {}).get("median") for side in (peer, "xpcnn")]
    return both[0] / both[1] if all(both) else None


def largest(found):
    """Return the largest relative error of simple_convnet's gradients."""
    return next(
        (row["largest"]["device"] for row in found.get("gradients", []) if row["network"] == "simple_convnet"), None
    )


def at(found, *path):
    """Return what lies at a path of keys, or nothing."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def target_rows(listed):
    """Yield the targets' table."""
    yield f"\n{'must reach':<74}{'limit':>9}{'found':>12}"
    for row in listed:
        limit = f"≤ {row['most']:g}" if "most" in row else f"≥ {row['least']:g}"
        value = "-" if row["found"] is None else f"{row['found']:.3g} {row['unit']}".rstrip()
        yield f"  {row['what']:<72}{limit:>9}{value:>12}  {MET[row['met']]}"
