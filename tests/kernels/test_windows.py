"""The window steps: their layout, their adjoints, and NumPy's versions against the reference."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from xpcnn import kernels
from xpcnn.kernels import Window, reference

WINDOWS = {
    "plain": Window((5, 4), (2, 3), (1, 1), (1, 1), (0, 0), (4, 2)),
    "strided": Window((7, 6), (2, 2), (3, 2), (1, 1), (0, 0), (2, 3)),
    "padded": Window((4, 5), (3, 3), (1, 1), (1, 1), (2, 1), (6, 5)),
    "one-sided": Window((4, 5), (3, 2), (2, 1), (1, 1), (0, 1), (2, 6)),
    "dilated": Window((8, 7), (2, 3), (1, 2), (3, 2), (1, 0), (7, 2)),
    "cropped": Window((9, 9), (2, 2), (2, 2), (1, 1), (0, 0), (2, 3)),
    "signal": Window((9,), (3,), (2,), (1,), (1,), (5,)),
    "volume": Window((3, 4, 5), (2, 2, 3), (1, 2, 1), (1, 1, 1), (0, 1, 1), (2, 3, 5)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_columns_hold_what_each_kernel_element_meets(arrays, name, rng):
    win = WINDOWS[name]
    x = rng.standard_normal((2, 3, *win.size))
    cols = kernels.of(arrays.xp).im2col(arrays(x), win, arrays.xp)
    expected = _columns(x, win)
    arrays.check(cols, expected, cols, 0.0)
    arrays.check(reference.im2col(arrays(x), win, arrays.xp), expected, cols, 0.0)


@pytest.mark.parametrize("name", WINDOWS)
def test_col2im_is_im2cols_adjoint(arrays, name, rng):
    """<im2col(x), g> = <x, col2im(g)> for every x and g; with unit vectors for x this gives every element."""
    win = WINDOWS[name]
    x = rng.standard_normal((2, 3, *win.size))
    g = rng.standard_normal(_columns(x, win).shape)
    steps = kernels.of(arrays.xp)
    back = arrays.backend.to_numpy(steps.col2im(arrays(g), 2, 3, win, arrays.xp))
    assert back.shape == x.shape
    assert (_columns(x, win) * g).sum() == pytest.approx((x * back).sum(), rel=1e-12)
    arrays.check(reference.col2im(arrays(g), 2, 3, win, arrays.xp), back, arrays(x), 1e-14)
    for place in list(np.ndindex(*x.shape))[::7]:
        unit = np.zeros(x.shape)
        unit[place] = 1.0
        assert (_columns(unit, win) * g).sum() == pytest.approx(back[place], rel=1e-12, abs=1e-12)


def test_first_max_and_its_adjoint(arrays, rng):
    """On ties the first wins; the adjoint puts every gradient into the array that won."""
    steps = kernels.of(arrays.xp)
    for count in (1, 2, 4, 9, 300):
        parts = rng.integers(0, 5, (count, 6, 7)).astype(np.float64)
        best, index = steps.first_max([arrays(part) for part in parts], None, arrays.xp)
        arrays.check(best, parts.max(axis=0), best, 0.0)
        np.testing.assert_array_equal(arrays.backend.to_numpy(index), parts.argmax(axis=0))
        dy = rng.standard_normal((6, 7))
        spread = steps.first_max_backward(arrays(dy), index, count, arrays.xp)
        expected = np.where(np.arange(count)[:, None, None] == parts.argmax(axis=0), dy, 0.0)
        arrays.check(spread, expected, best, 0.0)


def test_blocks_cover_the_rows_in_order():
    for rows, size, budget, workers in product((0, 1, 7, 100), (1, 10, 1000), (1, 50, 10_000), (1, 2, 3)):
        pieces = reference.blocks(rows, size, budget, workers)
        assert [row for piece in pieces for row in range(rows)[piece]] == list(range(rows))
        longest = max(len(range(rows)[piece]) for piece in pieces)
        assert longest <= 1 or longest * size <= budget
        assert len(pieces) % workers == 0 or len(pieces) in (1, rows)


def test_map_blocks_joins_and_adds(arrays, monkeypatch, rng):
    x = rng.standard_normal((11, 3))
    steps = kernels.of(arrays.xp)
    monkeypatch.setattr(steps, "BLOCK_BYTES", 100, raising=False)
    monkeypatch.setattr(reference, "BLOCK_BYTES", 100)
    given = arrays(x)

    def step(rows):
        return (given[rows, ...] * 2.0,), (arrays.xp.sum(given[rows, ...], axis=0),)

    (joined,), (total,) = steps.map_blocks(step, 11, 24, arrays.xp)
    arrays.check(joined, 2 * x, given)
    arrays.check(total, x.sum(axis=0), given)


def test_elementwise_rules_are_applied_whole(arrays, rng):
    for shape in ((3, 4), (70, 1000)):
        x, y = rng.standard_normal(shape), rng.standard_normal(shape)
        steps = kernels.of(arrays.xp)
        total, product_ = steps.elementwise(lambda xp, a, b: (a + b, a * b), [arrays(x), arrays(y)], arrays.xp)
        arrays.check(total, x + y, total, 0.0)
        arrays.check(product_, x * y, total, 0.0)


def _columns(x, win):
    """Build (C·K, B·O) element by element."""
    out = np.zeros((x.shape[1], *win.kernel, x.shape[0], *win.out))
    for c, n in product(range(x.shape[1]), range(x.shape[0])):
        for k, o in product(np.ndindex(*win.kernel), np.ndindex(*win.out)):
            place = [
                a * s + b * d - p for a, s, b, d, p in zip(o, win.stride, k, win.dilation, win.before, strict=True)
            ]
            if all(0 <= i < size for i, size in zip(place, win.size, strict=True)):
                out[(c, *k, n, *o)] = x[(n, c, *place)]
    return out.reshape(x.shape[1] * win.taps, -1)
