"""The gradients of a batch, computed whole or in tiles whose gradients are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.kernels import memory
from xpcnn.layers.base import Arrays, Layer
from xpcnn.model import Model, batches
from xpcnn.random import Key

Loss = tuple[Callable[..., tuple[Array, Any]], Callable[[Any], Array]]


def whole_batch(
    model: Model, loss: Loss, x: Array, t: Array, key: Key, net: Layer | None = None
) -> tuple[Array, Arrays, Arrays]:
    """Return a batch's loss, its gradients and the new state; ``net`` may compute in place of the model's network."""
    own = model.computation.parameters(model.parameters())
    value, grads, state = _part(model, net or model.net, own, loss, x, t, key, 1.0)
    return value, model.computation.gradients(grads), state


def _part(
    model: Model, net: Layer, params: Arrays, loss: Loss, x: Array, t: Array, key: Key, share: float
) -> tuple[Array, Arrays, Arrays]:
    """Do it for a part of a batch, counted by its share; parameters and gradients are as the layers compute in."""
    compute = model.computation
    y, saved, state = net.forward(params, model.state(), compute.narrow(model.as_input(x)), train=True, key=key)
    value, loss_saved = loss[0](compute.widen(y), t)
    dy = loss[1](loss_saved)
    if share != 1.0:
        value, dy = value * share, dy * share
    _, grads = net.backward(params, compute.narrow(dy), saved, need_dx=False)
    return value, grads, state


def tiles_of_a_mean(model: Model, loss: Loss, x: Array, t: Array, key: Key, tile: int) -> tuple[Array, Arrays, Arrays]:
    """Do the same tile by tile, for a loss that is a mean over the images of a batch."""
    count = x.shape[0]
    if t.shape[:1] != x.shape[:1]:
        raise XpcnnError(f"there must be one target per image: {count} images, targets of shape {tuple(t.shape)}.")
    compute, params = model.computation, model.computation.parameters(model.parameters())
    values: list[Array] = []
    sums: Arrays = {}
    for rows in _tiles(count, tile):
        share = (rows.stop - rows.start) / count
        own = replace(key, row=key.row + rows.start)
        value, grads, _ = _part(model, model.net, params, loss, x[rows, ...], t[rows, ...], own, share)
        values.append(value)
        _add(sums, compute.gradients(grads))
    return sum(values[1:], start=values[0]), sums, model.state()


def tiles_of_any(model: Model, loss: Loss, x: Array, t: Array, key: Key, tile: int) -> tuple[Array, Arrays, Arrays]:
    """Do the same for any loss, which is given the outputs of the whole batch; each tile's forward runs twice."""
    compute, state = model.computation, model.state()
    params = compute.parameters(model.parameters())

    def forward(rows: slice) -> tuple[Array, Any]:
        own = replace(key, row=key.row + rows.start)
        images = compute.narrow(model.as_input(x[rows, ...]))
        return model.net.forward(params, state, images, train=True, key=own)[:2]

    outputs = [compute.widen(forward(rows)[0]) for rows in _tiles(x.shape[0], tile)]
    value, loss_saved = loss[0](model.backend.xp.concat(outputs, axis=0), t)
    dy = loss[1](loss_saved)
    sums: Arrays = {}
    for rows in _tiles(x.shape[0], tile):
        own_dy = compute.narrow(dy[rows, ...])
        _add(sums, compute.gradients(model.net.backward(params, own_dy, forward(rows)[1], need_dx=False)[1]))
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
