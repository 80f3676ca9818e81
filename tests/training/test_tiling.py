"""A batch in tiles gives what the whole batch gives: loss, gradients, masks; and fails as it does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models, ops, optim
from xpcnn.random import Key
from xpcnn.training.tiling import tiles_of_a_mean, tiles_of_any, whole_batch
from xpcnn.training.trainer import LOSSES

SHAPE = (2, 12, 12)


def mixed():
    """Every kind of layer that can be tiled, dropout at three places among them."""
    body = la.Sequential(la.Conv2D(6, 3, padding=1), la.GroupNorm(3), la.SiLU(), la.Dropout(0.3))
    branches = la.Parallel([la.Dropout(0.4), la.Sequential(la.LayerNorm(), la.Tanh())])
    start = la.Conv2D(6, 3), la.ReLU(), la.MaxPool2D(2), la.Residual(body)
    return la.Sequential(*start, branches, la.Flatten(), la.Dropout(0.1), la.Affine(4), input_shape=SHAPE)


def data(rng, loss, count=11, classes=4):
    images = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    if loss == "softmax_cross_entropy":
        return images, rng.integers(0, classes, count)
    if loss == "binary_cross_entropy_with_logits":
        return images, rng.integers(0, 2, (count, classes)).astype(np.float64)
    return images, rng.standard_normal((count, classes))


def agree(found, expected, tolerance):
    """Assert that losses and gradients agree to a share of the largest number of each."""
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * scale, err_msg=name)


def room_for(trainer, tile):
    """Return the bytes that tiles of so many images take."""
    plan = xc.Trainer(trainer.model, trainer.optimizer).plan(tile)
    return plan.total + 2 * plan.gradients


def both(run, model, loss, x, t, key, tile):
    xp = model.backend.xp
    x, t = model.backend.asarray(x), model.backend.asarray(t)
    t = xp.astype(t, getattr(xp, model.dtype)) if xp.isdtype(t.dtype, "real floating") else t
    results = []
    for value, grads, _ in (whole_batch(model, loss, x, t, key), run(model, loss, x, t, key, tile)):
        results.append({p: model.backend.to_numpy(a) for p, a in ({"loss": value} | grads).items()})
    return results


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("run", [tiles_of_a_mean, tiles_of_any])
@pytest.mark.parametrize("tile", [1, 4, 10])
def test_tiles_add_up_to_the_batch(dtype, loss, run, tile, rng):
    model = xc.Model(mixed(), "cpu", seed=3, dtype=dtype)
    expected, found = both(run, model, LOSSES[loss], *data(rng, loss), Key(5), tile)
    assert list(found) == list(expected)
    assert min(np.abs(value).max() for value in expected.values()) > 0
    agree(found, expected, 1e-12 if dtype == "float64" else 1e-5)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype


def test_every_backend_adds_tiles_up(arrays, rng):
    model = xc.Model(mixed(), arrays.backend, dtype="float64")
    for run in (tiles_of_a_mean, tiles_of_any):
        with arrays.backend.context():
            loss = LOSSES["softmax_cross_entropy"]
            expected, found = both(run, model, loss, *data(rng, "softmax_cross_entropy"), Key(1), 4)
        agree(found, expected, 1e-12)


@pytest.mark.parametrize("options", [{"ignore_index": -1}, {"class_weights": np.array([0.1, 1.0, 3.0, 0.5])}])
def test_a_weighted_mean_divides_by_all_weights_of_the_batch(options, rng):
    """Ignored labels lie unevenly: one tile has none that count, and a mean of the tiles' means would be another."""
    loss = partial(ops.softmax_cross_entropy, **options), ops.softmax_cross_entropy_backward
    model = xc.Model(mixed(), "cpu", dtype="float64")
    x, t = data(rng, "softmax_cross_entropy", 12)
    t = np.sort(t)
    if "ignore_index" in options:
        t[:5] = -1
    expected, found = both(tiles_of_any, model, loss, x, t, Key(0), 4)
    agree(found, expected, 1e-12)
    _, wrong = both(tiles_of_a_mean, model, loss, x, t, Key(0), 4)
    assert not abs(wrong["loss"] - expected["loss"]) < 1e-3  # it may be NaN


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "pair"])
def test_training_in_tiles_ends_with_the_same_weights(dtype, loss, rng):
    def trained(tile):
        net = la.Sequential(la.Conv2D(8, 3), la.Tanh(), la.Dropout(0.4), la.Flatten(), la.Affine(4), input_shape=SHAPE)
        model = xc.Model(net, "cpu", seed=2, dtype=dtype)
        pair = partial(ops.softmax_cross_entropy, ignore_index=9), ops.softmax_cross_entropy_backward
        limit = None if tile is None else room_for(xc.Trainer(model, optim.sgd(0.1, 0.9)), tile)
        trainer = xc.Trainer(model, optim.sgd(0.1, 0.9), pair if loss == "pair" else loss, max_memory=limit)
        x, t = data(np.random.default_rng(0), "softmax_cross_entropy", 200)
        t[: 120 if loss == "pair" else 0] = 9  # two tiles in which no label counts
        losses = [float(trainer.step(x, t)) for _ in range(3)]
        return trainer.plan(200).tiles, losses, model.parameters()

    once, expected, ends = trained(None)
    tiles, losses, found = trained(50)
    assert once == 1
    assert tiles > 3
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    agree(found, ends, tolerance)


