"""Batch normalisation folded into weights: prediction against the layers one after another, for every kind of weight."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import ArrayTypeError, XpcnnError, models, ops
from xpcnn import layers as la
from xpcnn.layers.fold import FoldedStep
from xpcnn.random import Key

LINEAR = {
    "conv1d": (la.Conv1D(6, 3, stride=2, padding=1, groups=2), (4, 11)),
    "conv2d": (la.Conv2D(6, 3, padding=1), (4, 6, 5)),
    "conv2d-no-bias": (la.Conv2D(6, 3, bias=False), (4, 6, 5)),
    "conv2d-depthwise": (la.Conv2D(8, (3, 2), groups=4, dilation=2, bias=False), (4, 7, 6)),
    "conv2d-flipped": (la.Conv2D(6, (3, 2), mode="convolution", center=(1, 0)), (4, 6, 5)),
    "conv3d": (la.Conv3D(6, 2), (2, 4, 3, 3)),
    "transposed1d": (la.ConvTranspose1D(6, 3, stride=2), (4, 5)),
    "transposed2d": (la.ConvTranspose2D(6, 3, stride=2, padding=1, groups=2, bias=False), (4, 5, 4)),
    "transposed3d": (la.ConvTranspose3D(6, 2, groups=3), (3, 2, 3, 2)),
    "affine": (la.Affine(6), (5,)),
    "affine-images": (la.Affine(6, bias=False), (2, 3, 2)),
}  # fmt: skip
DEEP = {
    "resnet20": (models.resnet20, {"input_shape": (3, 16, 16)}),
    "mobilenet_v2": (models.mobilenet_v2, {"input_shape": (3, 16, 16), "classes": 5, "width": 0.25}),
    "densenet_bc": (models.densenet_bc, {"input_shape": (3, 16, 16), "depth": 22}),
}


def statistics(net, shape, rng, extreme):
    """Return host parameters and state with no trivial numbers among them: γ is 0 or below here, ε > var there."""
    params, state = net.initial_parameters(Key(0), shape), net.initial_state(Key(0), shape)
    least, most = (1e-9, 1e6) if extreme else (0.1, 10.0)
    for path, p in (params | state).items():
        match path.rpartition("/")[2]:
            case "gamma":
                p[...] = rng.uniform(-1.5, 1.5, p.shape)
                p[rng.integers(len(p))] = 0.0
            case "var":
                p[...] = np.exp(rng.uniform(np.log(least), np.log(most), p.shape))
                p[0] = least if extreme else p[0]
            case "bias" | "beta" | "mean":
                p[...] = rng.standard_normal(p.shape)
    return params, state


def unfolded(net, params, state, x):
    return net.forward(params, state, x, train=False)[0]


def as_dtype(arrays, dtype):
    return {path: array.astype(dtype) for path, array in arrays.items()}


def count_calls(monkeypatch, name):
    """Return a list that grows by one with each call of an op."""
    calls, real = [], getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *args, **options: (calls.append(1), real(*args, **options))[1])
    return calls


@pytest.mark.parametrize("images", [0, 1, 40])
@pytest.mark.parametrize("name", LINEAR)
def test_every_kind_of_weight_takes_a_normalisation_in(name, images, rng, monkeypatch):
    """One image has fewer outputs than weights (but the 1D convolutions), 40 have more: both ways are taken."""
    linear, shape = LINEAR[name]
    net = la.Sequential(linear, la.BatchNorm())
    params, state = statistics(net, shape, rng, extreme=True)
    for array in (params | state).values():
        array.flags.writeable = False
    x = rng.standard_normal((images, *shape))
    expected = unfolded(net, params, state, x)
    calls = count_calls(monkeypatch, "batch_norm")
    y = net.predict(params, state, x)
    assert not calls
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max(initial=0.0))


def test_both_ways_of_folding_are_taken(rng):
    """Weights are scaled, and the op given a bias, only where that is less work than scaling the outputs."""
    net = la.Sequential(la.Conv2D(5, 3, bias=False), la.BatchNorm())
    params, state = statistics(net, (4, 8, 8), rng, extreme=False)
    (step,) = net._prediction
    assert isinstance(step, FoldedStep)
    real, biases = ops.conv2d, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "conv2d", lambda x, w, b, **more: (biases.append(b is not None), real(x, w, b, **more))[1])
        for images in (0, 1, 10):
            net.predict(params, state, rng.standard_normal((images, 4, 8, 8)))
        net.predict(params, state, rng.standard_normal((1, 4, 3, 3)))
    assert biases == [False, True, True, False]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", DEEP)
def test_whole_networks_predict_what_they_compute_unfolded(name, images, rng):
    """Float64 to 1e-12 of the largest output; float32 no more than twice as far off as unfolded, or five roundings."""
    build, options = DEEP[name]
    net = build(**options)
    shape = options["input_shape"]
    params, state = statistics(net, shape, rng, extreme=False)
    x = rng.standard_normal((images, *shape))
    expected = unfolded(net, params, state, x)
    scale = np.abs(expected).max()
    assert 1e-6 < scale < 1e9
    np.testing.assert_allclose(net.predict(params, state, x), expected, rtol=0, atol=1e-12 * scale)
    single = as_dtype(params, np.float32), as_dtype(state, np.float32), x.astype(np.float32)
    reference = unfolded(net, *(as_dtype(part, np.float64) for part in single[:2]), single[2].astype(np.float64))
    found, plain = net.predict(*single), unfolded(net, *single)
    assert found.dtype == np.float32
    off, usual = (np.abs(y - reference).max() / scale for y in (found, plain))
    assert off <= max(2 * usual, 5 * 2**-23)


@pytest.mark.parametrize("seed", range(5))
def test_float32_folded_errs_no_more_than_unfolded_with_extreme_statistics(seed):
    """Means far from the outputs' own, variances below ε and far above it."""
    rng = np.random.default_rng(seed)
    net = la.Sequential(la.Conv2D(16, 3, padding=1), la.BatchNorm())
    params, state = statistics(net, (8, 9, 9), rng, extreme=True)
    state["norm1/mean"] *= 1000.0
    params, state = as_dtype(params, np.float32), as_dtype(state, np.float32)
    x = rng.standard_normal((4, 8, 9, 9)).astype(np.float32)
    exact = unfolded(net, as_dtype(params, np.float64), as_dtype(state, np.float64), x.astype(np.float64))
    scale = np.abs(exact).max(axis=(0, 2, 3))
    off, usual = ((np.abs(y - exact).max(axis=(0, 2, 3)) / scale).max() for y in
                  (net.predict(params, state, x), unfolded(net, params, state, x)))  # fmt: skip
    assert off <= max(2 * usual, 5 * 2**-23)


