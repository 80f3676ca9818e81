"""Batch, layer and group normalisation against their definitions, numerical gradients and PyTorch."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import oracles
import pytest
from calls import not_compiled

from xpcnn import XpcnnError, ops

SHAPES = [(4, 3), (4, 3, 5), (2, 3, 4, 3), (2, 3, 2, 3, 2)]


def _per_channel(rng, channels, dtype="float64"):
    """Return gamma, beta, running mean and running variance."""
    made = rng.standard_normal(channels), rng.standard_normal(channels), rng.standard_normal(channels)
    return tuple(a.astype(dtype) for a in (*made, rng.random(channels) + 0.5))


def _by_channel(a, ndim):
    return np.reshape(a, (1, -1) + (1,) * (ndim - 2))


def test_training_normalises_with_the_batchs_statistics(arrays, dtype, rng):
    not_compiled(arrays)
    for shape in SHAPES:
        x = (rng.standard_normal(shape) * 3 + 2).astype(dtype)
        gamma, beta, mean, var = _per_channel(rng, 3, dtype)
        given = [arrays(a) for a in (x, gamma, beta, mean, var)]
        y, _, (new_mean, new_var) = ops.batch_norm(*given, train=True, momentum=0.3, eps=1e-2)
        axes = (0, *range(2, len(shape)))
        normal = oracles.normalize(x, axes, 1e-2).astype(float)
        arrays.check(y, normal * _by_channel(gamma, len(shape)) + _by_channel(beta, len(shape)), given[0])
        wide = x.astype(np.float64)
        arrays.check(new_mean, 0.7 * mean + 0.3 * wide.mean(axis=axes), given[0])
        arrays.check(new_var, 0.7 * var + 0.3 * wide.var(axis=axes, ddof=1), given[0])
        for array, host in zip(given, (x, gamma, beta, mean, var), strict=True):
            np.testing.assert_array_equal(arrays.backend.to_numpy(array), host)


def test_evaluation_normalises_with_the_running_statistics(arrays, dtype, rng):
    not_compiled(arrays)
    for shape in SHAPES:
        x = rng.standard_normal(shape).astype(dtype)
        gamma, beta, mean, var = _per_channel(rng, 3, dtype)
        given = [arrays(a) for a in (x, gamma, beta, mean, var)]
        y, saved, (new_mean, new_var) = ops.batch_norm(*given, train=False, eps=1e-2)
        g, b, m, v = (_by_channel(a, len(shape)) for a in (gamma, beta, mean, var))
        arrays.check(y, (x - m) / np.sqrt(v + 1e-2) * g + b, given[0])
        arrays.check(new_mean, mean, given[0], 0.0)
        arrays.check(new_var, var, given[0], 0.0)
        dy = rng.standard_normal(shape).astype(dtype)
        dx, dgamma, dbeta = ops.batch_norm_backward(arrays(dy), saved)
        axes = (0, *range(2, len(shape)))
        arrays.check(dx, dy * g / np.sqrt(v + 1e-2), given[0])
        arrays.check(dgamma, (dy * (x - m) / np.sqrt(v + 1e-2)).sum(axis=axes), given[0])
        arrays.check(dbeta, dy.sum(axis=axes, dtype=np.float64), given[0])


@cache
def _batch_norm_solved(shape, train):
    """Return the operands, dy and the numerical gradients."""
    rng = np.random.default_rng(20_240_608)
    x, dy, (gamma, beta, *running) = rng.standard_normal(shape), rng.standard_normal(shape), _per_channel(rng, 3)

    def forward(x, gamma, beta):
        return ops.batch_norm(x, gamma, beta, *running, train=train, eps=1e-3)[0]

    return (x, gamma, beta, *running), dy, oracles.numerical_gradients(forward, (x, gamma, beta), dy)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_batch_norms_backward_is_the_numerical_gradient(arrays, dtype, train):
    not_compiled(arrays)
    for shape in SHAPES:
        operands, dy, expected = _batch_norm_solved(shape, train)
        _, saved, _ = ops.batch_norm(*(arrays(a, dtype) for a in operands), train=train, eps=1e-3)
        grads = ops.batch_norm_backward(arrays(dy, dtype), saved)
        for actual, numeric in zip(grads, expected, strict=True):
            arrays.check(actual, numeric, arrays(dy, dtype), 2e-4 if dtype == "float32" else 1e-7)


def test_pytorch_agrees_on_batch_norm(rng):
    torch = pytest.importorskip("torch")
    for shape, train, momentum, eps, affine, dtype in product(
        SHAPES,
        (True, False),
        (0.1, 0.0, 1.0, 0.35),
        (1e-5, 1e-2),
        ("both", "gamma", "beta", "none"),
        ("float32", "float64"),
    ):
        x = (rng.standard_normal(shape) * 2 + 1).astype(dtype)
        gamma, beta, mean, var = _per_channel(rng, 3, dtype)
        gamma, beta = gamma if affine in ("both", "gamma") else None, beta if affine in ("both", "beta") else None
        y, saved, new = ops.batch_norm(x, gamma, beta, mean, var, train=train, momentum=momentum, eps=eps)
        running = torch.tensor(mean), torch.tensor(var)
        dy = rng.standard_normal(shape).astype(dtype)

        def theirs(x, gamma, beta, running=running, plain=(train, momentum, eps)):
            return torch.nn.functional.batch_norm(x, *running, gamma, beta, *plain)

        expected, grads = oracles.torch_gradients(theirs, (x, gamma, beta), dy)
        limit = 1e-10 if dtype == "float64" else 1e-4
        oracles.assert_close(y, expected, limit)
        for actual, value in zip(new, running, strict=True):
            oracles.assert_close(actual, value.numpy(), limit)
        for actual, gradient in zip(ops.batch_norm_backward(dy, saved), grads, strict=True):
            oracles.assert_close(actual, gradient, limit)


def test_gamma_and_beta_may_be_missing(arrays, rng):
    not_compiled(arrays)
    x = rng.standard_normal((2, 4, 3, 2))
    mean, var = arrays(np.zeros(4)), arrays(np.ones(4))
    normal = oracles.normalize(x, (0, 2, 3), 1e-5).astype(float)
    results = [
        (ops.batch_norm(arrays(x), None, None, mean, var, train=True)[:2], ops.batch_norm_backward, normal),
        (ops.layer_norm(arrays(x), None, None, axes=(2, 3)), ops.layer_norm_backward, oracles.normalize(x, (2, 3), 1e-5).astype(float)),
        (ops.group_norm(arrays(x), None, None, groups=4), ops.group_norm_backward, oracles.normalize(x, (2, 3), 1e-5).astype(float)),
    ]  # fmt: skip
    for (y, saved), backward, expected in results:
        arrays.check(y, expected, arrays(x))
        dx, dgamma, dbeta = backward(y, saved)
        assert (dgamma, dbeta) == (None, None)
        assert tuple(dx.shape) == x.shape


LAYER_AXES = [(1,), (3,), (-1,), (2, 3), (-2, -1), (1, 2, 3), (1, 3), (0, 2)]


@cache
def _layer_norm_solved(axes):
    """Return the operands, dy, y by the definition, and the numerical gradients."""
    rng, shape = np.random.default_rng(20_240_608), (3, 4, 2, 5)
    at = tuple(sorted(a % 4 for a in axes))
    wide = tuple(shape[a] if a in at else 1 for a in range(4))
    x, gamma, beta = (rng.standard_normal(s) for s in (shape, *[[shape[a] for a in at]] * 2))
    dy = rng.standard_normal(shape)

    def forward(x, gamma, beta):
        return oracles.normalize(x, at, 1e-2).astype(float) * gamma.reshape(wide) + beta.reshape(wide)

    return (x, gamma, beta), dy, forward(x, gamma, beta), oracles.numerical_gradients(forward, (x, gamma, beta), dy)


@pytest.mark.parametrize("axes", LAYER_AXES, ids=str)
def test_layer_norm_over_any_axes(arrays, dtype, axes):
    not_compiled(arrays)
    operands, dy, expected_y, expected = _layer_norm_solved(axes)
    y, saved = ops.layer_norm(*(arrays(a, dtype) for a in operands), axes=axes, eps=1e-2)
    arrays.check(y, expected_y, arrays(dy, dtype))
    for actual, numeric in zip(ops.layer_norm_backward(arrays(dy, dtype), saved), expected, strict=True):
        arrays.check(actual, numeric, y, 2e-4 if dtype == "float32" else 1e-7)


def test_pytorch_agrees_on_layer_norm(rng):
    torch = pytest.importorskip("torch")
    for shape, last, eps, affine, dtype in product(
        [(4, 6), (3, 4, 5), (2, 3, 4, 5)],
        (1, 2, 3),
        (1e-5, 1e-1),
        ("both", "gamma", "beta", "none"),
        ("float32", "float64"),
    ):
        if last >= len(shape):
            continue
        normalized = shape[-last:]
        x = (rng.standard_normal(shape) * 2 + 1).astype(dtype)
        gamma, beta = (rng.standard_normal(normalized).astype(dtype) for _ in range(2))
        gamma, beta = gamma if affine in ("both", "gamma") else None, beta if affine in ("both", "beta") else None
        y, saved = ops.layer_norm(x, gamma, beta, axes=tuple(range(-last, 0)), eps=eps)
        dy = rng.standard_normal(shape).astype(dtype)

        def theirs(x, gamma, beta, normalized=normalized, eps=eps):
            return torch.nn.functional.layer_norm(x, normalized, gamma, beta, eps)

        _compare(theirs, (x, gamma, beta), dy, y, ops.layer_norm_backward(dy, saved))


def test_pytorch_agrees_on_group_norm(rng):
    torch = pytest.importorskip("torch")
    for shape, groups, eps, affine, dtype in product(
        [(3, 6), (3, 6, 5), (2, 6, 4, 3), (2, 6, 2, 3, 2)],
        (1, 2, 3, 6),
        (1e-5, 1e-1),
        ("both", "gamma", "none"),
        ("float32", "float64"),
    ):  # PyTorch 2.13 fails in the backward of beta alone
        if shape == (3, 6) and groups > 2:
            continue  # one or two values per group, which always normalise to the same
        x = (rng.standard_normal(shape) * 2 + 1).astype(dtype)
        gamma, beta = _per_channel(rng, 6, dtype)[:2]
        gamma, beta = gamma if affine in ("both", "gamma") else None, beta if affine == "both" else None
        y, saved = ops.group_norm(x, gamma, beta, groups=groups, eps=eps)
        dy = rng.standard_normal(shape).astype(dtype)

        def theirs(x, gamma, beta, groups=groups, eps=eps):
            return torch.nn.functional.group_norm(x, groups, gamma, beta, eps)

        _compare(theirs, (x, gamma, beta), dy, y, ops.group_norm_backward(dy, saved))


def _compare(theirs, operands, dy, y, found):
    """Compare y and the gradients with PyTorch's."""
    expected, grads = oracles.torch_gradients(theirs, operands, dy)
    limit = 1e-10 if dy.dtype == np.float64 else 1e-4
    oracles.assert_close(y, expected, limit)
    for actual, gradient in zip(found, grads, strict=True):
        oracles.assert_close(actual, gradient, limit)


