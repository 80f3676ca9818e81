"""Every op x option on every backend: Hypothesis draws the cases and shrinks what fails."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xpcnn.verify import OPS, TOLERANCE
from xpcnn.verify.cases import draw_case
from xpcnn.verify.check import Check
from xpcnn.verify.expected import expect

EXAMPLES = {"numpy": 40, "cupy": 40, "jax": 1}  # a few elsewhere; JAX compiles every shape
SETTINGS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("op", OPS)
def test_parity(arrays, op):
    @settings(max_examples=EXAMPLES.get(arrays.id, 6), **SETTINGS)
    @given(st.data())
    def every_case(data):
        case = draw_case(op, lambda choices: data.draw(st.sampled_from(choices)))
        expected = expect(case)
        for dtype in TOLERANCE:
            faults = Check(case, expected, arrays.backend, dtype).faults
            assert not faults, f"{case} in {dtype}: {'; '.join(faults)}"

    every_case()
