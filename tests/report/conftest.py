"""A run with a model and images for it."""

from __future__ import annotations

from functools import partial

import pytest
import runs


@pytest.fixture
def make_run(tmp_path, rng):
    """Return a function that makes a run with a model and labelled images for it."""
    return partial(runs.make_run, tmp_path, rng)
