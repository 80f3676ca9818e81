"""From settings to optimizer, schedule, loss and data: each is what its formula says, compared with loops and libraries."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from tiny import CLASSES, Lazy, pictures

import xpcnn as xc
from xpcnn import optim
from xpcnn.errors import XpcnnError
from xpcnn.training import build as building
from xpcnn.training.build import OPTIONS, USUAL, build, loss_of, optimizer_of, read_tables, schedule_of, standard
from xpcnn.training.settings import Settings

STEPS = 5  # a pass


@pytest.fixture
def file(tmp_path):
    """Return a data set as a file: 12×12 images, six of class 0, three of class 1, one of class 2."""
    images, labels = (
        np.random.default_rng(0).integers(0, 256, (10, 12, 12), np.uint8),
        np.array([0] * 6 + [1] * 3 + [2]),
    )
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    return f"npz:{tmp_path / 'data.npz'}"


def rates(**given):
    given = Settings(**{"epochs": 4, "lr": 0.2, "optimizer": "sgd"} | given)
    schedule = schedule_of(given, STEPS)
    return [schedule(step) for step in range(given.epochs * STEPS)]


def test_schedules():
    """20 steps; the formulas are written out here."""
    assert rates() == [0.2] * 20
    assert rates(schedule="cosine") == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 20)) for t in range(20)])
    found = rates(schedule="cosine", final_lr=0.5)
    assert found == pytest.approx([0.2 * (0.5 + 0.25 * (1 + math.cos(math.pi * t / 20))) for t in range(20)])
    assert rates(schedule="step", step_epochs=1, step_factor=0.5) == pytest.approx(
        [0.2 / 2 ** (t // 5) for t in range(20)]
    )
    assert rates(schedule="step", step_epochs=1.5) == pytest.approx(
        [0.2 / 10 ** (t // 8) for t in range(20)]
    )  # 7.5 to even
    assert rates(schedule="step") == [0.2] * 20  # the first drop is after ten epochs
    assert rates(schedule="step", step_epochs=0.01, step_factor=0.5) == pytest.approx([0.2 / 2**t for t in range(20)])
    assert rates(schedule="step", step_epochs=1e308) == [0.2] * 20


def test_warm_up():
    assert rates(warmup=1) == pytest.approx([0.2 * min(1, (t + 1) / 5) for t in range(20)])
    assert rates(warmup=0) == rates()
    found, bare = rates(warmup=2, schedule="cosine"), rates(schedule="cosine")
    assert found == pytest.approx([rate * min(1, (t + 1) / 10) for t, rate in enumerate(bare)])


@pytest.mark.parametrize(("warmup", "top"), [(None, 5), (1, 4), (2, 9), (0, 0)])
def test_one_cycle(warmup, top):
    """Without a word, the rise takes 30 % of 20 steps: the sixth is the highest."""
    found = rates(schedule="one-cycle", warmup=warmup, final_lr=0.1)
    assert found[top] == pytest.approx(0.2)
    assert all(a < b for a, b in pairwise(found[: top + 1]))
    assert all(a > b for a, b in pairwise(found[top:]))
    assert found[-1] == pytest.approx(0.02)


@pytest.mark.parametrize("warmup", [4, 4.0, 100, 1e308, 3.95])
@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_a_warm_up_as_long_as_the_training(warmup, schedule):
    with pytest.raises(XpcnnError, match=r"^warmup must be shorter than the training of 4 epochs, not [\d.e+]+\.$"):
        rates(warmup=warmup, schedule=schedule)


UPDATES = {  # what an optimizer's options are, by its settings: an expected optimizer of the library
    "adagrad": ({"eps": 1e-3}, optim.adagrad(0.1, eps=1e-3)),
    "adam": ({"beta1": 0.8, "beta2": 0.9, "eps": 1e-4}, optim.adam(0.1, beta1=0.8, beta2=0.9, eps=1e-4)),
    "adamw": ({"weight_decay": 0.3}, optim.adamw(0.1, weight_decay=0.3)),
    "muon": ({"momentum": 0.5, "nesterov": False, "weight_decay": 0.1},
             optim.muon(0.1, 0.5, nesterov=False, weight_decay=0.1)),
    "rmsprop": ({"momentum": 0.5, "eps": 1e-3}, optim.rmsprop(0.1, momentum=0.5, eps=1e-3)),
    "sgd": ({"nesterov": True, "weight_decay": 0.1}, optim.sgd(0.1, 0.9, nesterov=True, weight_decay=0.1)),
}  # fmt: skip


def run(optimizer):
    """Make three updates of a weight and a bias."""
    rng = np.random.default_rng(0)
    params = {"a/weight": rng.standard_normal((4, 3)), "a/bias": rng.standard_normal(3)}
    state = optimizer.init(params)
    for step in range(3):
        grads = {path: 10 * rng.standard_normal(p.shape) for path, p in params.items()}
        params, state = optimizer.update(grads, state, params, step)
    return params


def same(a, b):
    return all(np.array_equal(a[path], b[path]) for path in a)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_optimizers(name):
    """Each option arrives, and with none of them the usual ones hold."""
    options, expected = UPDATES[name]
    plain = Settings(optimizer=name, lr=0.1)
    found = run(optimizer_of(Settings(optimizer=name, lr=0.1, **options), lambda step: 0.1))
    assert same(found, run(expected))
    usual = run(optimizer_of(plain, lambda step: 0.1))
    assert not same(found, usual)
    assert same(usual, run(optim.OPTIMIZERS[name](0.1, **({"momentum": 0.9} if name == "sgd" else {}))))
    for option in options:
        fewer = {key: value for key, value in options.items() if key != option}
        assert not same(run(optimizer_of(Settings(optimizer=name, lr=0.1, **fewer), lambda step: 0.1)), found)


def test_every_optimizer_has_a_usual_rate():
    assert USUAL.keys() == optim.OPTIMIZERS.keys() == UPDATES.keys()
    assert building.usual(Settings(lr=0.5)) == {"lr": 0.5}
    assert building.usual(Settings(optimizer="sgd")) == {"lr": 0.05, "momentum": 0.9}
    assert rates(lr=None)[0] == 0.05


def test_clipping():
    """A gradient of norm 5 becomes one of norm 0.1."""
    optimizer = optimizer_of(Settings(optimizer="sgd", momentum=0, clip_norm=0.1), lambda step: 1.0)
    params, _ = optimizer.update(
        {"w": np.array([3.0]), "v": np.array([4.0])}, {}, {"w": np.zeros(1), "v": np.zeros(1)}, 0
    )
    np.testing.assert_allclose([params["w"][0], params["v"][0]], [-0.06, -0.08], rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"optimizer": "adagrad", "momentum": 0.9}, "adagrad has no momentum; it has lr, eps."),
        ({"optimizer": "adam", "weight_decay": 0.1}, "adam has no weight_decay; it has lr, beta1, beta2, eps."),
        ({"optimizer": "sgd", "beta1": 0.9}, "sgd has no beta1; it has lr, momentum, nesterov, weight_decay."),
        ({"optimizer": "muon", "eps": 0.9}, "muon has no eps; it has lr, momentum, nesterov, weight_decay."),
        (
            {"optimizer": "rmsprop", "nesterov": True},
            "rmsprop has no nesterov; it has lr, momentum, weight_decay, eps.",
        ),
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0}, "nesterov"),
    ],
)
def test_options_that_an_optimizer_has_not(given, says):
    with pytest.raises(XpcnnError) as caught:
        optimizer_of(Settings(**given), lambda step: 0.1)
    assert says in str(caught.value)
    assert len(set(OPTIONS)) == 6


def cross_entropy(logits, targets, weights=None):
    """Return the weighted mean of -Σ target·log p over the images, in a loop."""
    total = weight = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_p = row - math.log(sum(math.exp(value) for value in row))
        own = [1.0] * len(row) if weights is None else weights
        total -= sum(w * t * p for w, t, p in zip(own, target, log_p, strict=True))
        weight += own[int(np.argmax(target))]
    return total / weight


def test_losses(rng):
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    data = xc.Dataset(np.zeros((10, 1, 6, 6), np.uint8), labels, ("a", "b", "c"))
    model = xc.Model(xc.layers.Sequential(xc.layers.Affine(CLASSES), input_shape=(1, 6, 6)), "cpu", dtype="float64")
    logits, one_hot = rng.standard_normal((10, CLASSES)), np.eye(CLASSES)[labels]
    assert loss_of(Settings(), data, model) == "softmax_cross_entropy"
    forward, backward = loss_of(Settings(label_smoothing=0.3), data, model)
    loss, saved = forward(logits, labels)
    assert float(loss) == pytest.approx(cross_entropy(logits, 0.7 * one_hot + 0.1), rel=1e-12)
    assert backward(saved).shape == logits.shape
    forward, _ = loss_of(Settings(class_weights="balanced"), data, model)
    weights = [10 / (3 * 6), 10 / (3 * 3), 10 / (3 * 1)]  # by hand: n / (classes · count)
    assert float(forward(logits, labels)[0]) == pytest.approx(cross_entropy(logits, one_hot, weights), rel=1e-12)
    assert float(forward(logits, labels)[0]) != pytest.approx(cross_entropy(logits, one_hot), rel=1e-3)


def test_both_losses_are_pytorchs(rng):
    torch = pytest.importorskip("torch")
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    data = xc.Dataset(np.zeros((9, 1, 6, 6), np.uint8), labels, ("a", "b", "c"))
    model = xc.Model(xc.layers.Sequential(xc.layers.Affine(CLASSES), input_shape=(1, 6, 6)), "cpu", dtype="float64")
    forward, backward = loss_of(Settings(label_smoothing=0.2, class_weights="balanced"), data, model)
    logits = rng.standard_normal((9, CLASSES))
    loss, saved = forward(logits, labels)
    theirs = torch.tensor(logits, requires_grad=True)
    weights = torch.tensor([9 / (3 * n) for n in (3, 2, 4)], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels), weights, label_smoothing=0.2)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-12)
    np.testing.assert_allclose(backward(saved), theirs.grad.numpy(), rtol=0, atol=1e-14)


def test_a_class_without_images_has_no_weight():
    data = xc.Dataset(np.zeros((3, 1, 6, 6), np.uint8), np.array([0, 2, 2]), ("cat", "dog", "fish"))
    model = xc.Model(xc.layers.Sequential(xc.layers.Affine(CLASSES), input_shape=(1, 6, 6)), "cpu")
    with pytest.raises(XpcnnError, match="class_weights balanced needs images of every class, but dog has none"):
        loss_of(Settings(class_weights="balanced"), data, model)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_standard_pixels(lazy, at_once, monkeypatch):
    monkeypatch.setattr(building, "AT_ONCE", at_once)
    images, labels = pictures(30)
    images[:, :, :3] //= 4  # not symmetric
    found = standard(Lazy(images, labels) if lazy else xc.Dataset(images, labels))
    pixels = images / 255
    assert found.mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert found.std == pytest.approx(pixels.std(), rel=1e-12)
    normalised = found(images, "float64", np)
    assert (normalised.mean(), normalised.std()) == pytest.approx((0, 1), abs=1e-9)


@pytest.mark.parametrize("value", [0, 255])
def test_standard_pixels_of_one_value(value):
    found = standard(xc.Dataset(np.full((3, 1, 6, 6), value, np.uint8), np.zeros(3, int)))
    assert (found.mean, found.std) == (value / 255, 1)
    assert not found(np.full((1, 1, 6, 6), value, np.uint8), "float64", np).any()


def test_all_of_it(file):
    settings = Settings(
        model="lenet5", dataset=file, normalise="standard", epochs=2, batch_size=4, optimizer="sgd", lr=0.3, seed=7,
        schedule="step", step_epochs=1, ema=0.5, dtype="float64", capture="off", device="cpu", clip_norm=2,
    )  # fmt: skip
    job = build(settings, xc.resolve_backend("cpu"))
    model, trainer = job.trainer.model, job.trainer
    assert (len(job.train), len(job.test), model.classes, model.dataset) == (10, 4, ("0", "1", "2"), file)
    assert (model.seed, model.dtype, model.output_shape) == (7, "float64", (3,))
    assert model.normalise.mean == pytest.approx(job.train.images.mean() / 255)
    assert (trainer.ema, trainer.capture, trainer.optimizer.name) == (0.5, "off", "sgd, clipped at 2")
    assert [job.schedule(step) for step in range(6)] == pytest.approx([0.3] * 3 + [0.03] * 3)  # 10 images, batches of 4
    dropped = build(Settings(**{**vars(settings), "drop_last": True}), xc.resolve_backend("cpu"))
    assert [dropped.schedule(step) for step in range(4)] == pytest.approx([0.3] * 2 + [0.03] * 2)


def test_files_of_settings(tmp_path):
    (tmp_path / "good.toml").write_text("[train]\nlr = 0.1\n", encoding="utf-8")
    assert read_tables(tmp_path / "good.toml") == {"train": {"lr": 0.1}}
    for content in (b"nonsense", b"\xff", b"x = " + b"[" * 5000, b"x = " + b"9" * 5000, b"[train]\n[train]\n"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(xc.DataError, match="is not a configuration file"):
            read_tables(tmp_path / "bad.toml")
    for missing in (tmp_path / "none.toml", tmp_path, "a\0b"):
        with pytest.raises(xc.DataError, match="there is no configuration file"):
            read_tables(missing)


def test_every_recipe_is_a_training():
    """Each recipe's settings are right, and belong together."""
    from xpcnn.training.build import recipe_tables, recipes
    from xpcnn.training.settings import from_tables

    for name in recipes():
        settings = from_tables(recipe_tables(name))
        assert recipe_tables(name).get("description")
        optimizer_of(settings, schedule_of(settings, 10))
    with pytest.raises(XpcnnError, match="there is no recipe mnist-bst"):
        recipe_tables("mnist-bst")
