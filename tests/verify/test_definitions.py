"""The definitions and their derivatives against PyTorch's functions and autograd: the oracle's oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpcnn.verify import OPS
from xpcnn.verify.cases import ELEMENTWISE
from xpcnn.verify.expected import differentiable, expect
from xpcnn.verify.report import nth_case

torch = pytest.importorskip("torch")
F = torch.nn.functional
CASES, LARGE = 80, 10_000


def each(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


def frame(size, kernel, options):
    """Return (before, after, outputs) per axis by closed formulas, with more than enough room after."""
    n = len(size)
    strides, dilations = each(options["stride"], n), each(options.get("dilation", 1), n)
    padding, center, flip = options.get("padding", 0), options.get("center"), options.get("mode") == "convolution"
    axes = []
    for axis, (length, k, s, d) in enumerate(zip(size, kernel, strides, dilations, strict=True)):
        span = d * (k - 1) + 1
        if center is not None:
            c = center[axis]
            before, after = (k - 1 - c if flip else c) * d, s * length + span
            sees = F.conv1d(F.pad(torch.ones(1, 1, length), (before, after)), torch.ones(1, 1, k), stride=s, dilation=d)
            blind = [i for i in range(length) if not sees[0, 0, i]]
            axes.append((before, after, blind[0] if blind else length, None))
            continue
        if padding == "same":
            total = max(0, (math.ceil(length / s) - 1) * s + span - length)
            before, after = total // 2, total - total // 2
        elif padding == "valid":
            before = after = 0
        else:
            before, after = each(each(padding, n)[axis], 2)
        room = length + before + after - span
        out = (math.ceil(room / s) if options.get("ceil_mode") else room // s) + 1
        if options.get("ceil_mode") and (out - 1) * s >= length + before:
            out -= 1
        axes.append((before, after + s + span, out, after))
    return axes


def framed(x, axes, fill=0.0):
    """Pad x generously; zip(*axes) brings (before, after) into torch's order: last axis first."""
    return F.pad(x, [length for before, after, *_ in reversed(axes) for length in (before, after)], value=fill)


def cropped(y, axes):
    return y[(..., *(slice(out) for _, _, out, _ in axes))]


def conv(x, weight, bias, *, groups=1, mode="cross-correlation", **options):
    n = x.ndim - 2
    if mode == "convolution":
        weight = weight.flip(tuple(range(2, n + 2)))
    options = {"stride": 1, "mode": mode, **options}
    axes = frame(x.shape[2:], weight.shape[2:], options)
    run = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    y = run(framed(x, axes), weight, bias, stride=options["stride"], dilation=options.get("dilation", 1), groups=groups)
    return cropped(y, axes)


def conv_transpose(x, weight, bias, *, groups=1, stride=1, dilation=1, padding=0, output_padding=0):
    n = x.ndim - 2
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    strides, dilations = each(stride, n), each(dilation, n)
    if padding == "same":
        spans = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
        pads = [
            (max(0, span - s) // 2, (span - s) - max(0, span - s) // 2) for span, s in zip(spans, strides, strict=True)
        ]
    else:
        pads = [each(p, 2) for p in each(0 if padding == "valid" else padding, n)]
    if all(before == after for before, after in pads):
        return run(x, weight, bias, strides, [before for before, _ in pads], output_padding, groups, dilations)
    full = run(x, weight, None, strides, 0, 0, groups, dilations)
    extra = each(output_padding, n)
    crop = [(-before, e - after) for (before, after), e in zip(pads, extra, strict=True)]
    y = F.pad(full, [length for pair in reversed(crop) for length in pair])
    return y if bias is None else y + bias.reshape(-1, *(1,) * n)


def max_pool(x, *, kernel_size, **options):
    n = x.ndim - 2
    kernel = each(kernel_size, n)
    options = {"stride": kernel, **options}
    axes = frame(x.shape[2:], kernel, options)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    padded = framed(x, axes, -torch.inf)
    y, index = run(padded, kernel, options["stride"], 0, options.get("dilation", 1), return_indices=True)
    y, index = cropped(y, axes), cropped(index, axes)
    places = np.unravel_index(index.numpy(), padded.shape[2:])
    inside = [place - before for place, (before, *_) in zip(places, axes, strict=True)]
    flat = np.ravel_multi_index(inside, x.shape[2:], mode="clip")
    seen = np.all([(p >= 0) & (p < length) for p, length in zip(inside, x.shape[2:], strict=True)], axis=0)
    return y, np.where(seen, flat, -1)


def avg_pool(x, *, kernel_size, count_include_pad=True, **options):
    n = x.ndim - 2
    kernel = each(kernel_size, n)
    options = {"stride": kernel, **options}
    axes = frame(x.shape[2:], kernel, options)
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype)
    run = (F.conv1d, F.conv2d, F.conv3d)[n - 1]

    def total(images):
        flat = images.reshape(-1, 1, *images.shape[2:])
        sums = cropped(run(flat, ones, stride=options["stride"], dilation=options.get("dilation", 1)), axes)
        return sums.reshape(*images.shape[:2], *sums.shape[2:])

    counted = framed(torch.ones(1, 1, *x.shape[2:], dtype=x.dtype), axes)
    if count_include_pad:
        counted[...] = 1.0
        for axis, (before, _, _, after) in enumerate(axes):
            if after is not None:  # beyond the padding is only overhang
                counted.transpose(0, axis + 2)[before + x.shape[axis + 2] + after :] = 0.0
    return total(framed(x, axes)) / total(counted).clamp(min=1.0)


