"""Trainings that take a moment, so that they can be stopped after every step, and all that they end with."""

from __future__ import annotations

import numpy as np

import xpcnn as xc
from xpcnn import layers as la
from xpcnn.data import Source
from xpcnn.data.dataset import digest
from xpcnn.training.checkpoint import named

SHAPE = (1, 6, 6)
CLASSES = 3


def pictures(count=22, seed=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *SHAPE), np.uint8), rng.integers(0, CLASSES, count)


def network():
    """Return a network with everything that a training must not forget: statistics, and random numbers of its own."""
    parts = la.Conv2D(4, 3, bias=False), la.BatchNorm(), la.ReLU(), la.Flatten(), la.Dropout(0.3), la.Affine(CLASSES)
    return la.Sequential(*parts, input_shape=SHAPE)


class Lazy(Source):
    """Images as files have them: read when they are asked for, never there as a whole."""

    def __init__(self, images, labels, classes=()):
        self._images, self.labels, self.classes = images, labels, classes

    @property
    def image_shape(self):
        return self._images.shape[1:]

    def read(self, rows):
        return self._images[rows]

    def fingerprint(self):
        return digest(self._images, self.labels)


def held(trainer):
    """Return all arrays of a trainer, and what the model shows, as NumPy copies."""
    model = trainer.model
    shown = {f"shown/{path}": array for path, array in (model.parameters() | model.state()).items()}
    return {name: np.array(model.backend.to_numpy(array)) for name, array in (named(trainer) | shown).items()}


def assert_held(trainer, expected, tolerance=0.0):
    found = held(trainer)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance, err_msg=name)


def records(epochs):
    """Return epochs' records without what a clock says."""
    return [{k: v for k, v in epoch.as_dict().items() if "second" not in k} for epoch in epochs]


def trainer(backend, optimizer, *, net=None, seed=4, dtype="float32", **options):
    model = xc.Model(net or network(), backend, seed, dtype=dtype)
    return xc.Trainer(model, optimizer, **options)
