"""Numbers that are no numbers any more: the step and the layer are named, and the model is left as it was before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from array_api_compat import array_namespace
from tiny import pictures, trainer

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import optim

CURES = "; a smaller learning rate, a warm-up or clip_norm may help."


@dataclass(frozen=True)
class Times(la.Layer):
    """Multiplies, so that what comes out may be more than float32 has."""

    factor: float

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, params, state, x, *, train=False, key=None):
        return x * self.factor, None, state

    def backward(self, params, dy, saved, *, need_dx=True):
        return dy * self.factor, {}


@pytest.fixture(autouse=True)
def overflows_are_wanted():
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(params=["auto", "off"])
def capture(request):
    return request.param


EMULATED = (
    "test_a_step_too_far",
    "test_a_restored_epoch_names_the_same",
    "test_the_last_update_of_an_epoch[auto-numpy-as-cuda-8]",
)


@pytest.fixture
def backend(arrays, capture, request):
    if arrays.id not in ("numpy", "numpy-as-cuda", "torch", "cupy") or (capture == "off" and "cu" not in arrays.id):
        pytest.skip("says nothing new")
    if arrays.id == "numpy-as-cuda" and (
        capture == "off" or not {request.node.originalname, request.node.name} & set(EMULATED)
    ):
        pytest.skip("takes long where CUDA is emulated")
    return arrays.backend


def fails(one, data=None, batch_size=6, **options):
    """Train and return the sentence that it ends with."""
    with pytest.raises(xc.XpcnnError) as caught:
        one.fit(data or pictures(), epochs=3, batch_size=batch_size, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_finite(one):
    arrays = (one.model.parameters() | one.model.state()).values()
    return all(np.isfinite(one.model.backend.to_numpy(array)).all() for array in arrays)


def schedule(step):
    """Return a rate that is harmless before the sixth update, whose weights are then large, but numbers."""
    return 1e16 if step == 5 else 1e-3


def deep():
    layers = la.Conv2D(3, 3), la.ReLU(), la.Flatten(), la.Affine(4), la.ReLU(), la.Affine(3)
    return la.Sequential(*layers, input_shape=(1, 6, 6))


def test_a_step_too_far(backend, capture):
    """The sixth update makes weights of about 1e15; in the seventh step the second layer gives 1e31, and the third overflows."""
    one = trainer(backend, optim.sgd(schedule), net=deep(), capture=capture)
    done = []
    says = fails(one, on_step=lambda epoch, images: done.append((epoch, images)))
    assert (
        says
        == f"the loss is no longer a number in step 7, in epoch 2: affine2 is the first layer whose output is not finite{CURES}"
    )
    assert (one.steps, one.progress.batch) == (6, 2)
    assert is_finite(one)
    assert done[-1] == (2, 12) or backend.name != "numpy" or len(done) == 8  # NumPy sees it at once, graphs at the end
    params = {path: np.abs(one.model.backend.to_numpy(a)).max() for path, a in one.model.parameters().items()}
    assert max(params.values()) > 1e13  # as they were after the sixth


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_first_layer_is_named(backend, capture, place):
    parts = [la.Conv2D(3, 3), la.ReLU(), la.Flatten(), la.Affine(4), la.ReLU(), la.Affine(3)]
    parts.insert(place, Times(1e38))
    parts.insert(place + 1, Times(1e3))
    one = trainer(backend, optim.sgd(0.1), net=la.Sequential(*parts, input_shape=(1, 6, 6)), capture=capture)
    says = fails(one)
    assert says.startswith("the loss is no longer a number in step 1, in epoch 1: layer2 is the first layer whose")
    assert is_finite(one)
    assert one.steps == 0


def test_images_that_are_no_numbers(backend, capture):
    images, labels = pictures()
    images = images.astype(np.float32)
    images[13, 0, 2, 2] = np.nan
    one = trainer(backend, optim.sgd(1e-6), net=deep(), capture=capture)
    order = xc.random.Key(4).child("shuffle", 1).generator().permutation(22)
    step = 1 + int(np.flatnonzero(order == 13)[0]) // 6
    assert f"in step {step}, in epoch 1: the images hold values that are not finite" in fails(one, (images, labels))
    assert is_finite(one)


def test_weights_that_are_no_numbers(backend, capture):
    one = trainer(backend, optim.sgd(1e-3), net=deep(), capture=capture)
    one.model.load_parameters(one.model.parameters() | {"affine1/bias": np.full(4, np.inf)})
    assert "in step 1, in epoch 1: affine1/bias is not finite, so the update before it went wrong" in fails(one)


def test_a_loss_of_ones_own(backend, capture):
    def forward(y, t):
        zero = array_namespace(y).mean(y * 0.0)
        return zero / zero, y

    one = trainer(backend, optim.sgd(1e-3), net=deep(), capture=capture, loss=(forward, lambda y: y))
    assert "in step 1, in epoch 1: every layer's output is finite, but the loss is not" in fails(one)


@pytest.mark.parametrize("last", [4, 8])
def test_the_last_update_of_an_epoch(backend, capture, last):
    """No loss shows it any more, and what comes after the epoch would be kept: the model as the best, and a checkpoint."""
    one = trainer(backend, optim.sgd(lambda step: 1e39 if step == last - 1 else 1e-3), net=deep(), capture=capture)
    heard = []
    says = fails(one, on_epoch=lambda epoch, losses: heard.append(epoch.epoch))
    assert says.endswith(f" is no longer finite after step {last}, in epoch {last // 4}{CURES}")
    assert heard == list(range(last // 4))
    assert is_finite(one)


@pytest.mark.parametrize("every", [1, 3])
def test_checkpoints_meanwhile(backend, capture, every, tmp_path):
    """Where a callback saves, it fails first, but the sentence is as good; what was saved last can be gone on from."""
    one = trainer(backend, optim.sgd(schedule), net=deep(), capture=capture)
    count = [0]

    def on_step(epoch, images):
        count[0] += 1
        if count[0] % every == 0:
            one.save(tmp_path / "checkpoint")

    says = fails(one, on_step=on_step)
    assert "in step 7, in epoch 2: affine2 is the first layer whose output is not finite" in says
    assert is_finite(one)
    after = trainer(backend, optim.sgd(schedule), net=deep(), capture=capture)
    after.restore(tmp_path / "checkpoint")
    assert after.steps == 6
    assert is_finite(after)
    assert fails(after) == says


def test_a_restored_epoch_names_the_same(backend, capture, tmp_path):
    """Its first losses are from the checkpoint, and are not made again."""
    one = trainer(backend, optim.sgd(lambda step: 1e16 if step == 6 else 1e-3), net=deep(), capture=capture)
    one.fit(pictures(), epochs=3, batch_size=6, on_step=lambda epoch, images: one.steps == 5)
    one.save(tmp_path / "checkpoint")
    after = trainer(backend, one.optimizer, net=deep(), capture=capture)
    after.restore(tmp_path / "checkpoint")
    says = fails(after)
    assert "in step 8, in epoch 2: affine2 is the first layer" in says
    assert (after.steps, after.progress.batch) == (7, 3)


def test_with_augmentation_and_averages(backend, capture):
    from xpcnn.data import Augment

    one = trainer(backend, optim.sgd(schedule), net=deep(), capture=capture, ema=0.9)
    says = fails(one, augment=Augment(flip=True, mixup=0.3))
    assert "in step 7, in epoch 2: affine2 is the first layer" in says
    assert is_finite(one)
    assert all(np.isfinite(one.model.backend.to_numpy(a)).all() for a in one.average.values())
