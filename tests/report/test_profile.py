"""The profile: layers that sleep for known times, devices that compute late, threads, and nothing left behind."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import kernels, layers, models, optim
from xpcnn.report.profile import Meter, profiling

CPU = xc.resolve_backend("cpu")
SLACK = 0.03  # seconds that a busy machine may add to a sleep


@dataclass(frozen=True)
class Sleep(layers.Identity):
    """Sleeps for so long forward, and twice as long backward."""

    seconds: float

    def forward(self, params, state, x, *, train=False, key=None):
        time.sleep(self.seconds)
        return x, None, state

    def backward(self, params, dy, saved, *, need_dx=True):
        time.sleep(2 * self.seconds)
        return dy, {}


def trained(net, shape, x, steps=1):
    """Return a model and a trainer after some steps."""
    model = xc.Model(net, "cpu", input_shape=shape)
    trainer = xc.Trainer(model, optim.sgd(0.1))
    for _ in range(steps):
        trainer.step(x, np.zeros(len(x), np.int64))
    return model, trainer


def batch(count, *shape):
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def test_each_layer_is_given_its_own_time_and_containers_none_of_it():
    inner = layers.Sequential(("nap", Sleep(0.02)), ("doze", Sleep(0.05)))
    net = layers.Sequential(layers.Affine(3), ("block", layers.Residual(inner)), ("last", Sleep(0.01)))
    x = batch(2, 4)
    model, trainer = trained(net, (4,), x)
    start = time.perf_counter()
    with profiling(model) as profile:
        profile.layers.timed(trainer.step, "other", "other")(x, np.zeros(2, np.int64))
        profile.layers.timed(trainer.step, "other", "other")(x, np.zeros(2, np.int64))
    wall = time.perf_counter() - start
    paths = ["affine1", "block/body/nap", "block/body/doze", "block/body", "block/shortcut", "block", "last", "net"]
    assert [row.path for row in profile.rows] == paths
    kinds = ["Affine", "Sleep", "Sleep", "Sequential", "Identity", "Residual", "Sleep", "Sequential"]
    assert [row.type for row in profile.rows] == kinds
    slept = {"block/body/nap": 0.04, "block/body/doze": 0.1, "last": 0.02}
    for path in paths:
        for phase, times in (("forward", 1), ("backward", 2)):
            spent = profile.layers.of(path, phase)
            assert spent.calls == 2
            assert times * slept.get(path, 0.0) <= spent.seconds < times * slept.get(path, 0.0) + SLACK
    total = sum(spent.seconds for spent in profile.layers.spent.values())
    assert 3 * 0.16 < total <= wall


def test_multiply_adds_are_those_that_the_step_makes():
    """Weights are met once forward and once or, but in the first layer, twice backward: for dweight and dx."""
    net = layers.Sequential(layers.Conv2D(3, 2), layers.Conv2D(5, 2, bias=False), layers.Affine(4))
    x = batch(7, 2, 4, 4)
    model, trainer = trained(net, (2, 4, 4), x)
    with profiling(model) as profile:
        trainer.step(x, np.zeros(7, np.int64))
    made = {path: n.products for (path, phase), n in profile.layers.spent.items() if phase == "forward"}
    back = {path: n.products for (path, phase), n in profile.layers.spent.items() if phase == "backward"}
    first, second, last = 7 * 9 * 3 * 2 * 4, 7 * 4 * 5 * 3 * 4, 7 * 20 * 4
    assert made == {"net": 0, "conv1": first, "conv2": second, "affine1": last}
    assert back == {"net": 0, "conv1": first, "conv2": 2 * second, "affine1": 2 * last}


def test_neighbours_computed_together_are_one_row():
    shape = (1, 12, 12)
    model, trainer = trained(
        models.simple_convnet(shape, 3, filters=4, kernel_size=3, hidden=5), shape, batch(2, *shape)
    )
    with profiling(model) as profile:
        trainer.step(batch(2, *shape), np.zeros(2, np.int64))
    assert [row.path for row in profile.rows] == ["conv1+relu1+pool1", "affine1", "relu2", "affine2", "net"]
    assert profile.layers.of("conv1+relu1+pool1", "forward").products == 2 * 4 * 9 * 100


def test_one_layer_in_several_places_has_several_rows():
    relu = layers.ReLU()
    net = layers.Sequential(layers.Affine(4), relu, layers.Parallel([relu, layers.Sequential(relu)]), layers.Affine(2))
    model, trainer = trained(net, (3,), batch(2, 3))
    with profiling(model) as profile:
        trainer.step(batch(2, 3), np.zeros(2, np.int64))
    relus = [row.path for row in profile.rows if row.type == "ReLU"]
    assert relus == ["relu1", "parallel1/relu1", "parallel1/block1/relu1"]
    assert {profile.layers.of(path, "backward").calls for path in relus} == {1}


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mobilenet_v2", "densenet_bc"])
def test_a_profiled_step_gives_the_same_bits(name):
    build = getattr(models, name)
    options = {"depth": 10} if name == "densenet_bc" else {}
    shape = (1, 28, 28) if name == "lenet5" else (3, 16, 16)
    x = batch(3, *shape)
    (plain, _), (profiled, trainer) = (trained(build(shape, 5, **options), shape, x, steps) for steps in (3, 1))
    with profiling(profiled) as profile:
        for _ in range(2):
            trainer.step(x, np.zeros(3, np.int64))
        np.testing.assert_array_equal(profiled.predict(x), plain.predict(x))
    arrays = plain.parameters() | plain.state()
    for path, array in (profiled.parameters() | profiled.state()).items():
        np.testing.assert_array_equal(array, arrays[path], err_msg=path)
    assert all(profile.layers.of(row.path, "forward").calls == 2 for row in profile.rows)
    assert any(spent.calls for spent in profile.kernels.spent.values())


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    shape = (1, 12, 12)
    model, trainer = trained(models.simple_convnet(shape, 3, filters=4, kernel_size=3), shape, batch(2, *shape))
    seam, net = kernels.of(CPU.xp), model.net
    before = dict(vars(seam))
    outer = pytest.raises(KeyboardInterrupt) if fails else nullcontext()
    with outer, profiling(model) as profile:
        trainer.step(batch(2, *shape), np.zeros(2, np.int64))
        assert vars(seam)["matmul"] is not before["matmul"]
        if fails:
            raise KeyboardInterrupt
    assert model.net is net
    assert all(vars(seam)[name] is value for name, value in before.items())
    calls = [spent.calls for spent in profile.kernels.spent.values()]
    assert sum(calls) > 0
    trainer.step(batch(2, *shape), np.zeros(2, np.int64))
    assert [spent.calls for spent in profile.kernels.spent.values()] == calls
    assert "_steps" in vars(net)
    assert type(net._steps[0][1]).__name__ == "ConvReLUPool"


def test_time_in_other_threads_stands_beside():
    meter = Meter(CPU)
    work = meter.timed(time.sleep, "work", "")

    def share():
        helper = threading.Thread(target=work, args=(0.05,))
        helper.start()
        work(0.02)
        helper.join()

    meter.timed(share, "share", "")()
    assert meter.of("work", "").calls == 2
    assert 0.02 <= meter.of("work", "").seconds < 0.02 + SLACK
    assert 0.05 <= meter.of("work", "").beside < 0.05 + SLACK
    assert 0.02 <= meter.of("share", "").seconds < 0.03 + SLACK  # waiting for the helper
    assert meter.of("share", "").beside == 0.0


def test_what_a_device_does_later_counts_for_the_call_that_asked_for_it():
    late = []

    class Late(xc.Backend):
        def synchronize(self):
            while late:
                time.sleep(late.pop())

    meter = Meter(replace(Late("numpy", CPU.xp, "cpu")))
    late.append(0.04)  # queued before anything is timed
    meter.timed(lambda: late.append(0.02), "first", "")()
    meter.timed(lambda: None, "second", "")()
    assert 0.02 <= meter.of("first", "").seconds < 0.02 + SLACK
    assert meter.of("second", "").seconds < 0.01


def test_a_call_that_fails_is_counted_and_the_error_goes_on():
    meter = Meter(CPU)

    def fail():
        time.sleep(0.01)
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        meter.timed(meter.timed(fail, "inner", ""), "outer", "")()
    assert meter.of("inner", "").seconds >= 0.01
    assert meter.of("outer", "").seconds < 0.01
    assert [spent.calls for spent in meter.spent.values()] == [1, 1]


def test_compiled_kernels_are_timed_where_they_are_used_and_put_back():
    native = pytest.importorskip("xpcnn.kernels.native")
    if native.library() is None:
        pytest.skip("there are no compiled kernels here")
    shape = (1, 12, 12)
    model, trainer = trained(models.simple_convnet(shape, 3, filters=4, kernel_size=3), shape, batch(2, *shape))
    inside = {name: module for name, module in sys.modules.items() if name.startswith("xpcnn.kernels")}
    before = {name: dict(vars(module)) for name, module in inside.items()}
    with profiling(model) as profile:
        trainer.step(batch(2, *shape), np.zeros(2, np.int64))
    timed = {name: spent for (name, module), spent in profile.kernels.spent.items() if module.startswith("native.")}
    assert timed["forward"].calls == timed["backward"].calls == 1
    assert min(spent.seconds for spent in timed.values()) > 0
    for name, module in inside.items():
        assert all(vars(module)[key] is value for key, value in before[name].items() if callable(value))
