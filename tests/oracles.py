"""Independent answers: loops written from the definitions, and numerical gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np


def conv(x, weight, bias, stride, padding, dilation, groups=1):
    """Convolve (N, C, *size) with (F, C/groups, *kernel); padding is one (before, after) per axis."""
    axes = x.ndim - 2
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    kernel = weight.shape[2:]
    out = [(padded.shape[2 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(axes)]
    y = np.zeros((x.shape[0], weight.shape[0], *out), dtype=np.float64)
    per_group_in, per_group_out = x.shape[1] // groups, weight.shape[0] // groups
    for n, f in product(range(x.shape[0]), range(weight.shape[0])):
        for o in product(*map(range, out)):
            total = 0.0 if bias is None else float(bias[f])
            for c in range(per_group_in):
                channel = f // per_group_out * per_group_in + c
                for k in product(*map(range, kernel)):
                    place = tuple(o[a] * stride[a] + k[a] * dilation[a] for a in range(axes))
                    total += float(weight[(f, c, *k)]) * float(padded[(n, channel, *place)])
            y[(n, f, *o)] = total
    return y


def centered_conv(x, weight, stride, center, mode):
    """Convolve one-image, one-channel input as the contract words it: grow while any input lies in the image."""
    (rows, columns), (kh, kw) = x.shape, weight.shape
    sign = 1 if mode == "cross-correlation" else -1

    def inputs(i, axis, size, kernel):
        return [i * stride[axis] + sign * (a - center[axis]) for a in range(kernel)]

    def length(axis, size, kernel):
        i = 0
        while i < size and any(0 <= place < size for place in inputs(i, axis, size, kernel)):
            i += 1
        return i

    y = np.zeros((length(0, rows, kh), length(1, columns, kw)))
    for i, j in product(*map(range, y.shape)):
        for a, r in enumerate(inputs(i, 0, rows, kh)):
            for b, c in enumerate(inputs(j, 1, columns, kw)):
                if 0 <= r < rows and 0 <= c < columns:
                    y[i, j] += weight[a, b] * x[r, c]
    return y


def max_pool(x, kernel, stride, padding, dilation, ceil_mode):
    """Return maxima and flat positions of the first of each window; padding is one (before, after) per axis."""
    size = x.shape[2:]
    axes = len(size)
    out = []
    for a in range(axes):
        span = dilation[a] * (kernel[a] - 1) + 1
        starts = []
        start = -padding[a][0]
        last = size[a] + padding[a][1]  # where the padded input ends
        while start + span <= last or (ceil_mode and start + span < last + stride[a] and start < last - padding[a][1]):
            starts.append(start)
            start += stride[a]
        out.append(starts)
    shape = (*x.shape[:2], *(len(starts) for starts in out))
    y, index = np.full(shape, -np.inf), np.full(shape, -1, dtype=np.int64)
    for n, c in product(range(x.shape[0]), range(x.shape[1])):
        for o in product(*(range(len(starts)) for starts in out)):
            for k in product(*map(range, kernel)):
                place = tuple(out[a][o[a]] + k[a] * dilation[a] for a in range(axes))
                if all(0 <= p < s for p, s in zip(place, size, strict=True)):
                    value = x[(n, c, *place)]
                    if index[(n, c, *o)] < 0 or value > y[(n, c, *o)]:
                        y[(n, c, *o)] = value
                        index[(n, c, *o)] = np.ravel_multi_index(place, size)
    return y, index


def cross_entropy(logits, targets, smoothing=0.0, weights=None, ignore=None):
    """Return each example's loss and its weight in the mean, for logits (N, K) and labels (N,) or (N, K)."""
    examples, classes = logits.shape
    weights = np.ones(classes) if weights is None else weights
    losses, shares = np.zeros(examples), np.zeros(examples)
    for n in range(examples):
        row = logits[n].astype(np.longdouble)
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        if targets.ndim == 1 and targets[n] == ignore:
            continue
        t = np.eye(classes)[targets[n]] if targets.ndim == 1 else targets[n]
        for k in range(classes):
            losses[n] -= weights[k] * ((1 - smoothing) * t[k] + smoothing / classes) * log_p[k]
        shares[n] = weights[targets[n]] if targets.ndim == 1 else 1.0
    return losses, shares


def numerical_gradient(function: Callable[[np.ndarray[Any, Any]], float], x, step=1e-5):
    """Return the gradient of a scalar function by central differences, in float64."""
    x = np.array(x, dtype=np.float64)
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        kept = x[place]
        x[place] = kept + step
        above = function(x)
        x[place] = kept - step
        below = function(x)
        x[place] = kept
        gradient[place] = (above - below) / (2 * step)
    return gradient
