"""Schedules: functions that return ``step -> lr``, where steps are updates and count from 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpcnn.errors import XpcnnError, whole
from xpcnn.optim.base import Schedule, rate_of, within

SHAPES = ("cosine", "linear")


def constant(lr: float) -> Schedule:
    """Return the same learning rate at every step.

    Parameters
    ----------
    lr : float
        Above 0.

    Returns
    -------
    callable
        ``step -> lr``.
    """
    rate = _number(lr)
    return lambda step: rate


def step_decay(lr: float, every: int | Sequence[int], factor: float = 0.1) -> Schedule:
    """Return a learning rate that is multiplied by a factor again and again.

    Parameters
    ----------
    lr : float
        Before the first time.
    every : int or sequence of int
        How many steps lie between two times, or before which steps they are.
    factor : float
        In (0, 1].

    Returns
    -------
    callable
        ``step -> lr``.
    """
    rate, factor = _number(lr), _share("factor", factor)
    if not factor:
        raise XpcnnError(f"factor must be a number above 0 and at most 1, not {factor:g}.")
    if isinstance(every, Sequence) and not isinstance(every, str):
        edges = [whole("every", edge, 1) for edge in every]
        if not edges:
            raise XpcnnError("every must be a number of steps, or name at least one step.")
        return lambda step: rate * factor ** sum(step >= edge for edge in edges)
    length = whole("every", every, 1)
    return lambda step: rate * factor ** (step // length)


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """Return a learning rate that falls along half a cosine, and stays where it ends.

    With ``t = min(step, steps)``: ``lr · (final + (1 - final)·(1 + cos(π·t/steps)) / 2)``.

    Parameters
    ----------
    lr : float
        At step 0.
    steps : int
        Where it ends.
    final : float
        What it ends at, as a share of lr in [0, 1].

    Returns
    -------
    callable
        ``step -> lr``.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5.
    """
    rate, steps, final = _number(lr), whole("steps", steps, 1), _share("final", final)
    return lambda step: rate * _between(1.0, final, min(step, steps) / steps, "cosine")


def one_cycle(
    lr: float, steps: int, *, warmup: float = 0.3, start: float = 0.04, final: float = 4e-6, shape: str = "cosine"
) -> Schedule:
    """Return a learning rate that rises along a line, and falls along half a cosine or a line to the last step.

    It is ``start·lr`` at step 0, ``lr`` at step ``warmup·steps - 1`` and ``final·lr`` at step ``steps - 1``, where it
    stays.

    Parameters
    ----------
    lr : float
        The highest.
    steps : int
        Updates of the whole training.
    warmup : float
        The share of the steps that it rises for, in [0, 1).
    start, final : float
        Where it begins and ends, as shares of lr in [0, 1].
    shape : {"cosine", "linear"}
        How it falls.

    Returns
    -------
    callable
        ``step -> lr``.

    References
    ----------
    L. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018.
    """
    rate, steps = _number(lr), whole("steps", steps, 1)
    warmup, start, final = within("warmup", warmup, 0.0, 1.0), _share("start", start), _share("final", final)
    if shape not in SHAPES:
        raise XpcnnError(f"shape must be {' or '.join(SHAPES)}, not {shape!r}.")
    top, end = max(warmup * steps - 1, 0.0), steps - 1

    def schedule(step: int) -> float:
        if step < top:
            return rate * _between(start, 1.0, step / top, "linear")
        return rate * _between(1.0, final, (min(step, end) - top) / (end - top) if end else 0.0, shape)

    return schedule


def warmup(schedule: float | Schedule, steps: int) -> Schedule:
    """Return a schedule that grows from near zero to another one: times ``(step + 1)/steps`` before step ``steps``.

    Parameters
    ----------
    schedule : float or callable
        Learning rate, or a schedule ``step -> lr``, which goes on meanwhile.
    steps : int
        How many steps are below it, but for the last of them; 0 for none.

    Returns
    -------
    callable
        ``step -> lr``.

    References
    ----------
    P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2.
    """
    rate, steps = rate_of(schedule), whole("steps", steps, 0)
    return lambda step: rate(step) * (step + 1) / steps if step < steps else rate(step)


def _between(first: float, last: float, way: float, shape: str) -> float:
    """Return the value at a share of the way from the first to the last."""
    share = (1 + math.cos(math.pi * way)) / 2 if shape == "cosine" else 1 - way
    return last + (first - last) * share


def _number(lr: Any) -> float:
    """Return a learning rate as a Python float, or raise."""
    if callable(lr):
        raise XpcnnError("lr must be a number above 0, not a schedule.")
    return rate_of(lr)(0)


def _share(name: str, value: Any) -> float:
    """Return a number as a Python float, or raise unless it is from 0 to 1."""
    if not isinstance(value, bool) and value == 1:
        return 1.0
    try:
        return within(name, value, 0.0, 1.0)
    except XpcnnError:
        raise XpcnnError(f"{name} must be a number from 0 to 1, not {value!r}.") from None
