"""gradcheck: what is right passes on every backend, what is wrong in any place fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers, models, ops
from xpcnn.verify.gradients import check_layers

NET = layers.Sequential(
    layers.Conv2D(4, 3, padding=1, bias=False),
    layers.BatchNorm(),
    layers.ReLU(),
    layers.Residual(layers.Sequential(layers.Conv2D(4, 3, padding=1), layers.Dropout(0.3))),
    layers.MaxPool2D(2),
    layers.Affine(3),
)


def test_a_right_network_passes(arrays):
    samples = 1 if arrays.id == "jax" else 4
    report = xc.gradcheck(NET, (2, 6, 6), device=arrays.backend, samples=samples)
    assert report
    assert {check.name for check in report.checks} == {*NET.parameters((2, 6, 6)), "input"}
    assert all(check.error < 1e-6 for check in report.checks)


def test_right_ops_pass(rng):
    x, w, b = rng.random((2, 4, 5, 5)), rng.random((6, 2, 3, 3)), rng.random(6)
    assert xc.gradcheck(ops.conv2d, x, w, b, stride=2, padding="same", groups=2)
    assert xc.gradcheck(ops.softmax_cross_entropy, x[:, :, 0, 0], np.array([0, 3]), label_smoothing=0.1)
    assert xc.gradcheck(ops.batch_norm, x, b[:4], b[:4], None, None, train=True, backward=ops.batch_norm_backward)
    assert xc.gradcheck(ops.dropout, x, rng.random(x.shape) > 0.5, 0.5)


@dataclass(frozen=True)
class Square(layers.Layer):
    """A layer with a gradient that may be wrong: by a factor, or in one element alone."""

    factor: float = 1.0
    wrong_element: bool = False

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return {"shift": layers.Parameter(input_shape, 1, xc.optim.Zeros())}

    def forward(self, params, state, x, *, train=False, key=None):
        return (x + params["shift"]) ** 2, x + params["shift"], state

    def backward(self, params, dy, saved, *, need_dx=True):
        dx = 2.0 * dy * saved
        dshift = dx.sum(0)
        if self.wrong_element:
            dshift[3, 1, 2] += 0.01 * abs(dshift).max()
        return dx * self.factor, {"shift": dshift}


def test_a_wrong_gradient_fails_and_is_named():
    assert xc.gradcheck(Square(), (5, 6, 7))
    report = xc.gradcheck(Square(factor=1.00001), (5, 6, 7))
    assert [check.name for check in report.checks if not check.ok] == ["input"]
    assert "WRONG" in str(report)
    report = xc.gradcheck(Square(wrong_element=True), (5, 6, 7))  # one of 210, which the random direction finds
    assert [check.name for check in report.checks if not check.ok] == ["shift"]
    assert not xc.gradcheck(Square(factor=float("nan")), (5, 6, 7))


def test_kinks_do_not_count_against_a_gradient(rng):
    x = rng.standard_normal((5, 8)) * 3e-5
    assert (abs(x) < 1e-6).any()  # within a step of relu's kink
    assert all(xc.gradcheck(ops.relu, x, samples=40, seed=seed) for seed in range(5))
    assert not xc.gradcheck(ops.relu, x, backward=lambda dy, saved: dy * 0.5 * saved.active)


def test_equal_layers_are_checked_once_and_reported_each():
    net = models.resnet20((3, 8, 8), 4, blocks=2)
    rows = list(check_layers(net, (3, 8, 8)))
    assert [path for path, _, _ in rows] == [placed.path for placed in layers.leaves(net, (3, 8, 8))]
    assert all(report for _, _, report in rows)
    assert len({id(report) for _, _, report in rows}) < len(rows)


def test_what_cannot_be_checked_is_said(rng):
    with pytest.raises(xc.XpcnnError, match="backward"):
        xc.gradcheck(lambda x: (x, None), rng.random(3))
    with pytest.raises(xc.XpcnnError, match=r"gradient of x has shape \(2,\) instead of \(3,\)"):
        xc.gradcheck(ops.relu, rng.random(3), backward=lambda dy, saved: dy[:2])
    with pytest.raises(xc.XpcnnError, match="conv1"):
        xc.gradcheck(NET, (2, 1, 0))
    assert replace(Square(), factor=2.0) != Square()