@cache
def _group_norm_solved(shape, groups):
    """Return the operands, dy, y by the definition, and the numerical gradients."""
    rng = np.random.default_rng(20_240_608)
    x, dy, (gamma, beta, *_) = rng.standard_normal(shape), rng.standard_normal(shape), _per_channel(rng, shape[1])

    def forward(x, gamma, beta):
        normal = oracles.normalize(x.reshape(x.shape[0], groups, -1), (2,), 1e-2).astype(float).reshape(x.shape)
        return normal * _by_channel(gamma, x.ndim) + _by_channel(beta, x.ndim)

    return (x, gamma, beta), dy, forward(x, gamma, beta), oracles.numerical_gradients(forward, (x, gamma, beta), dy)


@pytest.mark.parametrize(("shape", "groups"), [((2, 4, 3, 2), 2), ((2, 4, 3, 2), 4), ((3, 6), 1), ((2, 6, 2, 1, 2), 3)])
def test_group_norm_is_the_definition(arrays, dtype, shape, groups):
    not_compiled(arrays)
    operands, dy, expected_y, expected = _group_norm_solved(shape, groups)
    y, saved = ops.group_norm(*(arrays(a, dtype) for a in operands), groups=groups, eps=1e-2)
    arrays.check(y, expected_y, arrays(dy, dtype))
    for actual, numeric in zip(ops.group_norm_backward(arrays(dy, dtype), saved), expected, strict=True):
        arrays.check(actual, numeric, y, 2e-4 if dtype == "float32" else 1e-7)


