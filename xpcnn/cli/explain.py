"""``xpcnn explain``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from xpcnn.errors import DataError
from xpcnn.files import check_writable
from xpcnn.ops.window import MODES
from xpcnn.report.explain import MOST, Explanation, explain_conv, explain_pool
from xpcnn.report.explain_text import text_lines

Host = np.ndarray[Any, Any]
Command = Callable[..., Any]
LONGEST = 32  # bytes of a number in a file of values


def read_numbers(context: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Return one whole number for all axes, or one per axis: ``3``, ``3x5``, ``3,5``."""
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,9}([x,]\d{1,9})*", value, re.ASCII):
        raise click.BadParameter(f"{value!r} is not whole numbers, one per axis, such as 3 or 3x5.")
    numbers = tuple(int(text) for text in re.split("[x,]", value))
    return numbers if len(numbers) > 1 or param.name == "size" else numbers[0]


def read_padding(context: click.Context, param: click.Parameter, value: str) -> Any:
    """Return what the ops take as padding: ``same``, ``valid``, or numbers, each alone or as ``before:after``."""
    if value in ("same", "valid"):
        return value
    if not re.fullmatch(r"\d{1,9}(:\d{1,9})?([x,]\d{1,9}(:\d{1,9})?)*", value, re.ASCII):
        raise click.BadParameter(f"{value!r} is neither same, valid nor numbers such as 1, 1,2 or 1:2,0:1.")
    axes = [tuple(map(int, part.split(":"))) for part in re.split("[x,]", value)]
    entries = tuple(axis if len(axis) == 2 else axis[0] for axis in axes)
    return entries[0] if len(entries) == 1 and ":" not in value else entries


def window_options(stride: str | None) -> Callable[[Command], Command]:
    """Add what both subcommands take."""
    usual = "[default: the kernel's size]" if stride is None else None
    options = (
        click.option("--input", "size", callback=read_numbers, default="5x5", show_default=True, metavar="HxW",
                     help="The input's size: 9, 5x5 or 4x4x4."),
        click.option("--kernel", callback=read_numbers, default="3" if stride else "2", show_default=True,
                     metavar="KHxKW", help="The kernel's size; one number is for every axis, as below."),
        click.option("--stride", callback=read_numbers, default=stride, show_default=bool(stride), metavar="S",
                     help=usual),
        click.option("--padding", callback=read_padding, default="0", show_default=True, metavar="P",
                     help="1, or one per axis 1,2, or before:after 1:2,0:1, or same, or valid."),
        click.option("--dilation", callback=read_numbers, default="1", show_default=True, metavar="D"),
        click.option("--center", callback=read_numbers, metavar="I,J",
                     help="The kernel's central element, which then meets input i*stride; in place of --padding."),
        click.option("--mode", type=click.Choice(MODES), default=MODES[0], show_default=True,
                     help="convolution flips the kernel."),
        click.option("--draw", type=click.Path(), metavar="FILE.png", help="Draw the windows, too."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )  # fmt: skip

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group("explain", invoke_without_command=True)
@click.pass_context
def explain_command(context: click.Context) -> None:
    """Show which kernel element meets which input element, window by window."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@explain_command.command("conv")
@window_options(stride="1")
def conv_command(size: tuple[int, ...], kernel: Any, draw: str | None, as_json: bool, **options: Any) -> None:
    """Print every output element of a convolution as a sum of products w[a,b]*x[i,j]."""
    if draw:
        check_writable(draw)
    _show(explain_conv(size, kernel, **options), draw, as_json)


@explain_command.command("pool")
@window_options(stride=None)
@click.option("--ceil-mode", is_flag=True, help="Keep a last window that hangs over the edge.")
@click.option("--values", type=click.Path(), metavar="FILE", help="Numbers, row by row.  [default: 0, 1, 2, ...]")
@click.option("--seed", type=click.IntRange(0), help="Shuffle 0, 1, 2, ... instead.")
def pool_command(
    size: tuple[int, ...], kernel: Any, draw: str | None, as_json: bool, values: str | None, seed: int | None,
    **options: Any,
) -> None:  # fmt: skip
    """Print every window of a max pooling, its maximum and the maximum's coordinates."""
    if values is not None and seed is not None:
        raise click.UsageError("--values and --seed both say what the input is; give one of them.")
    numbers: Host | None = None
    if values is not None:
        numbers = read_values(values)
    elif seed is not None and math.prod(size) <= MOST:
        numbers = np.random.default_rng(seed).permutation(math.prod(size))
    if draw:
        check_writable(draw)
    _show(explain_pool(size, kernel, values=numbers, **options), draw, as_json)


def read_values(name: str) -> Host:
    """Return a text file's numbers, separated by blanks, commas or line ends, or raise `DataError`."""
    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name} does not exist or is not a file.")
    if path.stat().st_size > MOST * LONGEST:
        raise DataError(f"{name} is too large: it would have more than {MOST:,} values.")
    numbers = []
    for word in path.read_text(encoding="utf-8", errors="replace").replace(",", " ").split():
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{name} must hold finite numbers, but has {word[:40]!r}.")
        numbers.append(number)
    return np.array(numbers, dtype=np.float64)


def _show(told: Explanation, draw: str | None, as_json: bool) -> None:
    """Print an explanation, and draw it if asked."""
    drawn = ""
    if draw:
        from xpcnn.report.windows import draw_windows

        drawn = draw_windows(draw, told)
    if as_json:
        click.echo(json.dumps(told.as_dict()))
        return
    for line in text_lines(told):
        click.echo(line)
    if drawn:
        click.echo(f"\n{drawn} drawn in {draw}")
