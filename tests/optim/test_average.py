"""The moving average of weights against its formula, written as a loop in float64."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import optim
from xpcnn.errors import XpcnnError


def loop(decay, weights):
    """Average weights (steps, ...): ``a += (1 - d)(w - a)`` with ``d = min(decay, (1 + t) / (10 + t))``, from the first."""
    a = weights[0].astype(np.float64)
    for t, w in enumerate(weights[1:]):
        d = min(decay, (1 + t) / (10 + t))
        a += (1 - d) * (w - a)
    return a


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_it_is_its_formula(arrays, dtype, rng, decay):
    weights = {"a": rng.standard_normal((13, 3, 2)), "b": rng.standard_normal((13, 5))}
    average = optim.moving_average(decay)
    first = {path: arrays(values[0], dtype) for path, values in weights.items()}
    held, state = first, average.init(first)
    assert state == {}
    for t in range(12):
        now = {path: arrays(values[t + 1], dtype) for path, values in weights.items()}
        held, state = average.update(now, state, held, t)
    for path, values in weights.items():
        arrays.check(held[path], loop(decay, values.astype(dtype)), first[path], 2e-6 if dtype == "float32" else 1e-13)
        np.testing.assert_array_equal(arrays.backend.to_numpy(first[path]), values[0].astype(dtype))


def test_by_hand():
    """With 1 - 1/10 = 9/10 of the way at once, then 1 - 2/11 = 9/11, and at most 1 - decay later."""
    average = optim.moving_average(0.5)
    assert [average.numbers(step)[0] for step in (0, 1, 7, 8, 9, 1000)] == pytest.approx(
        [9 / 10, 9 / 11, 9 / 17, 0.5, 0.5, 0.5]
    )
    held = {"w": np.zeros(1)}
    for step, expected in enumerate((9.0, 9.0 + 9 / 11)):
        held, _ = average.update({"w": np.array([10.0])}, {}, held, step)
        assert held["w"][0] == pytest.approx(expected)


def test_what_does_not_change_stays_to_the_bit(arrays):
    """Weights that are their average already, of any size."""
    values = np.array([0.1, 1e-30, 3e7, -0.0], np.float32)
    held, _ = optim.moving_average(0.9).update({"w": arrays(values)}, {}, {"w": arrays(values)}, 3)
    np.testing.assert_array_equal(arrays.backend.to_numpy(held["w"]), values)


@pytest.mark.parametrize("decay", [1, -0.1, 1.5, "0.9", None, True, float("nan")])
def test_wrong_decays(decay):
    with pytest.raises(XpcnnError, match="ema must be a number from 0 to below 1, not"):
        optim.moving_average(decay)