def _all_three(x, xs=lambda a: a):
    """Yield each normalisation of x (N, C, H, W) over whole images' channels, and how it is normalised."""
    channels = x.shape[1]
    zeros, ones = xs(np.zeros(channels, x.dtype)), xs(np.ones(channels, x.dtype))
    yield ops.batch_norm(xs(x), ones, zeros, zeros, ones, train=True)[:2], ops.batch_norm_backward, (0, 2, 3)
    planes = xs(np.ones(x.shape[2:], x.dtype)), xs(np.zeros(x.shape[2:], x.dtype))
    yield ops.layer_norm(xs(x), *planes, axes=(2, 3)), ops.layer_norm_backward, (2, 3)
    yield ops.group_norm(xs(x), ones, zeros, groups=channels), ops.group_norm_backward, (2, 3)


def test_a_large_mean_does_not_drown_the_variance(arrays, rng):
    """The mean of squares less the square of the mean loses all of a variance of 1 beside a mean of 1000."""
    not_compiled(arrays)
    x = (rng.standard_normal((4, 2, 6, 5)) + 1000).astype(np.float32)
    for (y, _), _, axes in _all_three(x, arrays):
        arrays.check(y, oracles.normalize(x, axes, 1e-5).astype(float), arrays(x), 1e-3)


