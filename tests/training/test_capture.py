"""Recorded training does what training does, to the last bit; here on the emulated kernels, on a GPU for real.

The emulator does not run what is recorded until it is replayed, and new memory is full of NaN: whatever a step did
beside launching kernels would leave NaN behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import emulator
import numpy as np
import pytest
from array_api_compat import array_namespace

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models, ops, optim
from xpcnn.backend import upload_like
from xpcnn.data import Augment, Loader
from xpcnn.training.capture import Recorded


def data(count=50, size=12, classes=4, channels=1):
    rng = np.random.default_rng(7)
    return rng.integers(0, 256, (count, channels, size, size), np.uint8), rng.integers(0, classes, count)


def small(channels=1, size=12):
    net = la.Sequential(
        la.Conv2D(5, 3), la.ReLU(), la.MaxPool2D(2), la.Flatten(), la.Affine(8), la.ReLU(), la.Affine(4)
    )
    return net, (channels, size, size)


def fit(arrays, capture, net=None, optimizer=None, loss="softmax_cross_entropy", epochs=2, batch_size=16, **options):
    net, shape = net or small()
    named = {name: options.pop(name) for name in ("normalise", "precision", "conv_engine") if name in options}
    model = xc.Model(net, arrays.backend, input_shape=shape, **named)
    course = {name: options.pop(name) for name in ("augment", "drop_last") if name in options}
    trainer = xc.Trainer(model, optimizer or optim.adagrad(0.05), loss, capture=capture, **options)
    history = trainer.fit(data(), data(24), epochs=epochs, batch_size=batch_size, **course)
    return trainer, history


def assert_same(a, b):
    (first, one), (second, two) = a, b
    backend = first.model.backend
    assert one.losses == two.losses
    assert [(e.train_accuracy, e.test_accuracy, e.loss) for e in one.epochs] == [
        (e.train_accuracy, e.test_accuracy, e.loss) for e in two.epochs
    ]
    for mine, other in (
        (first.model.parameters(), second.model.parameters()),
        (first.model.state(), second.model.state()),
    ):
        for path in mine:
            np.testing.assert_array_equal(backend.to_numpy(mine[path]), backend.to_numpy(other[path]), err_msg=path)
    for name, moments in first.opt_state.items():
        for path, value in moments.items():
            np.testing.assert_array_equal(backend.to_numpy(value), backend.to_numpy(second.opt_state[name][path]))
    assert first.steps == second.steps


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.adagrad(0.05),
        optim.adam(0.01),
        optim.sgd(0.1, 0.9, nesterov=True),
        optim.sgd(lambda step: 0.1 / (1 + step)),
    ],
    ids=["adagrad", "adam", "nesterov", "schedule"],
)
def test_recorded_training_is_the_same_to_the_bit(graphs, optimizer):
    captured = fit(graphs, "auto", optimizer=optimizer)
    assert captured[0].capture_note == ""
    assert_same(captured, fit(graphs, "off", optimizer=optimizer))


@pytest.mark.parametrize(
    "options",
    [
        {"augment": Augment(crop=2, flip=True)},
        {"augment": Augment(rotate=20, scale=0.2, brightness=0.2, contrast=0.3, cutout=4), "drop_last": True},
        {"augment": Augment(mixup=0.5), "ema": 0.9},
        {"augment": Augment(translate=0.1, cutmix=1.0, mixup=0.2), "optimizer": optim.adamw(0.01)},
        {"ema": 0.5, "optimizer": optim.clip_by_norm(optim.sgd(0.1, 0.9, weight_decay=1e-3), 0.5)},
    ],
    ids=["crop", "colours", "mixup and average", "cutmix", "clipped"],
)
def test_augmented_averaged_and_clipped_training_is_recorded(graphs, options):
    captured = fit(graphs, "auto", **options)
    assert captured[0].capture_note == ""
    single = fit(graphs, "off", **options)
    assert_same(captured, single)
    for path, array in (captured[0].average or {}).items():
        np.testing.assert_array_equal(array, single[0].average[path], err_msg=path)


def test_running_statistics_are_kept(graphs):
    net = la.Sequential(
        la.Conv2D(6, 3, bias=False),
        la.BatchNorm(),
        la.ReLU(),
        la.Residual(la.Conv2D(6, 3, padding=1)),
        la.GlobalAvgPool(),
        la.Affine(4),
    )
    captured = fit(graphs, "auto", (net, (1, 12, 12)), batch_size=13)
    assert captured[0].capture_note == ""
    assert_same(captured, fit(graphs, "off", (net, (1, 12, 12)), batch_size=13))


@pytest.mark.parametrize("count", [1, 16, 50, 64])
def test_batches_of_every_size(graphs, count):
    assert_same(fit(graphs, "auto", batch_size=count), fit(graphs, "off", batch_size=count))


def test_float_images_and_pixels_with_a_mean(graphs):
    normalise = xc.model.Normalise(0.4, 0.3)
    assert_same(fit(graphs, "auto", normalise=normalise), fit(graphs, "off", normalise=normalise))


def test_nobodys_arrays_change_under_their_hands(graphs):
    model = xc.Model(*small()[:1], graphs.backend, input_shape=small()[1])
    trainer = xc.Trainer(model, optim.adagrad(0.05))
    seen = []
    before = {path: graphs.backend.to_numpy(value).copy() for path, value in model.parameters().items()}
    held = model.parameters()
    trainer.fit(
        data(),
        epochs=3,
        batch_size=16,
        on_epoch=lambda epoch, losses: seen.append(
            (
                model.parameters(),
                {path: graphs.backend.to_numpy(value).copy() for path, value in model.parameters().items()},
            )
        ),
    )
    for path, value in held.items():
        np.testing.assert_array_equal(graphs.backend.to_numpy(value), before[path])
    for arrays, values in seen:
        for path, value in arrays.items():
            np.testing.assert_array_equal(graphs.backend.to_numpy(value), values[path])
    assert any((seen[0][1][path] != seen[-1][1][path]).any() for path in before)


def test_parameters_replaced_between_epochs_count(graphs):
    def train(capture):
        model = xc.Model(*small()[:1], graphs.backend, input_shape=small()[1])
        trainer = xc.Trainer(model, optim.adagrad(0.05), capture=capture)
        start = {path: graphs.backend.to_numpy(value) for path, value in model.parameters().items()}

        def on_epoch(epoch, losses):
            if epoch.epoch == 1:
                model.load_parameters(start)

        return trainer, trainer.fit(data(), epochs=2, batch_size=16, on_epoch=on_epoch)

    assert_same(train("auto"), train("off"))


def test_an_interrupted_epoch_leaves_the_steps_made(graphs):
    model = xc.Model(*small()[:1], graphs.backend, input_shape=small()[1])
    trainer = xc.Trainer(model, optim.adagrad(0.05))

    def stop(epoch, done):
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data(), epochs=2, batch_size=16, on_step=stop)
    assert trainer.steps == 2
    values = [graphs.backend.to_numpy(value) for value in model.parameters().values()]
    assert all(np.isfinite(value).all() for value in values)
    x, t = data(16)
    assert np.isfinite(float(trainer.step(x, t)))  # and it can go on


def test_dropout_draws_the_same_numbers_on_the_device(graphs):
    net = la.Sequential(
        la.Flatten(), la.Affine(9), la.Dropout(0.3), la.ReLU(), la.Affine(7), la.Dropout(0.5), la.Affine(4)
    )
    captured = fit(graphs, "auto", (net, (1, 12, 12)), batch_size=13)
    assert captured[0].capture_note == ""
    assert_same(captured, fit(graphs, "off", (net, (1, 12, 12)), batch_size=13))


NORMED = la.Sequential(
    la.Conv2D(8, 3, bias=False),
    la.BatchNorm(),
    la.ReLU(),
    la.Residual(la.Sequential(la.Conv2D(8, 3, padding=1), la.BatchNorm(), la.ReLU(), la.Conv2D(8, 1))),
    la.MaxPool2D(3, stride=2),
    la.GlobalAvgPool(),
    la.Affine(4),
)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_every_precision_is_recorded(graphs, precision):
    captured = fit(graphs, "auto", (NORMED, (1, 12, 12)), precision=precision)
    assert captured[0].capture_note == ""
    assert_same(captured, fit(graphs, "off", (NORMED, (1, 12, 12)), precision=precision))


@dataclass(frozen=True)
class Noise(la.Layer):
    """A layer of one's own that adds noise from the host."""

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, params, state, x, *, train=False, key=None):
        noise = 0.1 * key.child("noise").uniform(tuple(x.shape)) if train else np.zeros(x.shape)
        return x + upload_like(noise.astype(np.float32), x), None, state

    def backward(self, params, dy, saved, *, need_dx=True):
        return dy, {}


