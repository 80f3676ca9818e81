"""``xpcnn verify``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from xpcnn.backend import resolve_backend
from xpcnn.cli.common import device_option
from xpcnn.errors import XpcnnError
from xpcnn.files import check_writable, write_whole

if TYPE_CHECKING:
    from xpcnn.verify import Row

CASES, CASES_JAX = 200, 1  # JAX compiles every operation anew for every shape


@click.command("verify")
@device_option
@click.option("--out", type=click.Path(), help="The certificate.  [default: xpcnn-verify-BACKEND.json]")
@click.option("--cases", type=click.IntRange(1), help=f"Cases per op.  [default: {CASES}; {CASES_JAX} on jax]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the cases.")
@click.option("--op", "names", metavar="NAME", multiple=True, help="Only this op; may be given again.  [default: all]")
def verify_command(device: str, out: str | None, cases: int | None, seed: int, names: tuple[str, ...]) -> int:
    """Check every op on a device against its definition, and write a certificate.

    Shapes, options and values are drawn from a seed. Results are compared with loops written from the definitions,
    gradients with the definitions' derivatives, in float32 and float64; each call is made twice and must give the
    same bits. The exit status is 0 if all is well and 1 if anything differs.
    """
    from xpcnn.verify import certificate, measure

    backend = resolve_backend(device)
    path = out or f"xpcnn-verify-{backend.name}.json"
    check_writable(path)
    chosen = _chosen(names)
    cases = cases or (CASES_JAX if backend.name == "jax" else CASES)
    start = time.perf_counter()
    click.echo(
        f"{backend.label}{f' ({backend.reason})' if device == 'auto' else ''}, {cases} cases per op, seed {seed}"
    )
    click.echo(f"{'largest errors:':<32}  {'float32':<19}  {'float64':<19}")
    click.echo(f"{'op':<32}  {'forward':>9} {'gradient':>9}  {'forward':>9} {'gradient':>9}")
    rows: list[Row] = []
    for op in chosen:
        found = measure(backend, op, cases, seed)
        rows += found
        _show(found)
    result = certificate(backend, rows, seed, time.perf_counter() - start)
    write_whole(path, json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")
    failed = list(dict.fromkeys(row.op for row in rows if row.failed))
    many = f"{len(chosen)} op{'s' * (len(chosen) > 1)}"
    verdict = f"{len(failed)} of {many} failed ({', '.join(failed)})" if failed else f"{many} verified"
    click.echo(f"{verdict} on {backend.label} in {result['seconds']:.0f} s; the certificate is {path}.")
    return 1 if failed else 0


def _chosen(names: Sequence[str]) -> list[str]:
    """Return the ops asked for, in the usual order, or raise for one that is not there."""
    from xpcnn.verify import OPS

    wanted = {name.replace("-", "_") for name in names}
    if unknown := sorted(wanted - set(OPS)):
        raise XpcnnError(f"there is no op {unknown[0]!r}; the ops are {', '.join(OPS)}.")
    return [op for op in OPS if op in wanted or not wanted]


def _show(rows: Sequence[Row]) -> None:
    """Print an op's line and, for what failed, the first case."""
    errors = "  ".join(f"{_short(row.forward)} {_short(row.gradient)}" for row in rows)
    failed = any(row.failed for row in rows)
    click.echo(f"{rows[0].op:<32}  {errors}  {'FAILED' if failed else 'ok'}")
    for row in rows:
        if row.failed:
            click.echo(f"  {row.dtype}: {row.failed} of {row.cases} cases, first {row.first}")


def _short(error: float) -> str:
    """Return an error in nine characters."""
    return f"{error:>9.1e}" if math.isfinite(error) else f"{'no number':>9}"
