"""What `fit` does beside steps: augmentation, the last batch, evaluations, callbacks, averages, images from files."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import CLASSES, Lazy, assert_held, held, network, pictures, records, trainer

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import ops, optim
from xpcnn.data import Augment, Loader
from xpcnn.random import Key

EVERYTHING = Augment(crop=1, flip=True, rotate=10, brightness=0.1, cutout=2, mixup=0.5, cutmix=0.5)


EMULATED = "test_the_average_is_its_formula[numpy-as-cuda-0.6]", "test_a_callback_after_a_step_ends_it[numpy-as-cuda-6]"


@pytest.fixture
def backend(arrays, request):
    """Return each backend that says something of its own."""
    if arrays.id in ("numpy-readonly", "numpy-plain", "jax", "array_api_strict-device1"):
        pytest.skip("says nothing new")
    if arrays.id == "numpy-as-cuda" and request.node.name not in EMULATED:
        pytest.skip("takes long where CUDA is emulated")
    return arrays.backend


def fit(one, data=None, test=None, **options):
    return one.fit(data or pictures(), test, **{"epochs": 2, "batch_size": 6} | options)


@pytest.mark.parametrize("augment", [None, Augment(crop=1, flip=True), EVERYTHING], ids=["plain", "shift", "all"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_it_makes_the_steps_of_a_loop(backend, augment, drop_last):
    """The same as `step` by `step` with batches cut by hand: shuffled and augmented by the seed."""
    images, labels = pictures()
    whole, loop = (trainer(backend, optim.sgd(0.1)) for _ in range(2))
    history = fit(whole, augment=augment, drop_last=drop_last)
    losses = []
    for epoch in (1, 2):
        order = Key(4).child("shuffle", epoch).generator().permutation(22)
        table = augment.draw(Key(4).child("augment", epoch), 22, (1, 6, 6)) if augment else None
        for rows in (range(6), range(6, 12), range(12, 18), range(18, 22))[: 3 if drop_last else 4]:
            chosen = order[list(rows)]
            x, t = backend.asarray(images[chosen]), backend.asarray(labels[chosen])
            if augment:
                x, t = augment.apply(x, t, table[rows.start : rows.stop], CLASSES)
            losses.append(float(loop.step(x, t)))
    np.testing.assert_allclose(history.losses, losses, rtol=1e-6)
    assert_held(whole, held(loop), 1e-6)
    assert whole.steps == loop.steps == len(losses)


def test_mixed_targets_have_a_place_for_every_output(backend):
    """Even for classes that no image of the data has, and that nobody named."""
    net = la.Sequential(la.Affine(5), input_shape=(1, 6, 6))
    one = trainer(backend, optim.sgd(0.1), net=net)
    assert len(fit(one, augment=Augment(mixup=1.0)).losses) == 8


@pytest.mark.parametrize("kind", ["plain", "augmented", "dropped"])
def test_images_from_files_give_the_same_bits(backend, kind):
    options = {"augmented": {"augment": EVERYTHING}, "dropped": {"drop_last": True}}.get(kind, {})
    found = []
    for make in (xc.Dataset, Lazy):
        one = trainer(backend, optim.adam(0.01), capture="off", ema=0.8)
        history = fit(one, make(*pictures()), make(*pictures(9, 1)), **options)
        found.append((held(one), history.losses, records(history.epochs)))
        if backend.name == "numpy":
            assert one.capture_note == ""
    assert found[0][1:] == found[1][1:]
    assert_held(one, found[0][0])


def test_images_from_files_are_not_recorded(graphs):
    one, other = trainer(graphs.backend, optim.sgd(0.1)), trainer(graphs.backend, optim.sgd(0.1))
    fit(one, Lazy(*pictures()), Lazy(*pictures(9, 1)))
    assert one.capture_note == "the images are read from files"
    fit(other, pictures(), pictures(9, 1))
    assert other.capture_note == ""
    assert_held(one, held(other))


def test_a_file_that_cannot_be_read(backend):
    class Broken(Lazy):
        def read(self, rows):
            if 7 in rows:
                raise xc.DataError("image 7 is broken.")
            return super().read(rows)

    one = trainer(backend, optim.sgd(0.1))
    with pytest.raises(xc.DataError, match=r"^image 7 is broken\.$"):
        fit(one, Broken(*pictures()), evaluate_train=False)
    with pytest.raises(xc.DataError, match=r"^image 7 is broken\.$"):
        fit(one, pictures(), Broken(*pictures()))


@pytest.mark.parametrize(
    ("every", "train", "test", "measured"),
    [
        (1, True, True, [(1, 1)] * 6), (2, True, True, [(1, 1), (0, 0), (1, 1), (0, 0), (1, 1), (1, 1)]),
        (9, True, True, [(1, 1), *[(0, 0)] * 4, (1, 1)]), (2, False, True, [(0, 1), (0, 0)] * 2 + [(0, 1)] * 2),
        (1, True, False, [(1, 0)] * 6), (3, False, False, [(0, 0)] * 6),
    ],
)  # fmt: skip
def test_what_is_evaluated_and_when(every, train, test, measured):
    one = trainer("cpu", optim.sgd(0.1))
    history = fit(one, test=pictures(9, 1) if test else None, epochs=5, evaluate_every=every, evaluate_train=train)
    found = [(e.train_accuracy is not None, e.test_accuracy is not None) for e in history.epochs]
    assert found == measured
    assert [e.test_loss is not None for e in history.epochs] == [bool(b) for _, b in measured]
    if train:
        assert history.epochs[-1].train_accuracy == xc.evaluate(one.model, xc.Dataset(*pictures()))[0]
    if test:
        found = history.epochs[-1].test_accuracy, history.epochs[-1].test_loss
        assert found == pytest.approx(xc.evaluate(one.model, xc.Dataset(*pictures(9, 1))), rel=1e-6)


def test_evaluations_change_nothing(backend):
    found = []
    for every in (1, 5):
        one = trainer(backend, optim.sgd(0.1), ema=0.9)
        fit(one, test=pictures(9, 1), epochs=3, evaluate_every=every, evaluate_train=every == 1)
        found.append(held(one))
    assert_held(one, found[0])


@pytest.mark.parametrize("where", [1, 3, 4, 6, 8])
def test_a_callback_after_a_step_ends_it(backend, where):
    calls = []

    def on_step(epoch, images):
        calls.append((epoch, images))
        return len(calls) == where

    one, heard = trainer(backend, optim.sgd(0.1)), []
    history = fit(one, on_step=on_step, on_epoch=lambda epoch, losses: heard.append(epoch.epoch))
    assert history.stopped
    assert calls == [(epoch, images) for epoch in (1, 2) for images in (6, 12, 18, 22)][:where]
    assert one.steps == len(history.losses) == where
    assert heard == [0, 1][: 1 + (where > 4)]
    assert (one.progress.epoch, one.progress.batch) == (1 + (where > 4), where - 4 * (where > 4))


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_callback_after_an_epoch_ends_it(backend, where):
    one = trainer(backend, optim.sgd(0.1))
    history = fit(one, on_epoch=lambda epoch, losses: epoch.epoch == where)
    assert history.stopped
    assert len(history.epochs) == where + 1
    assert one.steps == 4 * where
    assert one.progress.epoch == where + 1
    assert not fit(trainer(backend, optim.sgd(0.1)), on_epoch=lambda epoch, losses: None).stopped


def averaged(backend, optimizer, decay, **options):
    """Return a trainer that was trained, and its averages as a float64 loop over the weights after each step."""
    one = trainer(backend, optimizer, ema=decay, **options)

    def values():
        params, state = one.weights()
        return {p: np.array(backend.to_numpy(a), np.float64) for p, a in (params | state).items()}

    expected, steps = values(), [0]

    def on_step(epoch, images):
        d = min(decay, (1 + steps[0]) / (10 + steps[0]))
        for path, w in values().items():
            expected[path] += (1 - d) * (w - expected[path])
        steps[0] += 1

    seen = []

    def on_epoch(epoch, losses):
        shown = one.model.parameters() | one.model.state()
        seen.append({path: np.array(backend.to_numpy(array)) for path, array in shown.items()})
        for path, value in expected.items():
            np.testing.assert_allclose(seen[-1][path], value, rtol=0, atol=2e-6, err_msg=f"{path}, {epoch.epoch}")

    history = fit(one, test=pictures(9, 1), on_step=on_step, on_epoch=on_epoch)
    return one, seen, history


@pytest.mark.parametrize("decay", [0.05, 0.6, 0.999])
def test_the_average_is_its_formula(backend, decay):
    """Of weights and running statistics alike; it is what callbacks and the caller find in the model, and evaluate."""
    one, seen, history = averaged(backend, optim.sgd(0.5, 0.9), decay)
    shown = one.model.parameters() | one.model.state()
    params, state = one.weights()
    assert state
    for path, array in (params | state).items():
        found = backend.to_numpy(shown[path])
        np.testing.assert_array_equal(found, seen[-1][path])
        assert not np.array_equal(found, backend.to_numpy(array)), path
    accuracy, loss = xc.evaluate(one.model, xc.Dataset(*pictures(9, 1)))
    assert (history.epochs[-1].test_accuracy, history.epochs[-1].test_loss) == pytest.approx((accuracy, loss), rel=1e-5)


def test_averages_do_not_change_training(backend):
    found = []
    for decay in (None, 0.9):
        one = trainer(backend, optim.adam(0.01), ema=decay)
        losses = fit(one).losses
        params, state = one.weights()
        found.append((losses, {p: np.array(backend.to_numpy(a)) for p, a in (params | state).items()}))
        x, t = pictures(6, 9)
        found[-1][0].append(float(one.step(x, t)))  # goes on from the weights, whatever the model shows
    assert found[0][0] == found[1][0]
    for path, array in found[0][1].items():
        np.testing.assert_array_equal(found[1][1][path], array)


def test_recorded_averages_have_the_bits_of_others(graphs):
    ends = []
    for capture in ("auto", "off"):
        one, _, history = averaged(graphs.backend, optim.sgd(0.5, 0.9), 0.6, capture=capture)
        assert one.capture_note == ""
        ends.append((held(one), history.losses, records(history.epochs)))
    assert ends[0][1:] == ends[1][1:]
    assert_held(one, ends[0][0])


def test_what_a_callback_gives_the_model_stays(backend):
    """The averages that it was shown are not put back over what somebody loaded."""
    one = trainer(backend, optim.sgd(0.1), ema=0.9)
    own = {path: np.full(array.shape, 0.125) for path, array in one.model.parameters().items()}
    seen = []

    def on_epoch(epoch, losses):
        if epoch.epoch == 1:
            one.model.load_parameters(own)

    def on_step(epoch, images):
        if epoch == 2:
            seen.append({path: np.array(backend.to_numpy(a)) for path, a in one.weights()[0].items()})

    fit(one, on_epoch=on_epoch, on_step=on_step)
    other = trainer(backend, optim.sgd(0.1))
    other.model.load_parameters(own)
    bias = "affine1/bias"
    assert np.abs(seen[0][bias] - 0.125).max() < 0.1
    assert np.abs(seen[0][bias] - 0.125).max() > 0


@pytest.mark.parametrize("ema", [0, 1, -1, "0.9", True, float("nan")])
def test_wrong_decays(ema):
    if ema == 0 and not isinstance(ema, bool):
        assert trainer("cpu", optim.sgd(0.1), ema=ema).ema == 0  # no memory at all: the weights
        return
    with pytest.raises(xc.XpcnnError, match="ema must be a number from 0 to below 1"):
        trainer("cpu", optim.sgd(0.1), ema=ema)


def test_wrong_arguments():
    one = trainer("cpu", optim.sgd(0.1))
    for options, says in (
        ({"evaluate_every": 0}, "evaluate_every"), ({"drop_last": True, "batch_size": 23}, "no batch of 23"),
        ({"augment": Augment(cutout=9)}, "cutout=9 is too much"), ({"epochs": True}, "epochs"),
        ({"test": (pictures()[0][:0], pictures()[1][:0])}, "no images"),
    ):  # fmt: skip
        with pytest.raises(xc.XpcnnError, match=says):
            fit(one, **options)
    assert one.steps == 0


def test_the_loss_of_whole_batches_is_the_losses_mean(backend):
    """With soft targets, too: a loop over the rows."""
    one = trainer(backend, optim.sgd(0.1), net=la.Sequential(la.Affine(CLASSES), input_shape=(1, 6, 6)))
    images, labels = pictures(6)
    soft = np.eye(CLASSES, dtype=np.float32)[labels] * 0.8 + 0.2 / CLASSES
    logits = np.asarray(one.model.predict(images), np.float64)
    expected = ops.softmax_cross_entropy(logits, soft.astype(np.float64))[0]
    assert float(one.step(images, soft)) == pytest.approx(float(expected), rel=1e-5)


def test_the_loaders_are_the_seeds():
    """Two seeds differ, one does not: in order and augmentation."""
    data = xc.Dataset(*pictures())
    first, again, other = (list(Loader(data, 6, seed=seed, augment=EVERYTHING).epoch(1)) for seed in (1, 1, 2))
    assert all((a == b).all() for (a, _), (b, _) in zip(first, again, strict=True))
    assert any((a != b).any() for (a, _), (b, _) in zip(first, other, strict=True))
    assert network() == network()
