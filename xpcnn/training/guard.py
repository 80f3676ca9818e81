"""Where numbers first stopped being numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array
from xpcnn.layers import watched
from xpcnn.layers.base import Arrays
from xpcnn.model import Model
from xpcnn.random import Key

FINITE = "every layer's output is finite, but the loss is not"


def first_fault(model: Model, params: Arrays, state: Arrays, x: Any, key: Key) -> str:
    """Return, as half a sentence, what in a step's forward pass was the first that is not finite.

    Parameters
    ----------
    model : Model
        Whose network it is.
    params, state : dict of array
        What the step began with.
    x : array (N, *input_shape)
        Its batch.
    key : Key
        Its random numbers.
    """
    if wrong := not_finite(model, params | state):
        return f"{wrong} is not finite, so the update before it went wrong"
    with model.computing():
        x = model.as_input(x)
        if not _finite(model, x):
            return "the images hold values that are not finite"
        for path, y in watched.outputs(model.net, model.input_shape, params, state, x, train=True, key=key).items():
            if not _finite(model, y):
                return f"{path} is the first layer whose output is not finite"
    return FINITE


def worst(found: Sequence[str]) -> str:
    """Return what the first rank found whose images showed a fault."""
    return next((text for text in found if text != FINITE), FINITE)


def not_finite(model: Model, arrays: Arrays) -> str | None:
    """Return the path of the first array that is not finite, if there is one."""
    return next((path for path, array in arrays.items() if not _finite(model, array)), None)


def _finite(model: Model, array: Array) -> bool:
    """Whether all of an array is finite."""
    xp = model.backend.xp
    if not xp.isdtype(array.dtype, "real floating"):
        return True
    with model.backend.context():
        return bool(xp.all(xp.isfinite(array)))
