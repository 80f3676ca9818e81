"""What a training step is said to take: counted by hand where that can be done, and consistent where it is a rule."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models, optim
from xpcnn.layers.plan import arrays_in, bytes_of, memory_size

SEED_PARAMETERS = 30 * 25 + 30 + 30 * 12 * 12 * 100 + 100 + 100 * 10 + 10


def plan_of(net, shape, batch_size=10, dtype="float32", **options):
    return xc.Model(net, "cpu", dtype=dtype, input_shape=shape).plan(batch_size, **options)


def test_parameters_gradients_and_optimizer_state_are_counted(dtype):
    size = np.dtype(dtype).itemsize
    model = xc.Model(models.simple_convnet((1, 28, 28), 10), "cpu", dtype=dtype)
    for optimizer, moments in ((None, 0), (optim.sgd(0.1), 0), (optim.sgd(0.1, 0.9), 1), (optim.adam(), 2)):
        plan = model.plan(100, optimizer=optimizer)
        assert plan.parameters == plan.gradients == SEED_PARAMETERS * size
        assert plan.optimizer == moments * SEED_PARAMETERS * size
        trainer = xc.Trainer(model, optimizer or optim.sgd(0.1))
        assert trainer.plan(100) == plan


def test_running_statistics_are_parameters_without_gradients():
    plan = plan_of(la.Sequential(la.BatchNorm()), (5, 3, 3))
    assert plan.parameters == 4 * 5 * 4
    assert plan.gradients == 2 * 5 * 4


@pytest.mark.parametrize(
    ("net", "kept"),  # numbers an image of 7 leaves behind, in bytes of float32
    [
        (la.Sequential(la.Affine(5)), 4 * 7),  # its input; the weight is the model's own
        (la.Sequential(la.Affine(5), la.ReLU()), 4 * 7 + 5),  # and where the output was above 0
        (la.Sequential(la.Affine(5), la.Affine(3)), 4 * (7 + 5)),
        (la.Sequential(la.Dropout(0.5)), 7),  # its mask
        (la.Parallel([la.Affine(5), la.Affine(6)]), 4 * 7),  # one input, though both keep it
        (la.Residual(la.Sequential(la.Affine(7))), 4 * 7),
        (la.Sequential(la.Flatten(), la.Affine(2)), 4 * 7),  # flattening is another look at the same memory
        (la.Sequential(la.Identity()), 0),
    ],
)
def test_what_is_kept_is_counted_once(net, kept):
    for batch_size in (2, 10, 1000):
        assert plan_of(net, (7,), batch_size).kept == batch_size * kept


def test_what_does_not_grow_with_the_batch_is_not_scaled():
    table = np.zeros(1000, np.float32)

    @dataclass
    class Saved:
        table: np.ndarray
        parts: dict

    @dataclass(frozen=True)
    class Lookup(la.Identity):
        def forward(self, params, state, x, *, train=False, key=None):
            return x, Saved(table, {"x": x, "again": [x, x[:1]], "name": "x", "none": None}), state

    assert plan_of(Lookup(), (7,), 10).kept == 4000 + 10 * 4 * 7
    assert plan_of(Lookup(), (7,), 1000).kept == 4000 + 1000 * 4 * 7


def test_arrays_are_found_wherever_they_are_kept(arrays):
    x = arrays(np.zeros((3, 4)), "float32")
    assert [id(found) for found in arrays_in(({"a": [x, 1]}, "text", (x, None)))] == [id(x), id(x)]
    assert bytes_of(x) == 48
    assert bytes_of(arrays(np.zeros((3, 4)) > 0)) == 12
    assert bytes_of(arrays(np.zeros(5), "int64")) == 40


def test_every_backend_keeps_alike(arrays):
    net = la.Sequential(la.Conv2D(3, 3), la.ReLU(), la.MaxPool2D(2), la.Flatten(), la.Affine(4), la.Dropout(0.3))
    model = xc.Model(net, arrays.backend, input_shape=(2, 8, 8))
    plan, again = model.plan(20), xc.Model(net, "cpu", input_shape=(2, 8, 8)).plan(20)
    assert plan.parameters == again.parameters
    assert 0.5 < plan.kept / again.kept < 2.5


def test_planning_leaves_the_model_as_it_is():
    model = xc.Model(models.resnet20((3, 8, 8), 4), "cpu")
    before = model.parameters() | model.state()
    model.plan(8)
    assert all(value is before[path] for path, value in (model.parameters() | model.state()).items())


def test_a_plan_takes_the_fewest_tiles_that_fit():
    model = xc.Model(models.simple_convnet((1, 28, 28), 10), "cpu")
    whole = model.plan(1000)
    assert (whole.tiles, whole.tile, whole.max_memory) == (1, 1000, None)
    assert model.plan(1000, whole.total) == replace(whole, max_memory=whole.total)
    seen, limit = set(), whole.total - 1
    while limit:
        try:
            plan = model.plan(1000, limit)
        except xc.XpcnnError:
            break
        assert plan.total <= limit
        assert plan.tiles > max(seen, default=1)
        assert plan.tiles == -(-1000 // plan.tile)
        seen.add(plan.tiles)
        limit = plan.total - 1  # what a plan takes is the least that its tiles can do with
    assert len(seen) > 20
    assert 1000 in seen


def test_the_total_is_its_parts_and_reads_well():
    plan = xc.Model(models.lenet5((1, 28, 28), 10), "cpu").plan(5000, "40 MB", optimizer=optim.adam())
    assert plan.total == plan.parameters + plan.gradients + plan.optimizer + plan.kept + plan.working
    assert plan.tiles > 1
    text = str(plan)
    assert text.startswith(f"a step of 5000 images in {plan.tiles} tiles of up to {plan.tile} takes about ")
    assert "of 40.0MB allowed" in text
    assert "\n" not in text


@pytest.mark.parametrize("net", [models.simple_convnet((1, 28, 28), 10), models.resnet20((1, 28, 28), 10)])
def test_the_figure_in_a_refusal_is_enough(net):
    model = xc.Model(net, "cpu")
    with pytest.raises(xc.XpcnnError, match="is too small") as caught:
        model.plan(64, "1MB")
    figure = re.findall(r"[0-9.]+MB", str(caught.value))[-1]
    assert model.plan(64, figure).total <= memory_size(figure)
    with pytest.raises(xc.XpcnnError):
        model.plan(64, memory_size(figure) - 200_000)


def test_a_layer_that_needs_the_whole_batch_is_named():
    model = xc.Model(models.resnet20((3, 16, 16), 10), "cpu")
    whole = model.plan(100)
    with pytest.raises(xc.XpcnnError, match=r"layer stem/norm1 \(BatchNorm\) needs the whole batch at once") as caught:
        model.plan(100, whole.total - 1)
    assert "100 images take" in str(caught.value)
    assert model.plan(100, whole.total).tiles == 1

    @dataclass(frozen=True)
    class Centre(la.Identity):
        couples_batch = True

    net = la.Sequential(la.Affine(3), la.Sequential(("mine", Centre())))
    with pytest.raises(xc.XpcnnError, match=r"layer block1/mine \(Centre\) needs the whole batch"):
        plan_of(net, (2000,), 5000, max_memory="20MB")


@pytest.mark.parametrize("layer", [la.GroupNorm(2), la.LayerNorm(), la.Dropout(0.5), la.Softmax(axis=1)])
def test_layers_that_look_at_one_image_can_be_tiled(layer):
    assert plan_of(la.Sequential(layer), (4, 200, 200), 100, max_memory="40MB").tiles > 1


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (1, 1),
        (np.int64(5), 5),
        ("17", 17),
        ("17B", 17),
        ("300MB", 300_000_000),
        ("300 mb", 300_000_000),
        ("1.5GB", 1_500_000_000),
        ("2GiB", 1 << 31),
        (" 3KiB ", 3072),
        ("4kB", 4000),
        ("0.25TiB", 1 << 38),
    ],
)
def test_sizes(size, count):
    assert memory_size(size) == count


@pytest.mark.parametrize(
    "size",
    ["", " ", "MB", "-1MB", "+1MB", "1e9", "nan", "inf", "infMB", "300M", "1.5", "1.5B", "0x10", "0", "0MB", "0.0GB",
     "3,5GB", "1_000", "1 000MB", "300MB extra", "3\n00MB", "３MB", "٣MB", "9" * 400 + "MB", 0, -5, True, 3e8, [], b"3"],
)  # fmt: skip
def test_sizes_that_are_none(size):
    with pytest.raises(xc.XpcnnError, match="max_memory must be a size above 0 such as 300MB, 2GiB") as caught:
        memory_size(size)
    assert len(str(caught.value)) < 200
    with pytest.raises(xc.XpcnnError):
        xc.Trainer(xc.Model(la.Affine(2), "cpu", input_shape=(3,)), optim.sgd(0.1), max_memory=size)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "10", True, None])
def test_batch_sizes_that_are_none(batch_size):
    with pytest.raises(xc.XpcnnError, match="batch_size"):
        plan_of(la.Affine(2), (3,), batch_size)