def test_a_constant_input_is_all_zeros_and_finite(arrays, dtype):
    not_compiled(arrays)
    for value in (0.0, 3.0, -1e4, 0.1):
        x = np.full((2, 2, 3, 3), value, dtype)
        for (y, saved), backward, _ in _all_three(x, arrays):
            found = arrays.backend.to_numpy(y)
            assert np.abs(found).max() < 0.5  # what rounding the mean of 18 values leaves, over sqrt(eps)
            for gradient in backward(arrays(np.ones(x.shape), dtype), saved):
                assert np.isfinite(arrays.backend.to_numpy(gradient)).all()


def test_large_and_small_values_are_finite(arrays, dtype):
    not_compiled(arrays)
    tiny = 1e-40 if dtype == "float32" else 5e-324
    for scale in (1e4, 1e15, tiny):
        x = (np.arange(36.0).reshape(2, 2, 3, 3) % 7 - 3) * scale
        x = x.astype(dtype)
        for (y, saved), backward, axes in _all_three(x, arrays):
            arrays.check(y, oracles.normalize(x, axes, 1e-5).astype(float), arrays(x), 1e-4)
            for gradient in backward(arrays(np.ones(x.shape), dtype), saved):
                assert np.isfinite(arrays.backend.to_numpy(gradient)).all()


