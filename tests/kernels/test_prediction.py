"""Convolutions that remember what they looked up: still what the layers say, also after anything has changed."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as L
from xpcnn.kernels import native
from xpcnn.layers.fold import Step

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C compiler")

CONVS = {
    "plain": (L.Conv2D(5, 3, padding=1), (3, 9, 8)),
    "strided": (L.Conv2D(6, (3, 2), stride=(2, 1), padding=((1, 0), (0, 1)), bias=False), (4, 9, 8)),
    "dilated": (L.Conv2D(4, 3, dilation=2, padding="same"), (2, 11, 7)),
    "grouped": (L.Conv2D(6, 3, groups=2), (4, 6, 6)),
    "depthwise": (L.Conv2D(8, 3, groups=8, padding=1), (8, 10, 6)),
    "depthwise-bare": (L.Conv2D(8, 5, groups=8, stride=2, bias=False), (8, 10, 9)),
    "multiplied": (L.Conv2D(8, 3, groups=4, padding=1), (4, 6, 5)),
    "pointwise": (L.Conv2D(7, 1), (5, 4, 4)),
    "centred": (L.Conv2D(3, 3, center=(0, 1)), (2, 6, 6)),
    "flipped": (L.Conv2D(3, 3, mode="convolution"), (2, 6, 6)),
}


def model_of(conv, shape, normed, rng, activation=None):
    """Return a model with drawn statistics, whose layers are not fused by anything else."""
    net = L.Sequential(
        *([conv, L.BatchNorm(eps=1e-3)] if normed else [conv]), activation or L.Tanh(), input_shape=shape
    )
    model = xc.Model(net, "cpu")
    arrays = model.parameters() | model.state()
    model.load_parameters({path: rng.uniform(0.3, 1.5, array.shape) for path, array in arrays.items()})
    return model


def exact(model, x):
    """Return what the layers make of it one after another in float64, by the ops' own way."""
    wide = xc.Model(model.net, "cpu", dtype="float64")
    wide.load_parameters({path: np.asarray(a, np.float64) for path, a in (model.parameters() | model.state()).items()})
    return wide.net.forward(wide.parameters(), wide.state(), x.astype(np.float64))[0]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_it_is_the_layers_convolution(name, normed, rng):
    conv, shape = CONVS[name]
    model = model_of(conv, shape, normed, rng)
    for count in (1, 3, 1, 40):
        x = rng.standard_normal((count, *shape)).astype(np.float32)
        np.testing.assert_allclose(model.predict(x), exact(model, x), rtol=0, atol=2e-5)
        turned = np.ascontiguousarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)  # the same, lying otherwise
        np.testing.assert_array_equal(model.predict(turned), model.predict(x))


ACTIVATIONS = [
    L.ReLU(),
    L.ReLU6(),
    L.HardSwish(),
    L.HardSigmoid(),
    L.HardSigmoid(0.2, 0.4),
    L.Clip(-1, 2),
    L.Clip(high=1),
]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name", ["plain", "depthwise"])
def test_an_activation_is_written_over_the_result(name, activation, normed, rng):
    conv, shape = CONVS[name]
    model = model_of(conv, shape, normed, rng, activation)
    assert len(model.net._prediction) == 1  # the convolution has taken in what follows
    for count in (1, 5):
        x = 4 * rng.standard_normal((count, *shape)).astype(np.float32)
        before = x.copy()
        y = model.predict(x)
        np.testing.assert_allclose(y, exact(model, x), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(x, before)
        assert len(np.unique(y)) > 5
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(model.predict(x)).any()


@pytest.mark.parametrize("normed", [False, True])
def test_it_is_used(monkeypatch, normed, rng):
    model = model_of(*CONVS["plain"], normed, rng)
    found = []
    original = Step._bound
    monkeypatch.setattr(Step, "_bound", lambda *given: found.append(original(*given)) or found[-1])
    model.predict(rng.standard_normal((2, 3, 9, 8)).astype(np.float32))
    assert len(found) == 1
    assert found[0] is not None


def test_what_is_written_to_an_array_counts_and_so_does_another_array(rng):
    model = model_of(*CONVS["plain"], True, rng)
    x = rng.standard_normal((2, 3, 9, 8)).astype(np.float32)
    model.predict(x)
    for path in [*model.parameters(), *model.state()]:
        array = (model.parameters() | model.state())[path]
        array += np.float32(0.25)
        np.testing.assert_allclose(model.predict(x), exact(model, x), rtol=0, atol=2e-5, err_msg=path)
        values = model.parameters() | model.state()
        model.load_parameters(values | {path: values[path] * 0.5 + 0.1})
        np.testing.assert_allclose(model.predict(x), exact(model, x), rtol=0, atol=2e-5, err_msg=path)


def test_two_models_of_one_network_do_not_mix(rng):
    one = model_of(*CONVS["depthwise"], True, rng)
    two = xc.Model(one.net, "cpu")
    x = rng.standard_normal((2, 8, 10, 6)).astype(np.float32)
    for _ in range(2):
        for model in (one, two):
            np.testing.assert_allclose(model.predict(x), exact(model, x), rtol=0, atol=2e-5)


def test_threads_have_memory_of_their_own(rng):
    model = model_of(*CONVS["grouped"], True, rng)
    batches = [rng.standard_normal((1 + number % 3, 4, 6, 6)).astype(np.float32) for number in range(6)]
    expected = [model.predict(x) for x in batches]
    wrong = []

    def work(number):
        for _ in range(200):
            if not np.array_equal(model.predict(batches[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_old_arrays_are_let_go_of(rng):
    model = model_of(*CONVS["plain"], True, rng)
    model.predict(np.zeros((1, 3, 9, 8), np.float32))
    old = [weakref.ref(array) for array in (model.parameters() | model.state()).values()]
    model.load_parameters({path: np.ones(a.shape) for path, a in (model.parameters() | model.state()).items()})
    gc.collect()
    assert [ref() for ref in old] == [None] * len(old)


def test_copies_and_pickles_leave_it_out(rng):
    model = model_of(*CONVS["plain"], True, rng)
    x = rng.standard_normal((1, 3, 9, 8)).astype(np.float32)
    expected = model.predict(x)
    for net in (copy.deepcopy(model.net), pickle.loads(pickle.dumps(model.net))):
        other = xc.Model(net, "cpu", values=model.parameters() | model.state())
        np.testing.assert_array_equal(other.predict(x), expected)


def test_arrays_that_do_not_fit_are_refused_as_ever(rng):
    net = L.Sequential(L.Conv2D(4, 3), L.BatchNorm(), input_shape=(2, 5, 5))
    model = xc.Model(net, "cpu")
    params, state = model.parameters(), model.state()
    x = np.zeros((1, 2, 5, 5), np.float32)
    for path, wrong in (("conv1/weight", np.zeros((4, 3, 3, 3), np.float32)), ("conv1/bias", np.zeros(3, np.float32))):
        with pytest.raises(xc.XpcnnError, match="conv1"):
            net.predict(params | {path: wrong}, state, x)
    with pytest.raises(xc.XpcnnError, match="norm1"):
        net.predict(params, state | {"norm1/mean": np.zeros(3, np.float32)}, x)
    with pytest.raises(xc.XpcnnError, match="conv1"):
        net.predict(params, state, np.zeros((1, 3, 5, 5), np.float32))
    assert net.predict(params, state, np.zeros((0, 2, 5, 5), np.float32)).shape == (0, 4, 3, 3)
    wide = {path: array.astype(np.float64) for path, array in params.items()}
    with pytest.raises(xc.XpcnnError):
        net.predict(wide, state, x)
