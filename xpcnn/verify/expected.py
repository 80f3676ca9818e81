"""What the definition says about a case: its values, and its derivatives along random directions.

The derivative of the definition f in a direction u is ``Im f(x + i·h·u) / h`` with h = 1e-100 [1]_: exact to rounding,
with no difference of nearby values in it, and at kinks and ties that of the branch which the definition takes.

References
----------
.. [1] W. Squire, G. Trapp, "Using complex variables to estimate derivatives of real functions", 1998.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xpcnn.verify.definitions import DEFINITIONS
from xpcnn.verify.draw import Case, exact

Array = Any
STEP = 1e-100
PARAMETERS = ("weight", "bias", "gamma", "beta")


@dataclass(frozen=True)
class Expected:
    """What the definition says about a case.

    Attributes
    ----------
    results : tuple of arrays
        y; then indices, or new statistics.
    dy : array
        A gradient for y: ones where backward is to take it so by default.
    directions : dict
        A random direction u for each argument that has a gradient and was given.
    slopes : dict
        The derivative of ⟨dy, y⟩ along each: what ⟨gradient, u⟩ must be.
    """

    results: tuple[Array, ...]
    dy: Array
    directions: dict[str, Array]
    slopes: dict[str, float]


def expect(case: Case) -> Expected:
    """Evaluate a case's definition and its derivatives."""
    rng = np.random.default_rng(case.seed)
    with np.errstate(all="ignore"):
        results = _evaluate(case, case.arrays)
        shape = results[0].shape
        dy = np.ones(shape) if "dy" in case.backward else exact(rng.normal(size=shape))
        directions, slopes = {}, {}
        for name in differentiable(case):
            if (x := case.arrays[name]) is not None:
                directions[name] = u = rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1.0, x.shape)
                y = _evaluate(case, {**case.arrays, name: x + 1j * STEP * u})[0]
                slopes[name] = float((dy * (y.imag / STEP)).sum())
    return Expected(results, dy, directions, slopes)


def differentiable(case: Case) -> list[str]:
    """Return the arguments whose gradients backward returns, in its order."""
    first, *others = case.arrays
    return [first, *(name for name in others if name in PARAMETERS and first == "x")]


def _evaluate(case: Case, arrays: dict[str, Array]) -> tuple[Array, ...]:
    """Return what the definition makes of a case's options and these arrays, y first."""
    results = DEFINITIONS[case.op](**arrays, **case.options)
    return results if isinstance(results, tuple) else (np.asarray(results),)