def test_many_images_at_once(rng):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = (rng.standard_normal((19, 12, 31, 30)) * 2 + 5).astype(np.float32)
    gamma, beta, mean, var = _per_channel(rng, 12, "float32")
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, saved, _ = ops.batch_norm(x, gamma, beta, mean, var, train=True)
    found = y, ops.batch_norm_backward(dy, saved)
    _compare(lambda x, g, b: functional.batch_norm(x, None, None, g, b, True), (x, gamma, beta), dy, *found)
    y, saved, _ = ops.batch_norm(x, gamma, beta, mean, var, train=False)
    found = y, ops.batch_norm_backward(dy, saved)
    running = torch.tensor(mean), torch.tensor(var)
    _compare(lambda x, g, b: functional.batch_norm(x, *running, g, b, False), (x, gamma, beta), dy, *found)
    y, saved = ops.group_norm(x, gamma, beta, groups=4)
    found = y, ops.group_norm_backward(dy, saved)
    _compare(lambda x, g, b: functional.group_norm(x, 4, g, b), (x, gamma, beta), dy, *found)
    planes = [rng.standard_normal((31, 30)).astype(np.float32) for _ in range(2)]
    y, saved = ops.layer_norm(x, *planes, axes=(2, 3))
    found = y, ops.layer_norm_backward(dy, saved)
    _compare(lambda x, g, b: functional.layer_norm(x, (31, 30), g, b), (x, *planes), dy, *found)


def test_running_statistics_converge(rng):
    """A hundred batches at momentum 0.1 forget the start and find the source's mean and variance."""
    mean, var = np.zeros(2), np.ones(2)
    for _ in range(100):
        batch = rng.standard_normal((64, 2)) * [1.0, 3.0] + [5.0, -7.0]
        _, _, (mean, var) = ops.batch_norm(batch, None, None, mean, var, train=True)
    np.testing.assert_allclose(mean, [5.0, -7.0], atol=0.4)
    np.testing.assert_allclose(var, [1.0, 9.0], rtol=0.2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": (4,)}, ["(4,)"]),
        ({"x": (4, 5, 2)}, ["5", "3"]),
        ({"gamma": (5,)}, ["gamma", "(5,)", "(3,)"]),
        ({"beta": (3, 1)}, ["beta", "(3, 1)", "(3,)"]),
        ({"running_mean": (4,)}, ["running_mean", "(4,)", "(3,)"]),
        ({"running_var": (1,)}, ["running_var", "(1,)", "(3,)"]),
        ({"x": (1, 3)}, ["(1, 3)"]),
        ({"x": (1, 3, 1, 1)}, ["(1, 3, 1, 1)"]),
        ({"momentum": 1.5}, ["momentum", "1.5"]),
        ({"momentum": -0.1}, ["momentum", "-0.1"]),
        ({"eps": -1e-5}, ["eps"]),
    ],
)
def test_what_does_not_fit_batch_norm_is_named(arrays, change, says):
    shapes = {"x": (4, 3, 2), "gamma": (3,), "beta": (3,), "running_mean": (3,), "running_var": (3,)}
    operands = {key: arrays(np.ones(change.get(key, shape))) for key, shape in shapes.items()}
    options = {key: value for key, value in change.items() if key not in shapes}
    with pytest.raises(XpcnnError) as caught:
        ops.batch_norm(*operands.values(), train=True, **options)
    for part in says:
        assert part in str(caught.value)