def test_what_cannot_be_recorded_runs_and_says_why(graphs):
    net = la.Sequential(la.Flatten(), la.Affine(8), Noise(), la.Affine(4)), (1, 12, 12)
    captured = fit(graphs, "auto", net)
    assert "draws random numbers on the host" in captured[0].capture_note
    assert_same(captured, fit(graphs, "off", net))
    mine = optim.Optimizer("mine", optim.adagrad(0.05).init, optim.adagrad(0.05).update)
    captured = fit(graphs, "auto", optimizer=mine)
    assert "mine" in captured[0].capture_note
    assert_same(captured, fit(graphs, "off"))


def test_a_loss_that_looks_at_numbers_falls_back(graphs):
    def forward(y, t):
        loss, saved = ops.softmax_cross_entropy(y, t)
        assert float(loss) < 1e9  # waits for the device
        return loss, saved

    loss = forward, ops.softmax_cross_entropy_backward
    captured = fit(graphs, "auto", loss=loss)
    assert captured[0].capture_note
    assert_same(captured, fit(graphs, "off", loss=loss))


def test_a_wrong_choice_is_an_error():
    model = xc.Model(*small()[:1], "cpu", input_shape=small()[1])
    with pytest.raises(xc.XpcnnError, match="capture must be"):
        xc.Trainer(model, optim.sgd(), capture="yes")


