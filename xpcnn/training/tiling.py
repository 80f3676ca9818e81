"""The gradients of a batch, computed whole or in tiles whose gradients are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.kernels import memory
from xpcnn.layers.base import Arrays
from xpcnn.model import Model, batches
from xpcnn.random import Key

Loss = tuple[Callable[..., tuple[Array, Any]], Callable[[Any], Array]]


def whole_batch(
    model: Model, loss: Loss, x: Array, t: Array, key: Key, share: float = 1.0
) -> tuple[Array, Arrays, Arrays]:
    """Return a batch's loss, its gradients and the new state; a tile's count by its share of the batch."""
    params = model.parameters()
    y, saved, state = model.net.forward(params, model.state(), model.as_input(x), train=True, key=key)
    value, loss_saved = loss[0](y, t)
    dy = loss[1](loss_saved)
    if share != 1.0:
        value, dy = value * share, dy * share
    _, grads = model.net.backward(params, dy, saved, need_dx=False)
    return value, grads, state


def tiles_of_a_mean(model: Model, loss: Loss, x: Array, t: Array, key: Key, tile: int) -> tuple[Array, Arrays, Arrays]:
    """Do the same tile by tile, for a loss that is a mean over the images of a batch."""
    count = x.shape[0]
    if t.shape[:1] != x.shape[:1]:
        raise XpcnnError(f"there must be one target per image: {count} images, targets of shape {tuple(t.shape)}.")
    values: list[Array] = []
    sums: Arrays = {}
    for rows in _tiles(count, tile):
        share = (rows.stop - rows.start) / count
        value, grads, _ = whole_batch(
            model, loss, x[rows, ...], t[rows, ...], replace(key, row=key.row + rows.start), share
        )
        values.append(value)
        _add(sums, grads)
    return sum(values[1:], start=values[0]), sums, model.state()


def tiles_of_any(model: Model, loss: Loss, x: Array, t: Array, key: Key, tile: int) -> tuple[Array, Arrays, Arrays]:
    """Do the same for any loss, which is given the outputs of the whole batch; each tile's forward runs twice."""
    params, state = model.parameters(), model.state()

    def forward(rows: slice) -> tuple[Array, Any]:
        own = replace(key, row=key.row + rows.start)
        return model.net.forward(params, state, model.as_input(x[rows, ...]), train=True, key=own)[:2]

    outputs = [forward(rows)[0] for rows in _tiles(x.shape[0], tile)]
    value, loss_saved = loss[0](model.backend.xp.concat(outputs, axis=0), t)
    dy = loss[1](loss_saved)
    sums: Arrays = {}
    for rows in _tiles(x.shape[0], tile):
        _add(sums, model.net.backward(params, dy[rows, ...], forward(rows)[1], need_dx=False)[1])
    return value, sums, state


def _tiles(count: int, tile: int) -> Iterator[slice]:
    """Cut a batch into tiles; memory that kernels keep at hand for one size is let go of before another."""
    for rows in batches(count, tile):
        if rows.stop - rows.start < tile:
            memory.release()
        yield rows
    if count % tile:
        memory.release()


def _add(sums: Arrays, grads: Arrays) -> None:
    """Add gradients to their sums, letting go of each as soon as it is added."""
    for path in list(grads):
        grad = grads.pop(path)
        sums[path] = sums[path] + grad if path in sums else grad