def test_one_tile_is_the_same_bits(rng):
    x, t = data(rng, "softmax_cross_entropy", 30)
    ends = []
    for limit in (None, "10GB", "10GB"):
        model = xc.Model(mixed(), "cpu")
        trainer = xc.Trainer(model, optim.adam(0.01), max_memory=limit)
        losses = [float(trainer.step(x, t)) for _ in range(3)]
        ends.append((losses, model.parameters()))
    for losses, params in ends[1:]:
        assert losses == ends[0][0]
        for path, p in params.items():
            np.testing.assert_array_equal(p, ends[0][1][path])


def test_no_tile_is_larger_than_planned():
    sizes = []

    @dataclass(frozen=True)
    class Watch(la.Identity):
        def forward(self, params, state, x, *, train=False, key=None):
            sizes.append(x.shape[0])
            return x, None, state

    net = la.Sequential(la.Dropout(0.1), Watch(), la.Flatten(), la.Affine(3), input_shape=(3, 100, 100))
    trainer = xc.Trainer(xc.Model(net, "cpu"), optim.sgd(0.1), max_memory="30MB")
    images = np.zeros((50, 3, 100, 100), np.uint8)
    plan = trainer.plan(50)
    del sizes[:]
    trainer.step(images, np.zeros(50, np.int64))
    assert sum(sizes) == 50
    assert max(sizes) == plan.tile < 50
    assert len(sizes) == plan.tiles
    del sizes[:]
    trainer.fit((images, np.zeros(50, np.int64)), epochs=1, batch_size=40)
    assert 1 < max(sizes) < 50  # in prediction, too


@pytest.mark.parametrize("shape", [(9,), (9, 3), (7, 2, 5), (20, 8), (11, 1, 7, 7)])
def test_rows_draw_what_the_whole_batch_draws_there(shape):
    key = Key(3).child("step", 2)
    whole = key.uniform(shape)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, key.generator().random(shape, dtype="float32"))
    for first in range(shape[0] + 1):
        for last in {first, (first + shape[0] + 1) // 2, shape[0]}:
            rows = Key(3, (), first).child("step", 2).uniform((last - first, *shape[1:]))
            np.testing.assert_array_equal(rows, whole[first:last])


def test_masks_of_tiles_are_slices_of_the_batchs():
    net = la.Sequential(la.Dropout(0.5), la.Parallel([la.Dropout(0.3), la.Sequential(la.Dropout(0.2))]))
    x = np.ones((13, 3, 5))
    whole = net.forward({}, {}, x, train=True, key=Key(4))[0]
    assert 0.2 < (whole == 0).mean() < 0.8
    for start in range(0, 13, 4):
        part = net.forward({}, {}, x[start : start + 4], train=True, key=Key(4, (), start))[0]
        np.testing.assert_array_equal(part, whole[start : start + 4])
    other = net.forward({}, {}, x[4:8], train=True, key=Key(4))[0]
    assert not np.array_equal(other, whole[4:8])


def small_trainer(**options):
    net = la.Sequential(la.Conv2D(8, 3), la.ReLU(), la.Flatten(), la.Affine(4), input_shape=SHAPE)
    trainer = xc.Trainer(xc.Model(net, "cpu", seed=1), optim.sgd(0.1, 0.9), **options)
    return xc.Trainer(trainer.model, trainer.optimizer, max_memory=room_for(trainer, 60), **options)


def test_a_step_that_fails_in_its_last_tile_changes_nothing(rng):
    x, t = data(rng, "softmax_cross_entropy", 200)
    trainer = small_trainer()
    assert trainer.plan(200).tiles > 1
    trainer.step(x, t)
    before, state = trainer.model.parameters(), trainer.opt_state
    bad = t.copy()
    bad[-1] = 4
    with pytest.raises(xc.XpcnnError, match="labels from 0 to 3"):
        trainer.step(x, bad)
    assert trainer.steps == 1
    assert trainer.opt_state is state
    assert all(value is before[path] for path, value in trainer.model.parameters().items())


@pytest.mark.parametrize("wrong", [(150,), (250,), (200, 3), (), (1, 200)])
def test_targets_must_be_as_many_as_images(wrong, rng):
    x, _ = data(rng, "softmax_cross_entropy", 200)
    for loss in ("softmax_cross_entropy", LOSSES["softmax_cross_entropy"]):
        with pytest.raises(xc.XpcnnError):
            small_trainer(loss=loss).step(x, np.zeros(wrong, np.int64))


@pytest.mark.parametrize("x", [np.zeros((200, 2, 12, 11), np.uint8), np.zeros(SHAPE, np.uint8), np.zeros(200), 3.0])
def test_wrong_images_are_refused_as_without_a_limit(x):
    t = np.zeros(200, np.int64)
    with pytest.raises(xc.XpcnnError, match="the model takes batches"):
        small_trainer().step(x, t)


def test_an_empty_batch_is_one_tile():
    images, labels = np.zeros((0, *SHAPE), np.uint8), np.zeros(0, np.int64)
    limited = small_trainer()
    free = xc.Trainer(xc.Model(limited.model.net, "cpu", seed=1), optim.sgd(0.1, 0.9))
    losses = [float(trainer.step(images, labels)) for trainer in (limited, free)]
    assert np.isnan(losses).all()  # the mean of nothing


def test_what_cannot_be_met_is_said_before_anything_is_computed(rng):
    images = rng.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    model = xc.Model(models.resnet20((3, 16, 16), 10), "cpu")
    before = model.parameters()
    heard = []
    trainer = xc.Trainer(model, optim.sgd(0.1), max_memory="20MB")
    with pytest.raises(xc.XpcnnError, match=r"BatchNorm\) needs the whole batch at once, and 40 images take"):
        trainer.fit((images, np.zeros(40, np.int64)), on_epoch=lambda *heard_of: heard.append(heard_of))
    assert heard == []
    assert all(value is before[path] for path, value in model.parameters().items())
