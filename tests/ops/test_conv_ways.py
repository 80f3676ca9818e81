"""The convolutions that make no columns of the whole kernel: by single pixels, by banded matrices, by kernel rows.

The expected values are the definition, one kernel element at a time, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import pytest

from xpcnn import ops
from xpcnn.kernels import native, rowwise
from xpcnn.ops import depthwise, pointwise
from xpcnn.ops.window import conv_window

CONV = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}
BACKWARD = {1: ops.conv1d_backward, 2: ops.conv2d_backward, 3: ops.conv3d_backward}


@dataclass(frozen=True)
class Case:
    """A convolution: images (N, C, *size), filters, kernel and options, one per axis."""

    way: object
    x: tuple[int, ...]
    filters: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def options(self):
        ones = (1,) * len(self.kernel)
        return {
            "stride": self.stride or ones,
            "padding": self.padding or ((0, 0),) * len(ones),
            "dilation": self.dilation or ones,
            "groups": self.groups,
        }


ONE, TWO = ((1, 1), (1, 1)), ((2, 2), (2, 2))
CASES = {
    "pixels": Case(pointwise, (3, 4, 8, 9), 5, (1, 1)),
    "pixels-stride": Case(pointwise, (3, 4, 17, 22), 5, (1, 1), stride=(2, 3)),
    "pixels-groups": Case(pointwise, (3, 4, 8, 9), 6, (1, 1), groups=2),
    "pixels-depthwise": Case(pointwise, (3, 4, 8, 9), 8, (1, 1), groups=4),
    "pixels-signal": Case(pointwise, (2, 3, 70), 4, (1,)),
    "pixels-volume": Case(pointwise, (2, 3, 4, 4, 5), 4, (1, 1, 1)),
    "depthwise": Case(depthwise, (5, 3, 6, 7), 3, (3, 3), padding=ONE, groups=3),
    "depthwise-many": Case(depthwise, (3, 3, 6, 7), 6, (3, 2), padding=((0, 1), (2, 0)), groups=3),
    "depthwise-stride": Case(depthwise, (3, 3, 9, 8), 3, (3, 3), stride=(2, 3), padding=ONE, groups=3),
    "depthwise-dilation": Case(depthwise, (2, 3, 9, 8), 3, (2, 3), dilation=(3, 2), padding=TWO, groups=3),
    "depthwise-signal": Case(depthwise, (4, 3, 11), 6, (4,), stride=(2,), padding=((1, 2),), groups=3),
    "depthwise-volume": Case(depthwise, (2, 2, 4, 5, 6), 4, (2, 3, 2), stride=(2, 1, 1), groups=2),
    "depthwise-beyond": Case(depthwise, (2, 3, 5, 4), 3, (2, 2), padding=((3, 3), (4, 3)), groups=3),
    "rows": Case(rowwise, (19, 8, 9, 8), 4, (3, 3), padding=ONE),
    "rows-uneven": Case(rowwise, (8, 8, 12, 11), 4, (4, 3), padding=((0, 3), (1, 0))),
    "rows-valid": Case(rowwise, (9, 8, 12, 11), 4, (2, 4)),
    "rows-stride": Case(rowwise, (9, 8, 19, 18), 4, (3, 3), stride=(2, 2), padding=ONE),
    "rows-stride-down": Case(rowwise, (6, 8, 19, 18), 4, (3, 3), stride=(2, 1), padding=ONE),
    "rows-stride-along": Case(rowwise, (9, 8, 19, 18), 4, (3, 3), stride=(1, 2), padding=ONE),
    "rows-dilation": Case(rowwise, (5, 8, 13, 14), 4, (3, 2), dilation=(2, 3), padding=TWO),
    "rows-groups": Case(rowwise, (9, 8, 9, 8), 6, (3, 3), padding=ONE, groups=2),
    "rows-beyond": Case(rowwise, (7, 8, 8, 9), 4, (2, 2), padding=((3, 2), (2, 3))),
    "rows-one-pixel-padded": Case(rowwise, (7, 8, 8, 9), 4, (1, 1), padding=ONE),
    "rows-signal": Case(rowwise, (5, 8, 68), 4, (3,), padding=((1, 1),)),
    "rows-volume": Case(rowwise, (11, 8, 4, 5, 6), 3, (2, 3, 2), padding=((1, 1), (1, 1), (0, 1))),
    "wide": Case(rowwise, (3, 8, 9, 30), 4, (3, 3), padding=ONE),
    "wide-single": Case(rowwise, (1, 8, 3, 70), 4, (3, 3), padding=ONE),
    "wide-stride": Case(rowwise, (3, 8, 9, 60), 4, (3, 3), stride=(2, 2), padding=ONE),
    "wide-groups": Case(rowwise, (3, 8, 9, 30), 6, (2, 3), padding=((0, 2), (0, 0)), dilation=(2, 1), groups=2),
    "wide-beyond": Case(rowwise, (3, 8, 4, 25), 4, (2, 2), padding=((3, 2), (2, 3))),
    "wide-volume": Case(rowwise, (3, 8, 4, 5, 26), 3, (2, 3, 2), padding=((1, 1), (1, 1), (0, 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_way_is_the_definition(arrays, dtype, name, rng):
    case = CASES[name]
    x, w, b, dy = _operands(case, rng, dtype)
    y, saved = CONV[len(case.kernel)](arrays(x), arrays(w), arrays(b), **case.options)
    for actual, expected in zip(
        (y, *BACKWARD[len(case.kernel)](arrays(dy), saved)), _defined(case, x, w, b, dy), strict=True
    ):
        arrays.check(actual, expected, y, 2e-5 if dtype == "float32" else 1e-13)
    plain, saved = CONV[len(case.kernel)](arrays(x), arrays(w), **case.options)
    arrays.check(plain, _defined(case, x, w, np.zeros_like(b), dy)[0], y)
    dx, dweight, dbias = BACKWARD[len(case.kernel)](arrays(dy), saved, need_dx=False)
    assert dx is None
    assert dbias is None
    arrays.check(dweight, _defined(case, x, w, b, dy)[2], y)


@pytest.mark.parametrize("name", CASES)
def test_the_cases_are_of_the_way_they_are_listed_for(name, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    taken = []

    def noting(module, work):
        run = getattr(module, work)
        return lambda *given, **options: taken.append((module, work)) or run(*given, **options)

    for module in (pointwise, depthwise, rowwise):
        for work in ("forward", "backward"):
            monkeypatch.setattr(module, work, noting(module, work))
    case = CASES[name]
    x, w, b, dy = _operands(case, np.random.default_rng(0), "float32")
    _, saved = CONV[len(case.kernel)](x, w, b, **case.options)
    BACKWARD[len(case.kernel)](dy, saved)
    assert set(taken) == {(case.way, "forward"), (case.way, "backward")}


@pytest.mark.parametrize("name", CASES)
def test_views_and_empty_batches(name, rng):
    case = CASES[name]
    x, w, b, dy = _operands(case, rng, "float64")
    conv, backward = CONV[len(case.kernel)], BACKWARD[len(case.kernel)]
    y, saved = conv(x, w, b, **case.options)
    expected = (y, *backward(dy, saved))
    swapped, saved = conv(_view(x), _view(w), b[::-1].copy()[::-1], **case.options)
    for actual, values in zip((swapped, *backward(_view(dy), saved)), expected, strict=True):
        np.testing.assert_allclose(actual, values, rtol=0, atol=1e-12)
    y, saved = conv(x[:0], w, b, **case.options)
    assert y.shape == (0, *expected[0].shape[1:])
    dx, dweight, dbias = backward(y, saved)
    assert dx.shape == (0, *x.shape[1:])
    np.testing.assert_array_equal(dweight, np.zeros(w.shape))
    np.testing.assert_array_equal(dbias, np.zeros(b.shape))


def test_many_blocks_give_what_one_gives(monkeypatch, rng):
    from xpcnn.kernels import numpy_cpu

    for name, case in CASES.items():
        x, w, b, dy = _operands(case, rng, "float64")
        x, dy = np.concatenate([x] * 5), np.concatenate([dy] * 5)
        results = []
        for budget in (1 << 30, 1 << 12):
            monkeypatch.setattr(numpy_cpu, "BLOCK_BYTES", budget)
            y, saved = CONV[len(case.kernel)](x, w, b, **case.options)
            results.append((y, *BACKWARD[len(case.kernel)](dy, saved)))
        for whole, cut in zip(*results, strict=True):
            np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-11, err_msg=name)


def test_results_do_not_depend_on_timing(monkeypatch, rng):
    """Two threads that take turns in any way give the same bits."""
    monkeypatch.setattr(native, "library", lambda: None)
    for shape, groups in (((32, 16, 32, 32), 1), ((48, 32, 8, 8), 1), ((32, 24, 16, 16), 24)):
        x = rng.standard_normal(shape).astype(np.float32)
        w = rng.standard_normal((shape[1], shape[1] // groups, 3, 3)).astype(np.float32)
        runs = []
        for _ in range(5):
            y, saved = ops.conv2d(x, w, padding=1, groups=groups)
            runs.append((y, *ops.conv2d_backward(y, saved)[:2]))
        for later in runs[1:]:
            for actual, expected in zip(later, runs[0], strict=True):
                np.testing.assert_array_equal(actual, expected)


def test_a_convolution_whose_padding_reaches_beyond_the_kernel_has_no_adjoint_window():
    inside, beyond, strided = (
        conv_window((8, 9), (3, 2), padding=padding, stride=stride)
        for padding, stride in ((((2, 2), (1, 1)), 1), (((2, 2), (2, 1)), 1), (1, 2))
    )
    adjoint = rowwise.adjoint_window(inside)
    assert (adjoint.size, adjoint.out, adjoint.before) == (inside.out, inside.size, (0, 0))
    assert rowwise.adjoint_window(beyond) is None
    assert rowwise.adjoint_window(strided) is None


def _view(array):
    """Return the same values in another order of memory."""
    return np.ascontiguousarray(array.T).T


def _operands(case, rng, dtype):
    """Return x, weight, bias and dy."""
    win = conv_window(case.x[2:], case.kernel, **{k: v for k, v in case.options.items() if k != "groups"})
    shapes = (
        case.x,
        (case.filters, case.x[1] // case.groups, *case.kernel),
        (case.filters,),
        (case.x[0], case.filters, *win.out),
    )
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def _defined(case, x, w, b, dy):
    """Return y, dx, dweight and dbias, adding up one kernel element after another."""
    x, w, b, dy = (a.astype(np.float64) for a in (x, w, b, dy))
    n, axes, groups = x.shape[0], len(case.kernel), case.groups
    stride, padding, dilation = (case.options[name] for name in ("stride", "padding", "dilation"))
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    slope = np.zeros_like(padded)
    y, dw = np.zeros(dy.shape), np.zeros(w.shape)
    g = dy.reshape(n, groups, case.filters // groups, -1)
    for element in np.ndindex(*case.kernel):
        met = tuple(
            slice(e * d, e * d + (o - 1) * s + 1, s)
            for e, d, o, s in zip(element, dilation, dy.shape[2:], stride, strict=True)
        )
        pixels = padded[(..., *met)].reshape(n, groups, x.shape[1] // groups, -1)
        taps = w[(..., *element)].reshape(groups, case.filters // groups, -1)
        y += np.einsum("gfc,ngco->ngfo", taps, pixels).reshape(dy.shape)
        dw[(..., *element)] = np.einsum("ngfo,ngco->gfc", g, pixels).reshape(case.filters, -1)
        back = np.einsum("gfc,ngfo->ngco", taps, g)
        slope[(..., *met)] += back.reshape(n, x.shape[1], *dy.shape[2:])
    inside = tuple(slice(before, before + size) for (before, _), size in zip(padding, x.shape[2:], strict=True))
    dbias = dy.sum(axis=(0, *range(2, 2 + axes)))
    assert prod(y.shape) == dy.size
    return y + b.reshape(1, -1, *(1,) * axes), slope[(..., *inside)], dw, dbias
