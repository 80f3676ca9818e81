"""How a case is drawn: one choice at a time from whatever stands behind, and values from a seed chosen so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

Array = Any
Pick = Callable[[Sequence[Any]], Any]
MANY = 2000  # images: enough for the kernels that share work out or cut it into blocks


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes
    ----------
    op : str
    arrays : dict
        Floating arguments by name (None where an optional one is left out): float64 values that float32 holds too.
    options : dict
        All other arguments, arrays of integers and booleans included.
    backward : dict
        Options of the backward call.
    strided : bool
        Whether arrays are views of every other element of longer ones.
    seed : int
        Of dy and the directions of derivatives.
    """

    op: str
    arrays: dict[str, Array]
    options: dict[str, Any]
    backward: dict[str, Any]
    strided: bool
    seed: int

    def __str__(self) -> str:
        given = {**self.arrays, **self.options, **self.backward}
        arguments = ", ".join(f"{name}={_words(value)}" for name, value in given.items())
        return f"{self.op}({arguments}){' on strided views' * self.strided}"


class Draw:
    """Draws options with ``pick(choices)``: a seeded generator's, or Hypothesis's."""

    def __init__(self, pick: Pick) -> None:
        self._pick = pick
        self.rng = np.random.default_rng(pick(range(2**32)))

    def __call__(self, *choices: Any) -> Any:
        """Return one of the choices."""
        return self._pick(choices)

    def whole(self, least: int, most: int) -> int:
        """Return a whole number, both bounds included."""
        return int(self._pick(range(least, most + 1)))

    def batch(self) -> int:
        """Return a number of images: few, sometimes none or many."""
        return int(self(1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 0, 1, 2, 3, MANY))

    def size(self, n: int, least: int, most: int) -> tuple[int, ...]:
        """Return n lengths."""
        return tuple(self.whole(least, most) for _ in range(n))

    def per_axis(self, n: int, *choices: Any) -> Any:
        """Return one choice for all axes, or one for each."""
        return self(*choices) if self(True, False) else tuple(self(*choices) for _ in range(n))

    def some(self, **choices: Sequence[Any]) -> dict[str, Any]:
        """Return options, of which any may be left out."""
        return {name: self(*values) for name, values in choices.items() if self(True, True, False)}

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        """Return normal values with all of float32's digits."""
        return exact(self.rng.normal(0.0, scale, shape))

    def maybe(self, *shape: int) -> Array:
        """Return normal values, or None for an optional array left out."""
        return self.normal(*shape) if self(True, True, False) else None

    def steps(self, *shape: int, step: float = 1.0) -> Array:
        """Return few different values, whose small sums and products are exact: for ties."""
        return self.rng.integers(-3, 4, shape) * step

    def spaced(self, *shape: int) -> Array:
        """Return different values, no two of them closer than 0.5 unless there are hundreds."""
        size = prod(shape)
        if size > 200:
            return self.normal(*shape)
        return exact(0.5 * (self.rng.permutation(size) - size / 2)).reshape(shape)

    def positive(self, *shape: int) -> Array:
        """Return values above 0, such as weights and variances."""
        return exact(self.rng.uniform(0.25, 3.0, shape))

    def among(self, values: Sequence[float], *shape: int) -> Array:
        """Return an array of some of the values."""
        return exact(self.rng.choice(values, shape))


def exact(values: Array) -> Array:
    """Return float64 values rounded to what float32 holds."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def _words(value: Any) -> str:
    """Return an option as it would be written, an array as its shape."""
    if not isinstance(value, np.ndarray):
        return repr(value)
    kind = "" if value.dtype == np.float64 else f" of {value.dtype}"
    return f"array {value.shape}{kind}"
