"""What recorded steps take from the device: batches, random numbers, and notes of what came out."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import kernels
from xpcnn.random import Key


@pytest.fixture
def engine(graphs):
    return kernels.of(graphs.xp).engine("capture", graphs(np.zeros(1, np.uint8)))


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5, 7), (40, 101)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.97])
def test_masks_are_numpys(graphs, engine, shape, rate):
    keys = np.zeros((3, 4, 2), np.uint64)
    key = Key(5, ("step", 2, "dropout1", "dropout"))
    keys[2, 1] = key.words & (1 << 64) - 1, key.words >> 64
    found = engine.mask(graphs(keys), graphs(np.array([2])), 1, rate, shape)
    np.testing.assert_array_equal(graphs.backend.to_numpy(found), key.uniform(shape) >= rate)


def test_zero_numbers(graphs, engine):
    found = engine.mask(graphs(np.zeros((1, 1, 2), np.uint64)), graphs(np.array([0])), 0, 0.5, (0, 3))
    assert found.shape == (0, 3)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_batches_are_gathered(graphs, engine, dtype, kind, rng):
    images, labels = (255 * rng.random((9, 2, 5, 3))).astype(kind), rng.integers(0, 5, 9)
    order = rng.permutation(9)
    arrays = [graphs(a) for a in (images, labels, order, np.array([1]))]
    x, t = engine.gather(*arrays, 3, 4, getattr(graphs.xp, dtype), (1 / 255, 0.25))
    chosen = order[4:7]
    pixels = images[chosen].astype(np.float64)
    graphs.check(x, pixels / 255 - 0.25 if kind == "uint8" else pixels, like=graphs(np.zeros(1, dtype)))
    np.testing.assert_array_equal(graphs.backend.to_numpy(t), labels[chosen])


def test_right_answers_are_counted_as_argmax_counts_them(graphs, engine, dtype, rng):
    logits = rng.integers(0, 3, (700, 5)).astype(dtype)  # many equals
    logits[::7, 2] = np.nan
    logits[::11, 4] = np.inf
    labels = rng.integers(0, 5, 700)
    right = graphs(np.zeros(3, np.int64))
    engine.tally(graphs(logits), graphs(labels), right, graphs(np.array([2])))
    expected = int((logits.argmax(axis=1) == labels).sum())
    np.testing.assert_array_equal(graphs.backend.to_numpy(right), [0, 0, expected])


def test_losses_are_noted_in_turn(graphs, engine, dtype):
    losses, progress = graphs(np.zeros(3, dtype)), graphs(np.zeros(1, np.int64))
    for value in (1.5, -2.0):
        engine.advance(graphs(np.array(value, dtype)), losses, progress)
    np.testing.assert_array_equal(graphs.backend.to_numpy(losses), [1.5, -2.0, 0.0])
    assert int(graphs.backend.to_numpy(progress)[0]) == 2
