"""Muon: steps of weights whose directions are all of about one size."""

from __future__ import annotations

from math import prod

from array_api_compat import array_namespace, device

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError, whole
from xpcnn.kernels import policy
from xpcnn.optim.base import Optimizer, OptState, Params, Schedule, decays, rate_of, within, zeros
from xpcnn.optim.optimizers import adamw

QUINTIC = 3.4445, -4.7750, 2.0315  # a, b, c of the published iteration
SMALLEST = 1e-7  # Frobenius norm that a matrix is taken to have at least
MOST_STEPS = 6  # beyond, rounding grows into what was no direction of the matrix
MOMENT = "orthogonalised"


def muon(
    lr: float | Schedule = 0.02,
    momentum: float = 0.95,
    *,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    ns_steps: int = 5,
    others: Optimizer | None = None,
) -> Optimizer:
    """Muon: ``v = μ·v + g; p = p - lr·(s·orthogonalised(v) + λ·p)`` (with Nesterov ``g + μ·v`` in place of v).

    It is for weights: what `decays` would shrink. A kernel of a convolution (F, C, KH, KW) counts as a matrix
    (F, C·KH·KW). The scale is ``s = √max(1, outputs / inputs)``, where a weight (in, out) of an affine layer has so
    many, and a kernel F and C·KH·KW. All other parameters, biases and norms, are left to another optimizer.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule ``step -> lr``.
    momentum : float
        μ in [0, 1).
    nesterov : bool
        Look ahead.
    weight_decay : float
        λ, by which the weights shrink.
    ns_steps : int
        Iterations of the orthogonalisation, from 1 to 6 (see `orthogonalised`).
    others : Optimizer, optional
        For all parameters but weights; `adamw` at a twentieth of lr if None.

    References
    ----------
    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    rate = rate_of(lr)
    mu = within("momentum", momentum, 0.0, 1.0)
    decay = within("weight_decay", weight_decay, 0.0, float("inf"))
    if whole("ns_steps", ns_steps, 1) > MOST_STEPS:
        raise XpcnnError(f"ns_steps must be a whole number from 1 to {MOST_STEPS}, not {ns_steps!r}.")
    rest = adamw(lambda step: rate(step) / 20) if others is None else others

    def init(params: Params) -> OptState:
        weights, spared = _parted(params)
        return {MOMENT: zeros(weights), **rest.init(spared)}

    def update(grads: Params, state: OptState, params: Params, step: int) -> tuple[Params, OptState]:
        weights, spared = _parted(params)
        own = {name: arrays for name, arrays in state.items() if name != MOMENT}
        new, changed = rest.update({path: grads[path] for path in spared}, own, spared, step)
        size = rate(step)
        velocity: Params = {}
        for path, p in weights.items():
            velocity[path], towards = _heavy(state[MOMENT][path], grads[path], mu, nesterov)
            new[path] = _moved(p, orthogonalised(towards, ns_steps), size, decay)
        return {path: new[path] for path in params}, {MOMENT: velocity, **changed}

    return Optimizer("muon", init, update)


def orthogonalised(g: Array, ns_steps: int = 5) -> Array:
    """Return g with its singular values brought near 1, each between about 0.7 and 1.2, by Newton-Schulz iterations.

    With ``X = G/‖G‖``, an iteration is ``X ← a·X + b·(XXᵀ)X + c·(XXᵀ)²X``. Each multiplies X by a polynomial of
    ``A = XXᵀ``, so that A is followed, which is no larger than X's shorter side: ``Q = a·I + b·A + c·A²; P ← Q·P;
    A ← Q·A·Q``, and ``P·X`` comes last. Products are not rounded to TF32: A must stay positive.

    Parameters
    ----------
    g : array (M, ...)
        A matrix, or what counts as one of M rows.
    ns_steps : int
        Iterations, at most 6; five are enough for singular values above a hundredth of the norm.

    Returns
    -------
    array (M, ...)
        Of g's shape.
    """
    x = array_namespace(g).reshape(g, (g.shape[0], -1))
    with policy.use(products="float32"):
        return array_namespace(g).reshape(_iterated(x, ns_steps), g.shape)


def _iterated(x: Array, ns_steps: int) -> Array:
    """Return a matrix (M, N) after its iterations."""
    xp = array_namespace(x)
    matmul = kernels.of(xp).matmul
    wide = x.shape[0] <= x.shape[1]
    gram = matmul(x, x.T, xp) if wide else matmul(x.T, x, xp)
    one = xp.eye(gram.shape[0], dtype=x.dtype, device=device(x))
    norm = xp.sqrt(xp.sum(gram * one))  # of Frobenius
    norm = xp.where(norm > SMALLEST, norm, xp.full_like(norm, SMALLEST))
    a, b, c = QUINTIC
    gram, p = gram / (norm * norm), one / norm
    for left in reversed(range(ns_steps)):
        q = a * one + b * gram + c * matmul(gram, gram, xp)
        p = matmul(q, p, xp)
        gram = matmul(matmul(q, gram, xp), q, xp) if left else gram
    return matmul(p, x, xp) if wide else matmul(x, p, xp)


def _parted(params: Params) -> tuple[Params, Params]:
    """Return the weights, and all others."""
    weights = {path: p for path, p in params.items() if decays(path, p)}
    return weights, {path: p for path, p in params.items() if path not in weights}


def _heavy(v: Array, g: Array, mu: float, nesterov: bool) -> tuple[Array, Array]:
    """Return the velocity after a gradient, and what to orthogonalise."""
    xp = array_namespace(v)
    if not nesterov:
        (v,) = kernels.of(xp).elementwise(lambda xp, v, g: (mu * v + g,), [v, g], xp)
        return v, v

    def rule(xp: object, v: Array, g: Array) -> tuple[Array, ...]:
        v = mu * v + g
        return v, g + mu * v

    v, towards = kernels.of(xp).elementwise(rule, [v, g], xp)
    return v, towards


def _moved(p: Array, towards: Array, lr: float, decay: float) -> Array:
    """Return a weight after its step."""
    xp = array_namespace(p)
    outputs, inputs = reversed(p.shape) if p.ndim == 2 else (p.shape[0], prod(p.shape[1:]))
    size, shrink = lr * max(1.0, outputs / max(1, inputs)) ** 0.5, lr * decay
    rule = (lambda xp, p, o: (p - (size * o + shrink * p),)) if decay else (lambda xp, p, o: (p - size * o,))
    return kernels.of(xp).elementwise(rule, [p, towards], xp)[0]