def global_max_pool2d(x):
    y, index = x.flatten(2).max(dim=2)
    return y, index.numpy()


def conv2d_relu_max_pool2d(x, weight, bias, *, stride, padding, pool_size):
    return F.max_pool2d(F.relu(conv(x, weight, bias, stride=stride, padding=padding)), pool_size)


def affine(x, weight, bias):
    return F.linear(x.flatten(1), weight.T, bias)


def dropout(x, *, mask, rate):
    return x * mask / (1 - rate)


def batch_norm(x, gamma, beta, running_mean, running_var, *, train, momentum=0.1, eps=1e-5):
    statistics = [None if s is None else s.detach().clone() for s in (running_mean, running_var)]
    return F.batch_norm(x, *statistics, gamma, beta, train, momentum, eps), *statistics


def layer_norm(x, gamma, beta, *, axes, eps=1e-5):
    over = sorted(axis % x.ndim for axis in each(axes, 1))
    order = [axis for axis in range(x.ndim) if axis not in over] + over
    y = F.layer_norm(x.permute(order), [x.shape[axis] for axis in over], gamma, beta, eps)
    return y.permute(tuple(np.argsort(order)))


def group_norm(x, gamma, beta, *, groups, eps=1e-5):
    rows = x.reshape(x.shape[0], groups, -1)  # F.group_norm refuses groups of one value
    y = F.layer_norm(rows, rows.shape[2:], eps=eps).reshape(x.shape)
    shape = (-1, *(1,) * (x.ndim - 2))
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def softmax_cross_entropy(logits, targets, class_weights=None, ignore_index=-100, **options):
    targets = targets if targets.ndim == logits.ndim else targets.long()
    return F.cross_entropy(logits, targets, class_weights, ignore_index=ignore_index, **options)


def half_squared_error(y, t):
    return ((t - y) ** 2).flatten(1).sum(dim=1).mul(0.5).mean() if y.ndim > 1 else ((t - y) ** 2).mul(0.5).mean()


def activation(name):
    function = getattr(F, name.replace("hard_swish", "hardswish"))
    return lambda x, **options: function(x, **options)


TORCH = {
    **{f"{f.__name__}{n}d": f for f in (conv, conv_transpose, max_pool, avg_pool) for n in (1, 2, 3)},
    "adaptive_avg_pool2d": lambda x, output_size: F.adaptive_avg_pool2d(x, output_size),
    "global_avg_pool2d": lambda x: x.mean(dim=(2, 3)),
    "global_max_pool2d": global_max_pool2d,
    "conv2d_relu_max_pool2d": conv2d_relu_max_pool2d,
    "affine": affine,
    **{name: activation(name) for name in ELEMENTWISE if name != "hard_sigmoid"},
    "clip": lambda x, low=-torch.inf, high=torch.inf: F.hardtanh(x, low, high),
    "hard_sigmoid": lambda x, alpha=1 / 6, beta=0.5: F.hardtanh(alpha * x + beta, 0.0, 1.0),
    "upsample2d": lambda x, factor: F.interpolate(x, scale_factor=factor, mode="nearest"),
    "softmax": lambda x, axis=-1: F.softmax(x, axis),
    "log_softmax": lambda x, axis=-1: F.log_softmax(x, axis),
    "batch_norm": batch_norm, "layer_norm": layer_norm, "group_norm": group_norm, "dropout": dropout,
    "softmax_cross_entropy": softmax_cross_entropy,
    "binary_cross_entropy_with_logits": lambda logits, targets, **options: F.binary_cross_entropy_with_logits(logits, targets, **options),
    "mean_squared_error": lambda y, t, **options: F.mse_loss(y, t, **options),
    "half_squared_error": half_squared_error,
}  # fmt: skip


def close(found, expected):
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("op", OPS)
def test_the_definition_is_pytorchs(op):
    compared = 0
    for number in range(CASES):
        case = nth_case(op, number, seed=1)
        arrays = {name: None if a is None else torch.tensor(a) for name, a in case.arrays.items()}
        if not all(a is None or 0 < len(a.reshape(-1, 1)) < LARGE for a in arrays.values()):
            continue  # PyTorch refuses many an empty batch; a large one takes long and tells no more
        options = {name: torch.tensor(v) if isinstance(v, np.ndarray) else v for name, v in case.options.items()}
        for name in differentiable(case):
            if arrays[name] is not None:
                arrays[name].requires_grad_()
        first, *more = found if isinstance(found := TORCH[op](**arrays, **options), tuple) else (found,)
        expected = expect(case)
        close(expected.results[0], first.detach().numpy())
        for ours, theirs in zip(expected.results[1:], more, strict=True):
            if theirs is None or ours is None:
                assert ours is theirs
            elif ours.dtype.kind == "f" or torch_chooses_so(case, expected):
                close(ours, np.asarray(theirs))
        first.backward(torch.tensor(expected.dy))
        if torch_chooses_so(case, expected):
            compare_slopes(case, expected, arrays)
        compared += 1
    assert compared > CASES / 2


def torch_chooses_so(case, expected):
    """Whether PyTorch takes the same maximum of several, not another of a flipped window or the padding's -inf."""
    flipped = case.op.startswith("max_pool") and case.options.get("mode") == "convolution"
    return not flipped and bool(np.isfinite(expected.results[0]).all())


def compare_slopes(case, expected, arrays):
    """Compare the definition's derivatives with PyTorch's gradients along the same directions."""
    for name, u in expected.directions.items():
        gradient = arrays[name].grad.numpy()
        close(np.asarray(expected.slopes[name]), np.asarray((gradient * u).sum()))
