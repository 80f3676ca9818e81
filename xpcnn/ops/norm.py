"""Batch, layer and group normalisation: x̂ = (x - mean) / √(var + ε), y = γ·x̂ + β, and their gradient.

They differ in which values a mean and a variance are taken over; the rest is shared.
"""

from __future__ import annotations

from importlib import import_module
from math import prod
from typing import Any, NamedTuple

from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError, whole
from xpcnn.ops import _check, channel_norm, half
from xpcnn.ops.reduction import sum_over

Shape = tuple[int, ...]

BOUNDS = {None: None, "relu": float("inf"), "relu6": 6.0}  # by activation: what y is held below, and above 0


class NormSaved(NamedTuple):
    """What a normalisation's backward needs."""

    normal: Array  # x̂, of x's shape
    scale: Array  # 1 / √(var + ε), broadcasting over ``view``
    gamma: Array | None
    has_beta: bool
    param_shape: Shape  # of gamma and beta
    spread: Shape  # the same, as it broadcasts over x
    view: Shape  # x's shape with its groups apart
    axes: Shape  # of ``view``, which the statistics were taken over; none where they were given
    active: Array | None = None  # with an activation, where it is not flat


class WholeSaved(NamedTuple):
    """What backward needs where a backend has an engine for all of batch normalisation."""

    kept: Any  # of the engine, in whose module its class is
    kin: Array
    shape: Shape
    has_gamma: bool
    has_beta: bool


@half.forward_beside("gamma", "beta", "running_mean", "running_var")
def batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    train: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    xp: Namespace | None = None,
) -> tuple[Array, NormSaved | WholeSaved, tuple[Array | None, Array | None]]:
    """Normalise each channel over the batch and its pixels [1]_.

    Parameters
    ----------
    x : array (N, C, ...)
        Of any floating dtype.
    gamma, beta : array (C,) or None
        Scale and shift; None stands for ones and zeros.
    running_mean, running_var : array (C,) or None
        Statistics so far; may be None in training. With these and gamma and beta in float32 beside a half-precision x,
        the new statistics and the gradients of gamma and beta are float32, too.
    train : bool
        Normalise with the batch's own mean and biased variance and update the statistics with the unbiased one;
        otherwise normalise with the statistics given.
    momentum : float
        Share of the batch in the new statistics: ``new = (1 - momentum)·old + momentum·batch``.
    eps : float
        ε, added to the variance.
    activation : {"relu", "relu6"}, optional
        Hold y above 0, or between 0 and 6, in the same pass.

    Returns
    -------
    y : array (N, C, ...)
    saved : NormSaved or WholeSaved
    statistics : (new_mean, new_var)
        As given, if not in training or for an empty batch.

    Raises
    ------
    XpcnnError
        When shapes do not fit, or training finds a single value per channel, which has no variance.

    References
    ----------
    .. [1] S. Ioffe, C. Szegedy, "Batch normalization", 2015, algorithms 1 and 2.
    """
    names = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    xp = _namespace(xp, x, names)
    if x.ndim < 2:
        raise XpcnnError(f"x must have the axes (N, C, ...), got shape {tuple(x.shape)}.")
    if activation not in BOUNDS:
        raise XpcnnError(f"activation must be relu, relu6 or None, not {activation!r}.")
    momentum, eps = _check.number("momentum", momentum, 0.0, 1.0, closed=True), _epsilon(eps)
    channels = (x.shape[1],)
    _check_parameters(channels, "one per channel", **names)
    spread = (1, x.shape[1], *(1,) * (x.ndim - 2))
    axes = (0, *range(2, x.ndim))
    count = prod(x.shape[axis] for axis in axes)
    if train and count == 1:
        raise XpcnnError(
            f"batch_norm cannot train on x of shape {tuple(x.shape)}: one value per channel has no variance."
        )
    k = kernels.of(xp)
    if train and count:
        engine = k.engine("norm", x) or channel_norm
        bound = BOUNDS[activation]
        y, kept, *mixed = engine.forward(x, gamma, beta, eps, bound, running_mean, running_var, momentum)
        return y, _whole(kept, x, gamma, beta, xp), (mixed[0], mixed[1])
    if running_mean is not None and running_var is not None and (fixed := getattr(k.engine("norm", x), "fixed", None)):
        y, kept = fixed(x, gamma, beta, running_mean, running_var, eps, BOUNDS[activation])
        return y, _whole(kept, x, gamma, beta, xp), (running_mean, running_var)
    if running_mean is not None and running_var is not None:
        axes, statistics = (), (running_mean, running_var)
        scale = 1.0 / xp.sqrt(xp.reshape(running_var, spread) + eps)
        normal = (x - xp.reshape(running_mean, spread)) * scale
    elif train:  # an empty batch, and nothing to keep
        axes, statistics = (), (running_mean, running_var)
        normal, scale = x, xp.ones(spread, dtype=x.dtype, device=device(x))
    else:
        raise XpcnnError("batch_norm needs running_mean and running_var unless it trains.")
    y, active = _scaled(normal, gamma, beta, spread, xp), None
    if activation == "relu":
        y, active = k.relu(y, xp)
    elif activation == "relu6":
        y, active = xp.clip(y, 0.0, 6.0), (y > 0) & (y < 6)
    saved = NormSaved(normal, scale, gamma, beta is not None, channels, spread, tuple(x.shape), axes, active)
    return y, saved, statistics