def test_one_value_per_channel_can_be_evaluated_though_not_trained(arrays):
    not_compiled(arrays)
    x, one = arrays(np.full((1, 2, 1, 1), 3.0)), arrays(np.ones(2))
    y, saved, _ = ops.batch_norm(x, None, None, one, one, train=False, eps=0.0)
    arrays.check(y, np.full((1, 2, 1, 1), 2.0), x)
    assert tuple(ops.batch_norm_backward(y, saved)[0].shape) == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"axes": (4,)}, ["axes", "4"]),
        ({"axes": (-5,)}, ["axes", "-5"]),
        ({"axes": (3, -1)}, ["axes"]),
        ({"axes": ()}, ["axes"]),
        ({"axes": "23"}, ["axes"]),
        ({"axes": (2.0, 3.0)}, ["axes"]),
        ({"axes": (1, 3)}, ["gamma", "(4, 5)", "(3, 5)"]),
        ({"gamma": (5,)}, ["gamma", "(5,)", "(4, 5)"]),
        ({"beta": (1, 1, 4, 5)}, ["beta", "(1, 1, 4, 5)", "(4, 5)"]),
        ({"eps": -1.0}, ["eps"]),
    ],
)
def test_what_does_not_fit_layer_norm_is_named(arrays, change, says):
    call = {"x": (2, 3, 4, 5), "gamma": (4, 5), "beta": (4, 5), "axes": (2, 3)} | change
    x, gamma, beta = (arrays(np.ones(call.pop(name))) for name in ("x", "gamma", "beta"))
    with pytest.raises(XpcnnError) as caught:
        ops.layer_norm(x, gamma, beta, **call)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"groups": 4}, ["6", "4"]),
        ({"groups": 0}, ["groups", "0"]),
        ({"groups": 2.0}, ["groups", "2.0"]),
        ({"groups": 12}, ["6", "12"]),
        ({"gamma": (2,)}, ["gamma", "(2,)", "(6,)"]),
        ({"beta": (6, 1, 1)}, ["beta", "(6, 1, 1)", "(6,)"]),
        ({"x": (6,)}, ["(6,)"]),
        ({"eps": -1.0}, ["eps"]),
    ],
)
def test_what_does_not_fit_group_norm_is_named(arrays, change, says):
    call = {"x": (2, 6, 4, 5), "gamma": (6,), "beta": (6,), "groups": 2} | change
    x, gamma, beta = (arrays(np.ones(call.pop(name))) for name in ("x", "gamma", "beta"))
    with pytest.raises(XpcnnError) as caught:
        ops.group_norm(x, gamma, beta, **call)
    for part in says:
        assert part in str(caught.value)


def test_a_gradient_of_the_wrong_shape_is_named(arrays):
    not_compiled(arrays)
    x = np.ones((2, 2, 3, 3))
    for (_, saved), backward, _ in _all_three(x, arrays):
        with pytest.raises(XpcnnError, match=r"dy must have shape \(2, 2, 3, 3\).*\(2, 2, 3, 1\)"):
            backward(arrays(np.ones((2, 2, 3, 1))), saved)


def test_running_statistics_may_be_missing_in_training_alone(arrays, rng):
    not_compiled(arrays)
    x = arrays(rng.standard_normal((3, 2, 2)))
    y, _, statistics = ops.batch_norm(x, None, None, None, None, train=True)
    assert statistics == (None, None)
    same, _, _ = ops.batch_norm(x, None, None, arrays(np.zeros(2)), arrays(np.ones(2)), train=True)
    arrays.check(y, arrays.backend.to_numpy(same), x, 0.0)
    with pytest.raises(XpcnnError, match="running_mean"):
        ops.batch_norm(x, None, None, None, None, train=False)


def test_one_axis_may_be_an_int(rng):
    x = rng.standard_normal((3, 4))
    np.testing.assert_array_equal(
        ops.layer_norm(x, None, None, axes=1)[0], ops.layer_norm(x, None, None, axes=(-1,))[0]
    )


def test_a_long_column_is_added_up_exactly_enough():
    """A running sum of 200,000 tenths in float32 is off by 2e-3, as in the fully connected layer's test."""
    x = np.random.default_rng(0).standard_normal((200_000, 2)).astype(np.float32)
    one, dy = np.ones(2, np.float32), np.full(x.shape, 0.1, np.float32)
    _, saved, _ = ops.batch_norm(x, one, one, one, one, train=False)
    found = [ops.batch_norm_backward(dy, saved)[2]]
    _, saved = ops.layer_norm(x, one, one, axes=(1,))
    found.append(ops.layer_norm_backward(dy, saved)[2])
    _, saved = ops.group_norm(x, one, one, groups=1)
    found.append(ops.group_norm_backward(dy, saved)[2])
    for dbeta in found:
        np.testing.assert_allclose(dbeta, 20_000, rtol=1e-3)
    _, _, (mean, _) = ops.batch_norm(dy + x * 0.01, None, None, one, one, train=True, momentum=1.0)
    np.testing.assert_allclose(mean, 0.1 + 0.01 * x.astype(np.float64).mean(axis=0), rtol=1e-3)