@pytest.mark.parametrize("name", ["simple_convnet", "lenet5"])
def test_the_models_record(graphs, name):
    net = getattr(models, name)((1, 28, 28), 4)
    rng = np.random.default_rng(3)
    part = rng.integers(0, 256, (12, 1, 28, 28), np.uint8), rng.integers(0, 4, 12)
    results = []
    for capture in ("auto", "off"):
        trainer = xc.Trainer(xc.Model(net, graphs.backend), optim.adagrad(0.01), capture=capture)
        results.append((trainer, trainer.fit(part, part, epochs=2, batch_size=5)))
        assert trainer.capture_note == ""
    assert_same(*results)


def test_shortcuts_and_branches_record(graphs):
    body = la.Sequential(la.Conv2D(6, 3, stride=2, padding=1), la.BatchNorm(), la.ReLU())
    shortcut = la.Sequential(la.AvgPool2D(1, stride=2), la.PadChannels(6))
    net = la.Sequential(
        la.Conv2D(3, 3),
        la.Residual(body, shortcut),
        la.Parallel((la.Conv2D(2, 1), la.Conv2D(3, 3, padding=1, groups=1))),
        la.ReLU6(),
        la.Conv2D(5, 3, groups=5),
        la.GlobalAvgPool(),
        la.Affine(4),
    )
    captured = fit(graphs, "auto", (net, (1, 12, 12)), batch_size=13)
    assert captured[0].capture_note == ""
    assert_same(captured, fit(graphs, "off", (net, (1, 12, 12)), batch_size=13))


