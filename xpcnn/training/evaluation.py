"""Accuracy and loss on labelled images, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.data import Dataset, Loader, Source
from xpcnn.data.dataset import Part
from xpcnn.errors import ArrayTypeError, XpcnnError, whole
from xpcnn.model import Model, batches
from xpcnn.parallel import Group, share


def evaluate(
    model: Model,
    data: Source,
    images: Array | None = None,
    batch_size: int | None = None,
    group: Group | None = None,
) -> tuple[float, float]:
    """Return the accuracy (a fraction) and the mean loss of a model on labelled images, in bounded memory.

    ``images`` may give the data set's images where they already lie on the model's device; ``batch_size`` says how
    many to compute at a time, `Model.images_at_once` or fewer. Each rank of a group computes its part.
    """
    most = model.images_at_once
    batch_size = most if batch_size is None else min(most, whole("batch_size", batch_size, 1))
    if not len(data):
        raise XpcnnError("there are no images to evaluate.")
    backend, xp = model.backend, model.backend.xp
    right, loss = [], []
    group = Group() if group is None else group
    own = share(len(data), group.rank, group.size)
    with backend.context():
        labels = backend.asarray(data.labels)
        for rows, part in _parts(model, data, images, batch_size, own):
            logits = model.predict(part)
            right.append(xp.sum(xp.astype(xp.argmax(logits, axis=1) == labels[rows], xp.int64)))
            loss.append(ops.softmax_cross_entropy(logits, labels[rows], reduction="sum")[0])
        correct = int(backend.to_numpy(xp.stack(right)).sum()) if right else 0
        total = math.fsum(map(float, backend.to_numpy(xp.stack(loss)))) if loss else 0.0
    told = group.gathered([correct, total])
    return sum(one[0] for one in told) / len(data), math.fsum(one[1] for one in told) / len(data)


def _parts(
    model: Model, data: Source, images: Array | None, batch_size: int, own: slice
) -> Iterator[tuple[slice, Array]]:
    """Yield which rows they are and their images on the device; what is read from files is read ahead."""
    if own.start == own.stop:
        return
    if images is None and isinstance(data, Dataset):
        images = model.backend.asarray(data.images)
    if images is not None:
        for rows in _rows(own, batch_size):
            yield rows, images[rows, ...]
        return
    loader = Loader(Part(data, own), batch_size, shuffle=False)
    for rows, (part, _) in zip(_rows(own, batch_size), loader.epoch(0), strict=True):
        yield rows, model.backend.asarray(part)


def _rows(own: slice, size: int) -> list[slice]:
    """Cut rows into batches."""
    return [slice(own.start + one.start, own.start + one.stop) for one in batches(own.stop - own.start, size)]


def as_source(data: Source | tuple[Any, Any]) -> Source:
    """Return a source of labelled images from one, or from a pair of host arrays."""
    if isinstance(data, Source):
        return data
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise XpcnnError("data must be a Dataset or a pair (images, labels).")
    for part in data:
        if is_array_api_obj(part) and not isinstance(part, np.ndarray):
            raise ArrayTypeError(f"data must be NumPy arrays, got {type(part).__name__} (backend.to_numpy makes one).")
    return Dataset(np.asarray(data[0]), np.asarray(data[1]))