@half.forward_beside("gamma", "beta")
def layer_norm(
    x: Array, gamma: Array | None, beta: Array | None, *, axes: Any, eps: float = 1e-5, xp: Namespace | None = None
) -> tuple[Array, NormSaved]:
    """Normalise each example over some of its axes [1]_.

    Parameters
    ----------
    x : array
        Of any floating dtype.
    gamma, beta : array of x's shape on those axes, or None
        Scale and shift; None stands for ones and zeros. Beside a half-precision x, both may be float32.
    axes : int or ints
        The axes to normalise over; negative ones count from the last.
    eps : float
        ε, added to the variance.

    Returns
    -------
    y : array of x's shape
    saved : NormSaved

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016, equation 4.
    """
    xp = _check.namespace(xp, {"gamma": gamma, "beta": beta}, x=x)
    axes = _check.axes_of("axes", axes, x.ndim)
    shape = tuple(x.shape[axis] for axis in axes)
    _check_parameters(shape, f"x's on the axes {axes}", gamma=gamma, beta=beta)
    spread = tuple(n if axis in axes else 1 for axis, n in enumerate(x.shape))
    normal, scale, _, _ = _standardise(x, axes, _epsilon(eps), xp)
    saved = NormSaved(normal, scale, gamma, beta is not None, shape, spread, tuple(x.shape), axes)
    return _scaled(normal, gamma, beta, spread, xp), saved


