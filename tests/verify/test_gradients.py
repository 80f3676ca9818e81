"""gradcheck: what is right passes on every backend, what is wrong in any place fails."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Forgetful(Square):
    """A layer whose backward forgets its parameter."""

    def backward(self, params, dy, saved, *, need_dx=True):
        return 2.0 * dy * saved, {}


def test_a_forgotten_gradient_fails():
    report = xc.gradcheck(Forgetful(), (2, 3))
    assert [(check.name, check.ok) for check in report.checks] == [("input", True), ("shift", False)]
    assert "MISSING" in str(report)
    with pytest.raises(xc.XpcnnError, match="no gradient of layer1/shift"):
        xc.gradcheck(layers.Sequential(Forgetful()), (2, 3))


def test_gradients_belong_to_the_arguments_in_order(rng):
    """None among the arguments leaves its place empty; what an op gives no gradient of is said."""
    x, beta, mean, var = rng.random((4, 3, 2)), rng.random(3), rng.random(3), rng.random(3)
    report = xc.gradcheck(ops.batch_norm, x, None, beta, mean, var, train=True)
    assert report
    assert [check.name for check in report.checks if check.error is not None] == ["x", "beta"]
    assert [check.name for check in report.checks if check.error is None] == ["running_mean", "running_var"]
    wrong = xc.gradcheck(ops.batch_norm, x, None, beta, mean, var, train=True, backward=lambda dy, saved: (
        *ops.batch_norm_backward(dy, saved)[:2], dy.sum((0, 2)) * 1.01
    ))  # fmt: skip
    assert [check.name for check in wrong.checks if not check.ok] == ["beta"]


def test_large_values_take_large_steps(rng):
    def square(x):
        return x * x, x

    for size in (1e-6, 1.0, 1e6):
        assert xc.gradcheck(square, rng.standard_normal(50) * size, backward=lambda dy, x: 2 * dy * x)
        assert not xc.gradcheck(square, rng.standard_normal(50) * size, backward=lambda dy, x: 2.1 * dy * x)


def test_networks_as_a_whole_are_checked_along_one_direction():
    net = models.resnet20((3, 8, 8), 4, blocks=1)
    assert xc.gradcheck(net, (3, 8, 8), together=True)
    assert not xc.gradcheck(Square(factor=1.001), (3, 8, 8), together=True)


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
    for wrong in (
        lambda: xc.gradcheck(NET, (2, 1, 0)),
        lambda: xc.gradcheck(NET, 2, 6, 6),
        lambda: xc.gradcheck(NET, 6),
    ):
        with pytest.raises(xc.XpcnnError, match="shape"):
            wrong()
    for options in ({"batch": 0}, {"samples": -1}, {"seed": -1}):
        with pytest.raises(xc.XpcnnError, match=next(iter(options))):
            xc.gradcheck(NET, (2, 6, 6), **options)
    with pytest.raises(xc.XpcnnError, match="options"):
        xc.gradcheck(NET, (2, 6, 6), stride=2)
    with pytest.raises(xc.XpcnnError, match="at least one NumPy array"):
        xc.gradcheck(ops.relu, 3.0)