def test_a_step_of_the_seed_network_takes_few_launches():
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        emulator.install(patch)
        model = xc.Model(models.simple_convnet((1, 28, 28), 10), "cpu")
        x, t = np.zeros((4, 1, 28, 28), np.uint8), np.zeros(4, np.int64)
        recorded = Recorded(xc.Trainer(model, optim.adagrad(0.01)), x, t, Loader(xc.Dataset(x, t), 4))
        emulator.launches.clear()
        assert list(recorded.epoch(np.arange(4))) == [4]
        made = [name for name in emulator.launches if name not in ("replace",)]  # the model's own copies, afterwards
        assert len(made) <= 13, made


def trained(graphs, capture, train, test=None, optimizer=None, **callbacks):
    model = xc.Model(small()[0], graphs.backend, input_shape=small()[1])
    trainer = xc.Trainer(model, optimizer or optim.sgd(0.1), capture=capture)
    for name in list(callbacks):
        callbacks[name] = callbacks[name](trainer)
    return trainer, trainer.fit(train, test, epochs=2, batch_size=16, **callbacks)


def test_callbacks_see_the_model_as_it_is_and_may_change_it(graphs):
    seen = {"auto": [], "off": []}
    x, t = data(16)

    def watching(capture):
        def on_step(trainer):
            model = trainer.model
            start = {path: graphs.backend.to_numpy(value) for path, value in model.parameters().items()}

            def after(epoch, done):
                seen[capture].append([graphs.backend.to_numpy(value).copy() for value in model.parameters().values()])
                if (epoch, done) == (1, 32):
                    trainer.step(x, t)
                if (epoch, done) == (2, 32):
                    model.load_parameters(start)

            return after

        return trained(graphs, capture, data(), data(24), optim.sgd(lambda step: 0.1 / (1 + step)), on_step=on_step)

    captured = watching("auto")
    assert captured[0].capture_note == ""
    assert_same(captured, watching("off"))
    for a, b in zip(seen["auto"], seen["off"], strict=True):
        for mine, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_settings_changed_between_epochs_count(graphs):
    def on_epoch(trainer):
        def after(epoch, losses):
            if epoch.epoch == 1:
                trainer.optimizer = optim.sgd(0.01)

        return after

    assert_same(*(trained(graphs, capture, data(), on_epoch=on_epoch) for capture in ("auto", "off")))


@dataclass(frozen=True)
class Peek(la.Layer):
    """A layer that waits for the device when it predicts."""

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, params, state, x, *, train=False, key=None):
        if not train:
            assert float(array_namespace(x).max(x)) < 1e9
        return x, None, state

    def backward(self, params, dy, saved, *, need_dx=True):
        return dy, {}


def test_an_evaluation_that_cannot_be_recorded_runs_and_says_why(graphs):
    net = la.Sequential(la.Flatten(), la.Affine(8), Peek(), la.Affine(4)), (1, 12, 12)
    captured = fit(graphs, "auto", net)
    assert captured[0].capture_note.startswith("in evaluation, ")
    assert_same(captured, fit(graphs, "off", net))


def test_images_in_any_order_of_memory(graphs):
    images, labels = data()
    part = np.asfortranarray(images), labels
    assert_same(*(trained(graphs, capture, part, part) for capture in ("auto", "off")))


@pytest.mark.parametrize("capture", ["auto", "off"])
@pytest.mark.parametrize("kind", ["size", "int32", "empty"])
def test_test_sets_are_checked_as_ever(graphs, kind, capture):
    images, labels = data()
    wrong = {"size": images[..., 1:], "int32": images.astype(np.int32), "empty": images[:0]}[kind]
    with pytest.raises(xc.XpcnnError, match=r"takes batches|images must be|no images"):
        trained(graphs, capture, (images, labels), (wrong, labels[: len(wrong)]))
