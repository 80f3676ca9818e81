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


def conv_transpose(x, weight, bias, stride, padding, output_padding, dilation, groups=1):
    """Spread (N, C, *size) over (N, F, *out) with (C, F/groups, *kernel); padding is one (before, after) per axis."""
    axes = x.ndim - 2
    size, kernel = x.shape[2:], weight.shape[2:]
    full = [(size[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 + output_padding[a] for a in range(axes)]
    per_group_in, per_group_out = x.shape[1] // groups, weight.shape[1]
    y = np.zeros((x.shape[0], per_group_out * groups, *full), dtype=np.float64)
    for c, f, i, k in product(range(x.shape[1]), range(per_group_out), np.ndindex(*size), np.ndindex(*kernel)):
        filter_ = c // per_group_in * per_group_out + f
        place = tuple(i[a] * stride[a] + k[a] * dilation[a] for a in range(axes))
        y[(slice(None), filter_, *place)] += x[(slice(None), c, *i)].astype(np.float64) * float(weight[(c, f, *k)])
    y = y[(..., *(slice(padding[a][0], full[a] - padding[a][1]) for a in range(axes)))]
    return y if bias is None else y + np.reshape(bias, (1, -1) + (1,) * axes)


def avg_pool(x, kernel, stride, padding, dilation, ceil_mode, count_include_pad):
    """Return the mean of each window; padding is one (before, after) per axis, a window's overhang never counts."""
    size = x.shape[2:]
    axes = len(size)
    out = []
    for a in range(axes):
        span, (before, after) = dilation[a] * (kernel[a] - 1) + 1, padding[a]
        starts, start = [], -before
        while start + span <= size[a] + after or (
            ceil_mode and start + span < size[a] + after + stride[a] and start < size[a]
        ):
            starts.append(start)
            start += stride[a]
        out.append(starts)
    y = np.zeros((*x.shape[:2], *map(len, out)))
    for o in np.ndindex(*y.shape[2:]):
        total, count = np.zeros(x.shape[:2]), 0
        for k in np.ndindex(*kernel):
            place = tuple(out[a][o[a]] + k[a] * dilation[a] for a in range(axes))
            if all(0 <= p < s for p, s in zip(place, size, strict=True)):
                total = total + x[(..., *place)]
                count += 1
            elif count_include_pad and all(
                p < s + after for p, s, (_, after) in zip(place, size, padding, strict=True)
            ):
                count += 1
        y[(..., *o)] = total / count
    return y


def centered_avg_pool(x, kernel, stride, center, mode, count_include_pad):
    """Average one-image, one-channel input over the windows of `centered_conv`."""
    total = centered_conv(x, np.ones(kernel), stride, center, mode)
    if count_include_pad:
        return total / np.prod(kernel)
    return total / centered_conv(np.ones_like(x), np.ones(kernel), stride, center, mode)


def adaptive_avg_pool(x, out):
    """Average (N, C, H, W) over the bins from floor(i·n/out) to ceil((i+1)·n/out) of each axis."""
    bins = [[(i * n // o, -(-(i + 1) * n // o)) for i in range(o)] for n, o in zip(x.shape[2:], out, strict=True)]
    rows = [[x[:, :, a:b, c:d].mean(axis=(2, 3)) for c, d in bins[1]] for a, b in bins[0]]
    return np.moveaxis(np.array(rows).reshape(*out, *x.shape[:2]), (0, 1), (2, 3))


def normalize(x, axes, eps):
    """Return (x - mean) / sqrt(var + eps) over some axes, in extended precision where there is one."""
    x = x.astype(np.longdouble)
    centered = x - x.mean(axis=axes, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=axes, keepdims=True) + eps)


def numerical_gradients(function, arrays, dy, step=1e-5):
    """Return the gradients of <function(*arrays), dy> with respect to each array; None stays None."""

    def of(number):
        def loss(a):
            return float(np.sum(function(*arrays[:number], a, *arrays[number + 1 :]) * dy))

        return loss

    return [None if a is None else numerical_gradient(of(i), a, step) for i, a in enumerate(arrays)]


def torch_gradients(function, arrays, dy=None):
    """Return PyTorch's value of a function and the gradients of <value, dy>, dy ones by default; None stays None."""
    import torch

    torch.set_num_threads(1)  # on small arrays its threads mostly wait for each other, and spin while they do
    leaves = [None if a is None else torch.tensor(a, requires_grad=True) for a in arrays]
    y = function(*leaves)
    y.backward(torch.ones_like(y) if dy is None else torch.tensor(dy))
    grads = [None if leaf is None else leaf.grad.numpy() for leaf in leaves]
    return y.detach().numpy(), grads


def assert_close(actual, expected, limit):
    """Assert shape, dtype and values, to a part of the largest value; None must meet None."""
    if expected is None:
        assert actual is None
        return
    assert np.shape(actual) == np.shape(expected)
    assert actual.dtype == expected.dtype
    scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)), 1e-3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit * scale)