def test_on_every_backend_inside_branches(arrays, rng):
    body = la.Sequential(
        la.Conv2D(4, 3, padding=1, bias=False), la.BatchNorm(), la.ReLU(), la.Conv2D(4, 1), la.BatchNorm()
    )
    pooled = la.Sequential(la.Conv2D(3, 3), la.BatchNorm(), la.ReLU(), la.MaxPool2D(2), la.GlobalAvgPool())
    rest = la.Sequential(la.ConvTranspose2D(4, 2, groups=2), la.BatchNorm(), la.Affine(2), la.BatchNorm())
    net = la.Sequential(la.Residual(body), la.Parallel([pooled, rest]))
    shape = (4, 6, 6)
    params, state = statistics(net, shape, rng, extreme=False)
    x = rng.standard_normal((3, *shape))
    expected = unfolded(net, params, state, x)
    given = [{path: arrays(p) for path, p in part.items()} for part in (params, state)]
    device_x = arrays(x)
    arrays.check(net.predict(*given, device_x), expected, device_x, 1e-12)


def test_prediction_never_normalises_after_convolutions_and_always_before_them(monkeypatch, rng):
    """resnet20's 19 normalisations follow convolutions; densenet_bc's precede them but for the bottlenecks' second."""
    calls = count_calls(monkeypatch, "batch_norm")
    for images in (1, 2):
        xc.Model(models.resnet20(), "cpu").predict(rng.standard_normal((images, 3, 32, 32)))
    assert not calls
    net = models.densenet_bc((3, 16, 16), depth=22)
    norms = sum(isinstance(placed.layer, la.BatchNorm) for placed in la.leaves(net, (3, 16, 16)))
    xc.Model(net, "cpu").predict(rng.standard_normal((2, 3, 16, 16)))
    assert len(calls) == norms - 9  # 1×1 convolution, normalisation, ReLU, 3×3 convolution in each of 9 layers


