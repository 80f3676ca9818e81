"""A step that several processes make together: each computes its rows of the batch, the gradients are added up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import xpcnn
from xpcnn.backend import Array, Backend
from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays, Layer
from xpcnn.layers.describe import replaced
from xpcnn.layers.norm import synchronised
from xpcnn.parallel import Group, share
from xpcnn.training.tiling import Loss

SOURCES = (".py", ".c", ".h", ".cu", ".cuh")


def parts(count: int, size: int) -> list[int]:
    """Return how many of a batch's images each rank computes."""
    own = (share(count, rank, size) for rank in range(size))
    return [rows.stop - rows.start for rows in own]


def shared_loss(loss: Loss, group: Group, counts: Sequence[int], backend: Backend) -> Loss:
    """Return a loss that is given a rank's outputs and targets, and is that of the whole batch on every rank.

    Outputs are few, so every rank is sent all of them and computes all of the loss: whatever a loss does with a batch,
    the result is that of one process, and each rank has its rows of the gradient.
    """
    end = list(accumulate(counts))[group.rank]

    def forward(y: Array, t: Array) -> tuple[Array, Any]:
        return loss[0](group.joined(y, counts, backend), group.joined(t, counts, backend))

    def backward(saved: Any) -> Array:
        return loss[1](saved)[end - counts[group.rank] : end, ...]

    return forward, backward


def sync_net(net: Layer, group: Group, backend: Backend) -> Layer:
    """Return a network whose batch norms take the statistics of the whole batch."""
    synced: Layer = replaced(net, partial(synchronised, total=partial(group.sum, backend=backend)))
    return synced


def summed(
    grads: Arrays, state: Arrays, weight: float, group: Group, backend: Backend, lasting: bool = True
) -> tuple[Arrays, Arrays]:
    """Return the sum of all ranks' gradients, and the mean of their states by their weights, which add up to 1.

    Everything travels as one flat buffer, in one sum. State that is not floats is left as it is on this rank. Gradients
    that need not be ``lasting`` may be written over by the next sum.
    """
    xp = backend.xp
    moving = {path: array for path, array in state.items() if xp.isdtype(array.dtype, "real floating")}
    arrays = [*grads.values(), *(array * weight for array in moving.values())]
    if not arrays:
        return grads, state
    with backend.context():
        flat = group.flat_sum(arrays, backend)
        ends = list(accumulate(prod(array.shape) for array in arrays))
        new = [xp.reshape(flat[end - prod(a.shape) : end], a.shape) for a, end in zip(arrays, ends, strict=True)]
        means = [xp.asarray(array, copy=True) for array in new[len(grads) :]]
        sums = [xp.asarray(array, copy=True) for array in new[: len(grads)]] if lasting else new
    return dict(zip(grads, sums, strict=False)), state | dict(zip(moving, means, strict=True))


def versions() -> str:
    """Return what the results of a program depend on: xpcnn's version and sources, and NumPy's version."""
    sources = blake2b(digest_size=8)
    package = Path(xpcnn.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.suffix in SOURCES:
            sources.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return f"xpcnn {xpcnn.__version__} ({sources.hexdigest()}), NumPy {np.__version__}"


def check_weights(group: Group, params: Arrays, backend: Backend) -> None:
    """Raise, on all ranks, unless every rank has the same weights to the last bit."""
    if group.size == 1:
        return
    digest = blake2b(digest_size=16)
    for array in params.values():
        digest.update(np.ascontiguousarray(backend.to_numpy(array)).data)
    told = group.gathered(digest.hexdigest())
    if wrong := [rank for rank, text in enumerate(told) if text != told[0]]:
        raise XpcnnError(
            f"the weights of rank {wrong[0]} are not those of rank 0: they began with others (another seed), or their "
            "machines compute differently (other CPUs or kernels; XPCNN_KERNELS=numpy makes them more alike)."
        )


def broadcast(arrays: dict[str, Array], group: Group, backend: Backend) -> dict[str, Array]:
    """Return rank 0's arrays on every rank; names and shapes are the same on all."""
    counts = [1] + [0] * (group.size - 1)
    own = slice(0, counts[group.rank])
    with backend.context():
        return {
            path: group.joined(array[None, ...][own, ...], counts, backend)[0, ...] for path, array in arrays.items()
        }
