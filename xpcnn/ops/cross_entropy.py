"""Cross-entropy of softmax, with the gradient of the logits."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from array_api_compat import device

from xpcnn import kernels
from xpcnn.backend import Array, Namespace, is_numpy
from xpcnn.errors import ArrayTypeError, XpcnnError
from xpcnn.ops import _check, half
from xpcnn.ops.reduction import check_reduction, divided
from xpcnn.ops.softmax import below_max


class CrossEntropySaved(NamedTuple):
    """What `softmax_cross_entropy_backward` needs."""

    probabilities: Array  # softmax(logits), (N, K, ...)
    q: Array  # the weighted, smoothed targets, (N, K, ...)
    divisor: Array | None  # of the mean, () or None
    reduction: str


class SlopesSaved(NamedTuple):
    """The same where a backend's engine found the gradient together with the loss."""

    slopes: Array  # (N, K), of the reduced loss, or of each example's own
    reduction: str


@half.forward
def softmax_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    xp: Namespace | None = None,
) -> tuple[Array, CrossEntropySaved | SlopesSaved]:
    """Cross-entropy of softmax: ``loss = -Σ_k q_k · log softmax(logits)_k``, ``q_k = w_k·((1-ε)·t_k + ε/K)`` [1]_.

    Parameters
    ----------
    logits : array (N, K, ...)
        Scores of K classes, float32 or float64; any finite values are safe.
    targets : array (N, ...) of integers, or (N, K, ...) of the logits' dtype
        Labels from 0 to K - 1, or probabilities.
    label_smoothing : float
        ε in [0, 1]: the share of each target that is spread evenly over the classes.
    class_weights : array (K,), optional
        w, one weight per class.
    ignore_index : int, optional
        Examples with this label count for nothing (integer targets only).
    reduction : {"mean", "sum", "none"}
        With integer targets the mean divides by the sum of the weights of the labels that count, as PyTorch's does;
        with probabilities by the number of examples.

    Returns
    -------
    loss : array () or, with "none", (N, ...)
    saved : CrossEntropySaved or SlopesSaved

    Raises
    ------
    XpcnnError
        When shapes, types or options do not fit. A label out of range raises on NumPy; elsewhere, where finding
        it would make the host wait for the device, it makes the loss NaN.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, section 7.
    """
    xp = _check.namespace(xp, {"class_weights": class_weights}, logits=logits)
    _check_options(logits, label_smoothing, class_weights, reduction)
    label_smoothing = float(label_smoothing)
    if ignore_index is not None and (isinstance(ignore_index, bool) or not hasattr(ignore_index, "__index__")):
        raise XpcnnError(f"ignore_index must be a whole number or None, not {ignore_index!r}.")
    if class_weights is None and ignore_index is None:  # which no engine knows
        whole = _by_engine(logits, targets, label_smoothing, reduction, xp)
        if whole is not None:
            return whole
    shape, where = tuple(logits.shape), device(logits)
    classes, by_class = shape[1], (1, -1) + (1,) * (len(shape) - 2)  # (1, K, 1, ...)
    weights = xp.ones(classes, dtype=logits.dtype, device=where) if class_weights is None else class_weights
    weights = xp.reshape(weights, by_class)
    if _is_integer(targets):
        _check.library(logits=logits, targets=targets)
        onehot, counts = _one_hot(logits, targets, ignore_index, xp)  # (N, K, ...), (N, 1, ...)
        divisor = xp.sum(weights * onehot)
    else:
        _check.namespace(None, logits=logits, targets=targets)
        _check.same_shape("targets", targets, shape, "probabilities, one per logit")
        if ignore_index is not None:
            raise XpcnnError("ignore_index needs integer targets, but the targets are probabilities.")
        onehot, counts = targets, 1.0
        divisor = xp.full((), prod(shape) // classes, dtype=logits.dtype, device=where)  # examples
    q = weights * ((1.0 - label_smoothing) * onehot + counts * (label_smoothing / classes))
    shifted = below_max(logits, 1, xp)
    powers = xp.exp(shifted)
    total = xp.sum(powers, axis=1, keepdims=True)
    log_p = shifted - xp.log(total)
    log_p = xp.where(q == 0, xp.zeros_like(log_p), log_p)  # 0 · log 0 counts as 0
    loss = -xp.sum(q * log_p, axis=1)  # (N, ...)
    if reduction != "none":
        loss = xp.sum(loss)
    if reduction == "mean":
        loss = divided(loss, divisor, xp)
    return loss, CrossEntropySaved(powers / total, q, divisor if reduction == "mean" else None, reduction)


@half.backward
def softmax_cross_entropy_backward(
    saved: CrossEntropySaved | SlopesSaved, dy: Array | None = None, *, xp: Namespace | None = None
) -> Array:
    """Return the gradient of the logits: ``(softmax·Σq - q) · dy``, divided as the loss was; 0 if no label counts.

    Parameters
    ----------
    saved : CrossEntropySaved or SlopesSaved
        From the forward call.
    dy : array, optional
        The gradient of the loss, of its shape; ones by default.
    """
    xp = _check.namespace(xp, {"dy": dy}, saved=saved[0])
    dlogits = _slopes(saved, xp)
    if dy is None:
        return dlogits
    shape = (dlogits.shape[0], *dlogits.shape[2:]) if saved.reduction == "none" else ()
    _check.same_shape("dy", dy, shape, "the shape of the loss")
    return dlogits * (xp.expand_dims(dy, axis=1) if saved.reduction == "none" else dy)


def _slopes(saved: CrossEntropySaved | SlopesSaved, xp: Namespace) -> Array:
    """Return the gradient of the logits for a dy of ones."""
    if isinstance(saved, SlopesSaved):
        return saved.slopes
    p, q, divisor, _ = saved
    dlogits = p * xp.sum(q, axis=1, keepdims=True) - q
    if divisor is None:
        return dlogits
    one = xp.ones((), dtype=divisor.dtype, device=device(divisor))
    return dlogits / xp.where(divisor == 0, one, divisor)  # where no label counts, q and so dlogits are 0


def _by_engine(
    logits: Array, targets: Array, smoothing: float, reduction: str, xp: Namespace
) -> tuple[Array, SlopesSaved] | None:
    """Return loss and gradient by a backend's engine; None where it has none for these, or would raise."""
    axes = 1 if _is_integer(targets) else 2  # that targets have
    _check.library(logits=logits, targets=targets)
    fits = tuple(targets.shape) == tuple(logits.shape)[:axes] and (axes == 1 or targets.dtype == logits.dtype)
    engine = kernels.of(xp).engine("loss", logits) if fits and logits.ndim == 2 and logits.shape[0] else None
    if not engine:
        return None
    found = engine.cross_entropy(logits, targets, reduction, smoothing)
    return None if found is None else (found[0], SlopesSaved(found[1], reduction))


def _one_hot(logits: Array, labels: Array, ignore_index: int | None, xp: Namespace) -> tuple[Array, Array]:
    """Return one-hot labels (N, K, ...) and 1 for the examples that count, 0 for those ignored (N, 1, ...)."""
    classes = logits.shape[1]
    _check.same_shape("targets", labels, (logits.shape[0], *logits.shape[2:]), "one label per example")
    if _check.dtype_name(labels).endswith(("int8", "int16")):  # too narrow to be compared with the classes' number
        labels = xp.astype(labels, xp.int32)
    numbers = xp.arange(classes, dtype=labels.dtype, device=device(logits))
    numbers = xp.reshape(numbers, (1, -1) + (1,) * (logits.ndim - 2))
    labels = xp.expand_dims(labels, axis=1)  # (N, 1, ...)
    valid = (labels >= 0) & (labels < classes)
    counted = xp.ones_like(valid)
    if ignore_index is not None:
        counted = labels != ignore_index
        valid = valid | ~counted
    if is_numpy(xp) and not valid.all():
        bad = labels[~valid][0]
        raise XpcnnError(f"targets must be labels from 0 to {classes - 1} for {classes} classes, got {bad}.")
    nan = xp.full((), float("nan"), dtype=logits.dtype, device=device(logits))
    counts = xp.where(valid, xp.astype(counted, logits.dtype), nan)
    return xp.astype((labels == numbers) & counted, logits.dtype) * counts, counts


def _check_options(logits: Array, label_smoothing: float, class_weights: Array | None, reduction: str) -> None:
    """Raise unless the loss's options are in range and fit the logits."""
    if logits.ndim < 2 or logits.shape[1] < 1:
        raise XpcnnError(f"logits must have the axes (N, K, ...) with at least one class, got {tuple(logits.shape)}.")
    _check.number("label_smoothing", label_smoothing, 0.0, 1.0, closed=True)
    check_reduction(reduction)
    if class_weights is not None:
        _check.same_shape("class_weights", class_weights, (logits.shape[1],), "one per class")


def _is_integer(targets: Array) -> bool:
    """Whether targets are labels; raises for anything that is not an array of numbers."""
    if not hasattr(targets, "dtype"):
        raise ArrayTypeError(f"targets must be an array, got {type(targets).__name__}.")
    return _check.dtype_name(targets).startswith(("int", "uint"))
