"""The training loop: it learns, on every backend the same, repeatably, and the same as PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers, models, optim


def blobs(rng, count, classes=3):
    """Images whose class is where their bright square is: learnable, but not without a convolutional net's eyes."""
    images = rng.integers(0, 60, (count, 1, 12, 12)).astype(np.uint8)
    labels = rng.integers(0, classes, count)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 6 * row + 1 : 6 * row + 5, 6 * column + 1 : 6 * column + 5] += 120
    return images, labels


def small():
    return models.simple_convnet((1, 12, 12), 3, filters=4, kernel_size=3, hidden=8)


def test_it_learns(arrays, rng):
    train, test = blobs(rng, 96), blobs(rng, 60)
    model = xc.Model(small(), arrays.backend, seed=1)
    history = xc.Trainer(model, optim.adam(0.02)).fit(train, test, epochs=8, batch_size=32)
    assert [epoch.epoch for epoch in history.epochs] == list(range(9))
    assert len(history.losses) == 24
    assert history.epochs[0].test_accuracy < 0.8
    assert history.epochs[-1].test_accuracy > 0.95
    assert history.losses[-1] < history.losses[0] / 3


def test_the_loss_stays_on_the_device(arrays, rng):
    model = xc.Model(small(), arrays.backend)
    loss = xc.Trainer(model, optim.sgd(0.1, 0.9)).step(*blobs(rng, 5))
    like = model.parameters()["conv1/weight"]
    arrays.check(loss, arrays.backend.to_numpy(loss), like, 0.0)
    assert loss.shape == ()


def test_every_backend_takes_numpys_steps(arrays, rng):
    """Ten float64 updates end with NumPy's weights."""
    x, t = blobs(rng, 40)
    ends = []
    for backend in (arrays.backend, "cpu"):
        model = xc.Model(small(), backend, dtype="float64")
        trainer = xc.Trainer(model, optim.adagrad(0.02))
        for start in range(0, 40, 4):
            trainer.step(x[start : start + 4], t[start : start + 4])
        ends.append({path: model.backend.to_numpy(p) for path, p in model.parameters().items()})
    for path, expected in ends[1].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ends[0][path], expected, rtol=0, atol=1e-9 * scale, err_msg=path)


def test_pytorch_takes_the_same_steps(rng):
    torch = pytest.importorskip("torch")
    x, t = blobs(rng, 60)
    model = xc.Model(models.lenet5((1, 12, 12), 3), "cpu", dtype="float64")
    start = model.parameters()
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(6, 16, 5),
        torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(16, 120), torch.nn.ReLU(),
        torch.nn.Linear(120, 84), torch.nn.ReLU(), torch.nn.Linear(84, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        for theirs, (path, p) in zip(net.parameters(), start.items(), strict=True):
            theirs.copy_(torch.tensor(p.T if path.startswith("affine") and p.ndim == 2 else p))
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    trainer = xc.Trainer(model, optim.sgd(0.05, 0.9))
    for first in range(0, 60, 12):
        rows = slice(first, first + 12)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(x[rows] / 255.0)), torch.tensor(t[rows]))
        loss.backward()
        optimizer.step()
        assert float(trainer.step(x[rows], t[rows])) == pytest.approx(float(loss.detach()), rel=1e-10)
    for theirs, (path, p) in zip(net.parameters(), model.parameters().items(), strict=True):
        expected = theirs.detach().numpy()
        expected = expected.T if path.startswith("affine") and p.ndim == 2 else expected
        np.testing.assert_allclose(p, expected, rtol=0, atol=1e-11, err_msg=path)


def test_the_same_seed_gives_the_same_bits(rng):
    data = blobs(rng, 300)
    ends = []
    for seed in (5, 5, 6):
        model = xc.Model(small(), "cpu", seed=seed)
        history = xc.Trainer(model, optim.adagrad(0.05)).fit(data, data, epochs=2, batch_size=50)
        ends.append((history.losses, model.parameters()))
    assert ends[0][0] == ends[1][0] != ends[2][0]
    for path, p in ends[0][1].items():
        np.testing.assert_array_equal(p, ends[1][1][path])


def test_evaluation_counts_as_a_loop_does(arrays, rng):
    images, labels = blobs(rng, 45)
    model = xc.Model(small(), arrays.backend, dtype="float64")
    accuracy, loss = xc.evaluate(model, xc.Dataset(images, labels))
    logits = model.predict(images)
    right = sum(int(np.argmax(row)) == label for row, label in zip(logits, labels, strict=True))
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    assert accuracy == right / 45
    assert loss == pytest.approx(-np.mean([row[label] for row, label in zip(log_p, labels, strict=True)]), rel=1e-12)


