"""Clipping of gradients by their common norm."""

from __future__ import annotations

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.errors import XpcnnError
from xpcnn.optim.base import Optimizer, OptState, Params, within


def clip_by_norm(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """Return an optimizer that is given ``g · min(1, max_norm / ‖g‖)``, where ``‖g‖`` is the norm of all gradients.

    A norm that is not a finite number scales nothing, so that the gradients show what is wrong with them.

    Parameters
    ----------
    optimizer : Optimizer
        Stays as it is.
    max_norm : float
        Above 0.

    Returns
    -------
    Optimizer
        With the same state; its steps can be recorded where the given one's can.

    References
    ----------
    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1.
    """
    most = within("max_norm", max_norm, 0.0, float("inf"))
    if not most:
        raise XpcnnError("max_norm must be above 0; leave the clipping out to have none.")

    def prepare(grads: Params) -> Params:
        clipped = _clipped(grads, most)
        return clipped if optimizer.prepare is None else optimizer.prepare(clipped)

    def update(grads: Params, state: OptState, params: Params, step: int) -> tuple[Params, OptState]:
        return optimizer.update(_clipped(grads, most), state, params, step)

    return optimizer._replace(name=f"{optimizer.name}, clipped at {most:g}", update=update, prepare=prepare)


def _clipped(grads: Params, most: float) -> Params:
    """Return gradients whose common norm is at most a number; nothing waits for the device."""
    first = next(iter(grads.values()), None)
    if first is None:
        return grads
    xp = array_namespace(first)
    if (engine := kernels.of(xp).engine("optimizer", first)) and (found := engine.clipped(list(grads.values()), most)):
        return dict(zip(grads, found, strict=True))
    squares = [xp.sum(g * g) for g in grads.values()]
    norm = xp.sqrt(sum(squares[1:], start=squares[0]))
    scale = xp.where(xp.isfinite(norm), most / xp.maximum(norm, xp.full_like(norm, most)), xp.ones_like(norm))
    return {path: g * xp.astype(scale, g.dtype, copy=False) for path, g in grads.items()}
