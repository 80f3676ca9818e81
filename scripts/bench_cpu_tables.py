"""From what `bench_cpu.py` measured to figures with their spread, ratios of peers to xpcnn, and lines of tables."""

from __future__ import annotations

import statistics

OURS = ("xpcnn", "numpy")  # with the usual kernels, and with pure NumPy
LABEL, FIGURE, NUMBER = 24, 21, 14  # characters of a column


def figures(runs):
    """Return every side's time and memory over the rounds."""
    times, memory = {}, {}
    for side, found in runs.items():
        times[side] = spread([statistics.median(run["ms"]) for run in found])
        added = statistics.median(run["peak_mb"] - run["base_mb"] for run in found)
        memory[side] = spread([run["peak_mb"] for run in found]) | {"added": added}
    return {"ms": times, "peak_mb": memory}


def rate(runs, cases, direction, products):
    """Return each case's GFLOP/s, the median over the rounds; None where nothing was measured."""
    rates = []
    for number, case in enumerate(cases):
        medians = [statistics.median(run[direction][number]) for run in runs if run[direction][number]]
        rates.append(1e3 * products * case["gflop"] / statistics.median(medians) if medians else None)
    return rates


def difference(found, expected):
    """Return the largest difference, relative to the largest number; infinity where there is none."""
    scale = max(map(abs, expected)) or 1.0
    worst = [abs(a - b) / scale for a, b in zip(found, expected, strict=True)]
    return max(value if value == value else float("inf") for value in worst)


def spread(values):
    """Return the median and the ends of some figures."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def row(label, figures=(), numbers=()):
    """Return a line of a table: wide columns, then narrow ones."""
    wide = "".join(f"{text:>{FIGURE}}" for text in figures)
    return f"{label:<{LABEL}}{wide}" + "".join(f"{text:>{NUMBER}}" for text in numbers)


def ratio_names(peers):
    """Return the headings of the ratios of every peer to both of ours."""
    return [f"{peer}/{ours}" for peer in peers for ours in OURS]


def ratios(figures, peers):
    """Return every peer's median over each of ours."""
    medians = {side: figure["median"] for side, figure in figures.items()}
    return [quotient(medians.get(peer), medians.get(ours)) for peer in peers for ours in OURS]


def figure_row(label, figures, sides, peers, *more):
    """Return a line with every side's figure, the ratios and what else there is to say."""
    return row(label, [cell(figures.get(side)) for side in sides], [*ratios(figures, peers), *more])


def rate_rows(title, cases, rates, sides):
    """Yield a table of GFLOP/s, of what share of NumPy's product that is, and of rates relative to the peers'."""
    peers = [side for side in sides if side not in OURS]
    shares = [f"{side}/GEMM" for side in sides]
    yield row(f"{title}, GFLOP/s", (), ["GEMM", *sides, *shares, *ratio_names(peers)])
    for number, case in enumerate(cases):
        found = {side: values[number] for side, values in rates.items()}
        numbers = [number_text(found.get(side)) for side in ("gemm", *sides)]
        numbers += [percent(found.get(side), found.get("gemm")) for side in sides]
        numbers += [quotient(found.get(ours), found.get(peer)) for peer in peers for ours in OURS]
        kind = "depthwise" if case["groups"] > 1 else f"{case['kernel']}×{case['kernel']}"
        yield row(f"{case['batch']}×{case['channels']}×{case['size']}×{case['size']} {kind}", (), numbers)


def cell(figure):
    """Return a figure with its ends, or with what the work added to the imports."""
    if figure is None:
        return "failed"
    if "added" in figure:
        return f"{figure['median']:.0f} (+{figure['added']:.0f})"
    return f"{number_text(figure['median'])} ({number_text(figure['least'])}..{number_text(figure['most'])})"


def number_text(value):
    """Return a number with three digits or so."""
    if value is None:
        return "-"
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def quotient(a, b):
    """Return a ratio as text."""
    return f"{a / b:.2f}" if a and b else "-"


def percent(a, b):
    """Return a share as text."""
    return f"{100 * a / b:.0f} %" if a and b else "-"
