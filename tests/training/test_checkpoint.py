"""Checkpoints: whatever step a training stops after, it ends with the bits of one that did not stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import Lazy, assert_held, held, pictures, records, trainer

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import optim
from xpcnn.data import Augment
from xpcnn.training.checkpoint import peek

EPOCHS = 2


@dataclass(frozen=True)
class Case:
    """A training: its optimizer, the trainer's options, fit's options."""

    optimizer: optim.Optimizer
    options: dict[str, Any] = field(default_factory=dict)
    fitting: dict[str, Any] = field(default_factory=dict)

    def begin(self, backend, **more):
        return trainer(backend, self.optimizer, **self.options | more)

    def fit(self, one, train=None, **callbacks):
        options = {"epochs": EPOCHS, "batch_size": 6} | self.fitting
        return one.fit(train or pictures(), pictures(10, 5), **options, **callbacks)


def falling(step):
    return 0.05 / (1 + step)


CASES = {
    "sgd-clipped": Case(optim.clip_by_norm(optim.sgd(falling, 0.9, nesterov=True, weight_decay=0.01), 0.5)),
    "sgd-ema": Case(optim.sgd(0.05), {"ema": 0.9}),
    "adam-mixup": Case(optim.adam(0.01), {}, {"augment": Augment(crop=1, flip=True, mixup=0.4)}),
    "adamw-ema": Case(optim.adamw(0.01, weight_decay=0.1), {"ema": 0.7}, {"evaluate_every": 2}),
    "muon-float64": Case(optim.muon(0.02), {"dtype": "float64"}, {"drop_last": True}),
    "rmsprop-everything": Case(
        optim.clip_by_norm(optim.rmsprop(0.01, momentum=0.5, weight_decay=0.01), 1.0),
        {"ema": 0.8},
        {"augment": Augment(rotate=20, cutout=2, cutmix=0.5), "drop_last": True, "evaluate_train": False},
    ),
}


EMULATED = ("sgd-ema", "auto"), ("rmsprop-everything", "auto"), ("sgd-clipped", "off")


def stopped(case, backend, where, path, train=None, **options):
    """Train until after a step (or, at a negative number, an epoch) and save there; return losses, epochs and a note."""
    one = case.begin(backend, **options)
    count, seen = [0], []

    def on_step(epoch, images):
        count[0] += 1
        return count[0] == where

    def on_epoch(epoch, losses):
        seen.append((epoch, losses))
        return epoch.epoch == -where - 1

    history = case.fit(one, train, on_step=on_step, on_epoch=on_epoch)
    assert history.stopped
    one.save(path, note=where)
    return seen, one.capture_note


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("capture", ["auto", "off"])
def test_it_goes_on_from_after_every_step(arrays, name, capture, tmp_path):
    """The stops are after each step and after each epoch, the one before training included."""
    quick = arrays.id in ("numpy", "torch", "cupy")
    if arrays.id not in ("numpy", "torch", "numpy-as-cuda", "cupy") or (capture == "off" and "cu" not in arrays.id):
        pytest.skip("goes the way of another backend, which is tested")
    if not quick and (name, capture) not in EMULATED:
        pytest.skip("takes long where CUDA is emulated")
    case, path = CASES[name], tmp_path / "checkpoint"
    whole, told = case.begin(arrays.backend, capture=capture), []
    history = case.fit(whole, on_epoch=lambda epoch, losses: told.append((epoch, losses)))
    expected, steps = held(whole), whole.steps
    assert steps == EPOCHS * (3 if "drop_last" in case.fitting else 4)
    for where in (*range(1, steps + 1), *range(-1, -1 - EPOCHS, -1)) if quick else (2, 5):
        before, note = stopped(case, arrays.backend, where, path, capture=capture)
        assert note == "" or not name.startswith("sgd")  # these are recorded, where a backend can
        after = case.begin(arrays.backend, capture=capture)
        assert after.restore(path) == {"note": where}
        assert after.steps == (where if where > 0 else (-where - 1) * steps // EPOCHS)
        seen = []
        again = case.fit(after, on_epoch=lambda epoch, losses, seen=seen: seen.append((epoch, losses)))
        assert_held(after, expected)
        assert after.steps == steps
        assert records(epoch for epoch, _ in before + seen) == records(history.epochs)
        assert [losses for _, losses in before + seen] == [losses for _, losses in told]
        assert records(again.epochs) == records(history.epochs[len(before) :])


def test_saving_in_callbacks_changes_nothing(arrays, tmp_path):
    """And what is saved there are the weights, not the averages that `on_epoch` is shown."""
    if arrays.id not in ("numpy", "torch", "numpy-as-cuda", "cupy", "array_api_strict"):
        pytest.skip("goes the way of another backend, which is tested")
    case = CASES["sgd-ema"]
    quiet, saving = case.begin(arrays.backend), case.begin(arrays.backend)
    case.fit(quiet)
    steps, names = [0], []

    def save():
        names.append(tmp_path / f"{len(names)}")
        saving.save(names[-1])

    def on_step(epoch, images):
        steps[0] += 1
        save()

    case.fit(saving, on_step=on_step, on_epoch=lambda epoch, losses: save())
    expected = held(quiet)
    assert_held(saving, expected)
    for path in names if arrays.id != "numpy-as-cuda" else names[5:6]:
        after = case.begin(arrays.backend)
        after.restore(path)
        case.fit(after)
        assert_held(after, expected)
    at_end = load_file(names[-1])
    assert not np.array_equal(at_end["parameters/affine1/weight"], expected["shown/affine1/weight"])
    np.testing.assert_array_equal(at_end["average/affine1/weight"], expected["shown/affine1/weight"])


@pytest.mark.parametrize("pair", [("numpy", "torch"), ("torch", "numpy"), ("numpy", "numpy-as-cuda")], ids="-to-".join)
def test_it_goes_on_on_another_device(pair, tmp_path, monkeypatch):
    """What ends close to the uninterrupted run went on from the same arrays; compared in float64."""
    from conftest import installed, make_arrays

    if not set(pair) <= set(installed()):
        pytest.skip("a backend is missing")
    case = CASES["muon-float64"] if "numpy-as-cuda" not in pair else CASES["sgd-ema"]
    options = {"ema": 0.9, "dtype": "float64"}
    first, second = (make_arrays(name).backend for name in pair)
    whole = case.begin(first, **options)
    case.fit(whole)
    expected = held(whole)
    stopped(case, first, 5, tmp_path / "checkpoint", **options)
    if pair[1] == "numpy-as-cuda":
        import emulator

        emulator.install(monkeypatch)
    after = case.begin(second, **options)
    after.restore(tmp_path / "checkpoint")
    case.fit(after)
    assert_held(after, expected, 1e-9)


def test_images_from_files_go_on_too(tmp_path):
    case = CASES["adam-mixup"]
    images, labels = pictures()
    whole = case.begin("cpu")
    case.fit(whole, (images, labels))
    for where in (2, 4, 7):
        stopped(case, "cpu", where, tmp_path / "checkpoint", Lazy(images, labels))
        after = case.begin("cpu")
        after.restore(tmp_path / "checkpoint")
        case.fit(after, Lazy(images, labels))
        assert_held(after, held(whole))


@pytest.fixture
def saved(tmp_path):
    """Return a checkpoint after five steps."""
    stopped(CASES["sgd-ema"], "cpu", 5, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"net": la.Sequential(la.Flatten(), la.Affine(3), input_shape=(1, 6, 6))}, "is of another network."),
        ({"optimizer": optim.adam(0.01)}, "is of another optimizer: 'sgd', not 'adam'."),
        ({"optimizer": optim.clip_by_norm(optim.sgd(0.05), 2)}, "another optimizer: 'sgd', not 'sgd, clipped at 2'."),
        ({"optimizer": optim.sgd(0.05, 0.9)}, "moments/velocity/"),
        ({"seed": 5}, "is of another seed: 4, not 5."),
        ({"ema": 0.8}, "is of another ema: 0.9, not 0.8."),
        ({"ema": None}, "is of another ema: 0.9, not None."),
        ({"dtype": "float64"}, "is of another dtype: 'float32', not 'float64'."),
    ],
)
def test_another_training_is_refused(saved, other, says):
    """And nothing is changed then."""
    one = trainer("cpu", **{"optimizer": optim.sgd(0.05), "ema": 0.9} | other)
    before = held(one)
    with pytest.raises(xc.XpcnnError) as caught:
        one.restore(saved)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_held(one, before)
    assert (one.steps, one.restored) == (0, False)


def test_it_goes_on_with_batches_of_the_same_size(tmp_path, arrays):
    if arrays.id not in ("numpy", "array_api_strict"):
        pytest.skip("goes the way of another backend, which is tested")
    case = CASES["sgd-ema"]
    stopped(case, arrays.backend, 3, tmp_path / "saved")
    after = case.begin(arrays.backend)
    after.restore(tmp_path / "saved")
    with pytest.raises(xc.XpcnnError, match="stopped after batch 3, but an epoch has 2 batches"):
        after.fit(pictures(), epochs=2, batch_size=11)
    assert after.steps == 3


def test_a_model_is_no_checkpoint_and_a_checkpoint_no_model(saved, tmp_path):
    one = CASES["sgd-ema"].begin("cpu")
    one.model.save(tmp_path / "model")
    for read in (one.restore, peek):
        with pytest.raises(xc.DataError, match=r"model is not a checkpoint of xpcnn\.$"):
            read(tmp_path / "model")
    with pytest.raises(xc.DataError, match="saved is no model but a checkpoint"):
        xc.Model.load(saved, "cpu")


def test_what_is_no_file_of_ours(tmp_path):
    save_file({"parameters/x": np.zeros(3, np.float32)}, tmp_path / "foreign")
    (tmp_path / "empty").touch()
    one = CASES["sgd-ema"].begin("cpu")
    for name, says in (
        ("foreign", "not one that xpcnn wrote"), ("none", "does not exist"), ("", "is a directory"),
        ("empty", "not a whole safetensors file"),
    ):  # fmt: skip
        with pytest.raises(xc.DataError, match=says):
            one.restore(tmp_path / name)


def test_restoring_while_averages_are_shown(saved, tmp_path):
    """A trainer that has trained already holds what was saved, and saves that again."""
    case = CASES["sgd-ema"]
    one, fresh = case.begin("cpu"), case.begin("cpu")
    case.fit(one)
    for each in (one, fresh):
        each.restore(saved)
    assert_held(one, held(fresh))
    one.save(tmp_path / "again")
    first, again = load_file(saved), load_file(tmp_path / "again")
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_extra_comes_back_and_restore_may_be_followed_by_steps(tmp_path):
    case = CASES["sgd-clipped"]
    one, two = case.begin("cpu"), case.begin("cpu")
    x, t = pictures(12)
    extra = {"text": 'a "b" é 😀\n', "number": 1e-300, "list": [1, None, True], "table": {"x": 0.1}}
    for start in (0, 4):
        one.step(x[start : start + 4], t[start : start + 4])
    one.save(tmp_path / "checkpoint", **extra)
    assert peek(tmp_path / "checkpoint") == extra
    assert two.restore(tmp_path / "checkpoint") == extra
    assert two.steps == 2
    losses = [float(each.step(x[8:], t[8:])) for each in (one, two)]
    assert losses[0] == losses[1]
    assert_held(two, held(one))


@pytest.mark.parametrize("where", ["loss", "weight", "state"])
def test_what_is_not_finite_is_not_saved(saved, where):
    before = saved.read_bytes()
    one = CASES["sgd-ema"].begin("cpu")
    params, state = one.model.parameters(), one.model.state()
    one.progress.losses, one.progress.batch = [0.5, float("nan") if where == "loss" else 0.5], 2
    statistic = next(path for path in state if path.endswith("/var"))
    path = {"loss": "the loss", "weight": "parameters/affine1/bias", "state": f"state/{statistic}"}[where]
    for arrays in (params, state):
        name = path.partition("/")[2]
        if name in arrays:
            arrays[name] = np.full_like(arrays[name], np.inf)
    one.model.replace_arrays(params, state)
    with pytest.raises(xc.XpcnnError, match=f"^{path} is no longer .*nothing worth a checkpoint"):
        one.save(saved)
    assert saved.read_bytes() == before


def test_a_save_that_fails_leaves_the_old_one(saved, monkeypatch):
    one = CASES["sgd-ema"].begin("cpu")
    before = saved.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync", "chmod"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", full)
            with pytest.raises(OSError, match="No space"):
                one.save(saved)
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == ["saved"]