@half.forward_beside("gamma", "beta")
def group_norm(
    x: Array, gamma: Array | None, beta: Array | None, *, groups: int, eps: float = 1e-5, xp: Namespace | None = None
) -> tuple[Array, NormSaved]:
    """Normalise each example over the pixels of a group of channels [1]_.

    Parameters
    ----------
    x : array (N, C, ...)
        Of any floating dtype.
    gamma, beta : array (C,) or None
        Scale and shift; None stands for ones and zeros. Beside a half-precision x, both may be float32.
    groups : int
        Number of groups, which must divide C; C groups are instance normalisation, one is over the whole example.
    eps : float
        ε, added to the variance.

    Returns
    -------
    y : array (N, C, ...)
    saved : NormSaved

    References
    ----------
    .. [1] Y. Wu, K. He, "Group normalization", 2018, equations 1 to 3.
    """
    xp = _check.namespace(xp, {"gamma": gamma, "beta": beta}, x=x)
    if x.ndim < 2:
        raise XpcnnError(f"x must have the axes (N, C, ...), got shape {tuple(x.shape)}.")
    channels = (x.shape[1],)
    if x.shape[1] % whole("groups", groups, 1):
        raise XpcnnError(f"groups={groups} must divide x's {x.shape[1]} channels.")
    _check_parameters(channels, "one per channel", gamma=gamma, beta=beta)
    spread = (1, x.shape[1], *(1,) * (x.ndim - 2))
    view = (x.shape[0], int(groups), prod(x.shape[1:]) // groups)
    normal, scale, _, _ = _standardise(xp.reshape(x, view), (2,), _epsilon(eps), xp)
    normal = xp.reshape(normal, x.shape)
    saved = NormSaved(normal, scale, gamma, beta is not None, channels, spread, view, (2,))
    return _scaled(normal, gamma, beta, spread, xp), saved


@half.backward
def batch_norm_backward(
    dy: Array, saved: NormSaved | WholeSaved, *, xp: Namespace | None = None
) -> tuple[Array, Array | None, Array | None]:
    """Return ``(dx, dgamma, dbeta)``: ``dx̂ = γ·dy``, ``dx = (dx̂ - mean(dx̂) - x̂·mean(dx̂·x̂)) / √(var + ε)``.

    The means are over what the statistics were taken over; where those were given, there are none. A gradient is None
    where gamma or beta was.

    Parameters
    ----------
    dy : array of y's shape
    saved : NormSaved or WholeSaved
        From the forward call.
    """
    if isinstance(saved, WholeSaved):
        _check.namespace(xp, dy=dy, x=saved.kin)
        _check.same_shape("dy", dy, saved.shape, "the shape of y")
        dx, dgamma, dbeta = import_module(type(saved.kept).__module__).backward(dy, saved.kept)
        return dx, dgamma if saved.has_gamma else None, dbeta if saved.has_beta else None
    normal, scale, gamma, has_beta, shape, spread, view, axes, active = saved
    xp = _check.namespace(xp, dy=dy, normal=normal)
    _check.same_shape("dy", dy, normal.shape, "the shape of y")
    if active is not None:
        dy = kernels.of(xp).keep(dy, active, xp)
    dgamma = None if gamma is None else _summed(dy * normal, shape, spread, xp)
    dbeta = _summed(dy, shape, spread, xp) if has_beta else None
    g = xp.reshape(dy if gamma is None else dy * xp.reshape(gamma, spread), view)
    if axes:
        x_hat = xp.reshape(normal, view)
        g = g - _mean(g, axes, xp) - x_hat * _mean(g * x_hat, axes, xp)
    return xp.reshape(g * scale, dy.shape), dgamma, dbeta


layer_norm_backward = group_norm_backward = batch_norm_backward


def _standardise(x: Array, axes: Shape, eps: float, xp: Namespace) -> tuple[Array, Array, Array, Array]:
    """Return x̂, 1 / √(var + ε), the mean and the biased variance, all with x's axes."""
    if not prod(x.shape[axis] for axis in axes):
        raise XpcnnError(f"x of shape {tuple(x.shape)} has no values on the axes to normalise over.")
    mean = _mean(x, axes, xp)
    centered = x - mean
    var = _mean(centered * centered, axes, xp)
    scale = 1.0 / xp.sqrt(var + eps)
    return centered * scale, scale, mean, var


def _mean(x: Array, axes: Shape, xp: Namespace) -> Array:
    """Average over axes, which stay with length 1."""
    return sum_over(x, axes, xp) / prod(x.shape[axis] for axis in axes)


def _scaled(normal: Array, gamma: Array | None, beta: Array | None, spread: Shape, xp: Namespace) -> Array:
    """Return γ·x̂ + β as new memory."""
    y = xp.asarray(normal, copy=True) if gamma is None else normal * xp.reshape(gamma, spread)
    return y if beta is None else y + xp.reshape(beta, spread)


def _summed(values: Array, shape: Shape, spread: Shape, xp: Namespace) -> Array:
    """Add up over the axes that a parameter does not have: the adjoint of broadcasting it."""
    others = tuple(axis for axis, n in enumerate(spread) if n == 1)
    return xp.reshape(sum_over(values, others, xp), shape) if others else xp.asarray(values, copy=True)


def _whole(kept: Any, x: Array, gamma: Array | None, beta: Array | None, xp: Namespace) -> WholeSaved:
    """Return what an engine kept, with what is checked before it is asked for the gradient."""
    return WholeSaved(kept, _check.kin(x, xp), tuple(x.shape), gamma is not None, beta is not None)


def _namespace(xp: Namespace | None, x: Array, parameters: dict[str, Array | None]) -> Namespace:
    """Return the namespace of all; beside a half-precision x, which kernels take as it is, the others are float32."""
    given = {name: array for name, array in parameters.items() if array is not None}
    if not given or not half.is_half(x):
        return _check.namespace(xp, given, x=x)
    _check.library(x=x, **given)
    _check.namespace(xp, **given)
    return _check.namespace(xp, x=x)


def _check_parameters(shape: Shape, why: str, **arrays: Array | None) -> None:
    """Raise unless every array given has the shape."""
    for name, array in arrays.items():
        if array is not None:
            _check.same_shape(name, array, shape, why)


def _epsilon(eps: float) -> float:
    return _check.number("eps", eps, 0.0, float("inf"))