def test_the_last_batch_may_be_short_and_every_image_is_seen_once(rng):
    seen = []

    class Watch(xc.Trainer):
        def step(self, x, t):
            seen.append([int(v) for v in t])
            return super().step(x, t)

    images, _ = blobs(rng, 10)
    trainer = Watch(
        xc.Model(models.simple_convnet((1, 12, 12), 10, filters=2, kernel_size=3, hidden=4), "cpu"), optim.sgd(0.01)
    )
    trainer.fit((images, np.arange(10)), epochs=2, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 2
    epochs = [[v for batch in part for v in batch] for part in (seen[:3], seen[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]


def test_what_a_caller_gave_is_not_written_to(rng):
    images, labels = blobs(rng, 20)
    copies = images.copy(), labels.copy()
    images.flags.writeable = labels.flags.writeable = False
    model = xc.Model(small(), "cpu")
    before = model.parameters()
    kept = {path: p.copy() for path, p in before.items()}
    xc.Trainer(model, optim.adagrad(0.1)).fit((images, labels), epochs=1, batch_size=7)
    np.testing.assert_array_equal(images, copies[0])
    np.testing.assert_array_equal(labels, copies[1])
    for path, p in before.items():
        np.testing.assert_array_equal(p, kept[path])
        assert not np.array_equal(model.parameters()[path], p)


def test_callbacks_hear_of_steps_and_epochs(rng):
    steps, epochs = [], []
    trainer = xc.Trainer(xc.Model(small(), "cpu"), optim.sgd(0.01))
    trainer.fit(
        blobs(rng, 10), epochs=2, batch_size=4,
        on_step=lambda epoch, images: steps.append((epoch, images)),
        on_epoch=lambda record, losses: epochs.append((record.epoch, len(losses), record.test_accuracy)),
    )  # fmt: skip
    assert steps == [(1, 4), (1, 8), (1, 10), (2, 4), (2, 8), (2, 10)]
    assert epochs == [(0, 0, None), (1, 3, None), (2, 3, None)]


def test_a_loss_of_ones_own(rng):
    """Least squares on one-hot targets, as a pair of functions."""

    def forward(y, t):
        return 0.5 * ((y - t) ** 2).sum() / len(y), (y, t)

    def backward(saved):
        y, t = saved
        return (y - t) / len(y)

    net = layers.Sequential(layers.Affine(3), input_shape=(1, 12, 12))
    model = xc.Model(net, "cpu")
    trainer = xc.Trainer(model, optim.sgd(0.02), loss=(forward, backward))
    images, labels = blobs(rng, 64)
    losses = [float(trainer.step(images, np.eye(3, dtype=np.float32)[labels])) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_wrong_arguments_are_named(rng):
    model, data = xc.Model(small(), "cpu"), blobs(rng, 4)
    trainer = xc.Trainer(model, optim.sgd(0.1))
    for call, says in (
        (lambda: xc.Trainer(model, optim.sgd(0.1), loss="hinge"), "'hinge'"),
        (lambda: trainer.fit(data, epochs=0), "epochs"),
        (lambda: trainer.fit(data, batch_size=1.5), "batch_size"),
        (lambda: trainer.fit(data[0]), "pair"),
        (lambda: trainer.fit((xc.resolve_backend("array_api_strict").asarray(data[0]), data[1])), "NumPy arrays"),
        (lambda: trainer.fit((data[0], data[1][:3])), "(3,)"),
        (lambda: trainer.fit((data[0][:0], data[1][:0])), "no training images"),
        (lambda: trainer.fit((data[0], data[1] + 0.5)), "integers"),
        (lambda: trainer.fit((data[0], data[1] + 3)), "labels from 0 to 2"),
        (lambda: trainer.step(data[0][:, :, :5], data[1]), "(4, 1, 5, 12)"),
    ):
        with pytest.raises(xc.XpcnnError) as caught:
            call()
        assert says in str(caught.value)


def test_a_loss_that_is_no_number_stops_training(rng):
    trainer = xc.Trainer(xc.Model(small(), "cpu"), optim.sgd(1e30))
    with (
        np.errstate(all="ignore"),
        pytest.raises(xc.XpcnnError, match="no longer a number in step 2, in epoch 1: affine1 is the first layer"),
    ):
        trainer.fit(blobs(rng, 20), epochs=3, batch_size=5)


def test_a_step_reads_nothing_back(monkeypatch, rng):
    """No step asks the device for a value: neither to_numpy, nor float(), nor bool() of an array."""
    from array_api_strict._array_object import Array

    model = xc.Model(small(), "array_api_strict")
    trainer = xc.Trainer(model, optim.adam(0.01))
    images, labels = (model.backend.asarray(part) for part in blobs(rng, 6))

    def forbidden(self, *args, **kwargs):
        raise AssertionError("a value was read back")

    monkeypatch.setattr(xc.Backend, "to_numpy", forbidden)
    for name in ("__bool__", "__float__", "__int__", "__complex__", "__array__"):
        monkeypatch.setattr(Array, name, forbidden)
    for _ in range(2):
        trainer.step(images, labels)