def test_a_normalisation_between_convolution_and_pooling_is_taken_into_the_fused_step(monkeypatch, rng):
    layers = [la.Conv2D(3, 3), la.BatchNorm(), la.ReLU(), la.MaxPool2D(2)]
    fused = count_calls(monkeypatch, "conv2d_relu_max_pool2d")
    for images, size in ((1, 9), (1, 4), (20, 4)):  # the second has fewer outputs than weights
        net = la.Sequential(*layers)
        params, state = statistics(net, (2, size, size), rng, extreme=True)
        x = rng.standard_normal((images, 2, size, size))
        expected = unfolded(net, params, state, x)
        assert not fused
        np.testing.assert_allclose(net.predict(params, state, x), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        assert len(fused) == (images * size**2 >= 18)
        fused.clear()


def test_writing_to_an_array_shows_in_the_next_prediction(rng):
    net = la.Sequential(la.Conv2D(3, 3), la.BatchNorm())
    params, state = statistics(net, (2, 7, 7), rng, extreme=False)
    x = rng.standard_normal((2, 2, 7, 7))
    before = net.predict(params, state, x)
    for arrays in (params, state):
        for path, array in arrays.items():
            array += 0.25
            after = net.predict(params, state, x)
            assert not np.allclose(after, before), path
            np.testing.assert_allclose(after, unfolded(net, params, state, x), rtol=1e-12, atol=1e-12)
            before = after


def test_half_precision_weights_are_not_rounded_again(rng):
    net = la.Sequential(la.Conv2D(3, 3), la.BatchNorm(), la.ReLU(), la.MaxPool2D(2))
    params, state = statistics(net, (2, 8, 8), rng, extreme=False)
    params, state = as_dtype(params, np.float16), as_dtype(state, np.float16)
    x = rng.standard_normal((5, 2, 8, 8)).astype(np.float16)
    found = net.predict(params, state, x)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, unfolded(net, params, state, x))


@pytest.mark.parametrize("norm", [la.BatchNorm(eps=0.0), la.BatchNorm(eps=1e-12)])
def test_without_an_epsilon_nothing_is_folded(norm, rng):
    """A variance of 0 then makes a factor of infinity, and 0 · ∞ in the weights is no number."""
    net = la.Sequential(la.Conv2D(2, 3), norm)
    params, state = statistics(net, (2, 7, 7), rng, extreme=True)
    x = rng.standard_normal((9, 2, 7, 7))
    assert not any(isinstance(step, FoldedStep) for step in net._prediction)
    np.testing.assert_array_equal(net.predict(params, state, x), unfolded(net, params, state, x))


def test_a_network_of_nothing_or_of_normalisation_alone_predicts(rng):
    x = rng.standard_normal((2, 3))
    np.testing.assert_array_equal(la.Sequential().predict({}, {}, x), x)
    net = la.Sequential(la.BatchNorm(), la.BatchNorm())
    params, state = statistics(net, (3,), rng, extreme=False)
    np.testing.assert_array_equal(net.predict(params, state, x), unfolded(net, params, state, x))


def test_the_callers_own_layers_are_not_folded(rng):
    """A subclass may compute something else."""

    class Doubled(la.BatchNorm):
        def forward(self, params, state, x, *, train=False, key=None):
            return 2 * x, None, state

    net = la.Sequential(la.Affine(3), Doubled())
    params, state = statistics(net, (4,), rng, extreme=False)
    x = rng.standard_normal((5, 4))
    expected = 2 * (x @ params["affine1/weight"] + params["affine1/bias"])
    np.testing.assert_allclose(net.predict(params, state, x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("path", "change", "kind"),
    [
        ("norm1/gamma", lambda a: a.astype(np.float32), ArrayTypeError),
        ("norm1/mean", lambda a: a[:2], XpcnnError),
        ("norm1/var", lambda a: a[None], XpcnnError),
        ("norm1/beta", lambda a: a.astype(int), ArrayTypeError),
        ("conv1/weight", lambda a: a[:, :1], XpcnnError),
        ("conv1/weight", lambda a: a[:2], XpcnnError),
    ],
)
def test_faults_are_told_as_without_folding(path, change, kind, rng):
    net = la.Sequential(la.Conv2D(3, 3, bias=False), la.BatchNorm(), la.ReLU())
    params, state = statistics(net, (2, 6, 6), rng, extreme=False)
    part = params if path in params else state
    part[path] = change(part[path])
    for images in (1, 9):
        x = rng.standard_normal((images, 2, 6, 6))
        with pytest.raises(kind) as plain:
            unfolded(net, params, state, x)
        with pytest.raises(kind) as found:
            net.predict(params, state, x)
        assert str(found.value) == str(plain.value)
        assert type(found.value) is type(plain.value)
