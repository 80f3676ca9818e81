"""What is tried of each op: a function for each kind of op that draws its arrays and its options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from xpcnn.verify.draw import MANY, Array, Case, Draw, Pick

Arguments = tuple[dict[str, Array], dict[str, Any]]  # floating arrays; everything else
Ints = tuple[int, ...]
KINKS = (-3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 6.0, 20.0)
EXTREMES = (-1e30, -1e4, -100.0, -1e-30, 1e-30, 100.0, 1e4, 1e30)
LOSSES = ("softmax_cross_entropy", "binary_cross_entropy_with_logits", "mean_squared_error", "half_squared_error")
ELEMENTWISE: dict[str, dict[str, Any]] = {
    "relu": {}, "relu6": {}, "selu": {}, "silu": {}, "hard_swish": {}, "sigmoid": {}, "tanh": {},
    "hard_sigmoid": {"alpha": (0.25, 0.5, -0.5), "beta": (0.5, 0.25, 1.5)},
    "leaky_relu": {"negative_slope": (0.01, 0.3, 0.0, 1.5)},
    "elu": {"alpha": (1.0, 0.5, 2.0)},
    "gelu": {"approximate": ("none", "tanh")},
    "softplus": {"beta": (1.0, 0.5, 3.0), "threshold": (20.0, 1.0, 50.0)},
}  # fmt: skip


def windows(draw: Draw, kernel: Ints, longest: int, pool: bool) -> tuple[Ints, dict[str, Any]]:
    """Draw stride, dilation, mode, and padding or center, and an image that has room for a window."""
    n = len(kernel)
    dilation, stride = draw.per_axis(n, 1, 1, 2, 3), draw.per_axis(n, 1, 2, 3, 4)
    options = {"dilation": dilation, "stride": stride, **draw.some(mode=("cross-correlation", "convolution"))}
    if pool and draw(True, False, False):
        del options["stride"]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, _each(dilation, n), strict=True)]
    kind = draw("none", "same", "valid", "int", "axes", "pairs", "center")
    if kind == "center":
        return draw.size(n, 1, longest), {**options, "center": tuple(draw.whole(0, k - 1) for k in kernel)}
    if kind == "same":
        return draw.size(n, 1, longest), {**options, "padding": "same"}
    if kind == "valid":
        options["padding"] = "valid"
    most = [span - 1 if pool else 3 for span in spans]
    pads = [(0, 0)] * n
    if kind == "int":
        options["padding"] = draw.whole(0, min(most))
        pads = [(options["padding"],) * 2] * n
    elif kind in ("axes", "pairs"):
        before = [draw.whole(0, m) for m in most]
        after = before if kind == "axes" else [draw.whole(0, m) for m in most]
        pads = list(zip(before, after, strict=True))
        options["padding"] = tuple(before) if kind == "axes" else tuple(pads)
    least = [max(1, span - sum(pad)) for span, pad in zip(spans, pads, strict=True)]
    return tuple(draw.whole(m, m + longest - 2) for m in least), options


def conv(draw: Draw, n: int) -> Arguments:
    """Draw a convolution."""
    groups, kernel = draw(1, 1, 2, 3), draw.size(n, 1, 5 - n)
    channels, filters = draw(1, 2) * groups, draw(1, 2) * groups
    size, options = windows(draw, kernel, 7 - n, pool=False)
    x = draw.normal(draw.batch(), channels, *size)
    weight = draw.normal(filters, channels // groups, *kernel)
    return {"x": x, "weight": weight, "bias": draw.maybe(filters)}, {"groups": groups, **options}


def conv_transpose(draw: Draw, n: int) -> Arguments:
    """Draw a transposed convolution."""
    groups, kernel, size = draw(1, 1, 2, 3), draw.size(n, 1, 5 - n), draw.size(n, 1, 6 - n)
    channels, filters = draw(1, 2) * groups, draw(1, 2)
    stride, dilation = draw.per_axis(n, 1, 2, 3, 4), draw.per_axis(n, 1, 1, 2, 3)
    options = {"groups": groups, "stride": stride, "dilation": dilation}
    axes = list(zip(size, kernel, _each(stride, n), _each(dilation, n), strict=True))
    kind = draw("none", "same", "valid", "int", "axes", "pairs")
    if kind in ("same", "valid"):
        options["padding"] = kind
    extra = (0,) * n
    if kind != "same" and draw(True, False):
        extra = options["output_padding"] = tuple(draw.whole(0, max(s, d) - 1) for _, _, s, d in axes)
    spare = [(i - 1) * s + d * (k - 1) + e for (i, k, s, d), e in zip(axes, extra, strict=True)]  # output - 1
    if kind == "int":
        options["padding"] = draw.whole(0, min(3, min(spare) // 2))
    elif kind == "axes":
        options["padding"] = tuple(draw.whole(0, min(3, m // 2)) for m in spare)
    elif kind == "pairs":
        before = [draw.whole(0, min(3, m)) for m in spare]
        options["padding"] = tuple((b, draw.whole(0, min(3, m - b))) for b, m in zip(before, spare, strict=True))
    x, weight = draw.normal(draw.batch(), channels, *size), draw.normal(channels, filters, *kernel)
    return {"x": x, "weight": weight, "bias": draw.maybe(filters * groups)}, options


def max_pool(draw: Draw, n: int) -> Arguments:
    """Draw a max pooling, with ties and with images of minus infinity."""
    kernel = draw.per_axis(n, 1, 2, 5 - n)
    size, options = windows(draw, _each(kernel, n), 8 - n, pool=True)
    shape = (draw.batch(), draw(1, 2), *size)
    x = draw.steps(*shape) if draw(True, False) else draw.normal(*shape)
    if draw(True, False, False, False):
        x = np.where(draw.rng.random(shape) < 0.5, -np.inf, x)
    return {"x": x}, {"kernel_size": kernel, **options, **draw.some(ceil_mode=(False, True))}


def avg_pool(draw: Draw, n: int) -> Arguments:
    """Draw an average pooling."""
    kernel = draw.per_axis(n, 1, 2, 5 - n)
    size, options = windows(draw, _each(kernel, n), 8 - n, pool=True)
    options |= draw.some(ceil_mode=(False, True), count_include_pad=(False, True))
    return {"x": draw.normal(draw.batch(), draw(1, 2), *size)}, {"kernel_size": kernel, **options}


def adaptive_avg_pool2d(draw: Draw) -> Arguments:
    """Draw a pooling to more or fewer pixels."""
    return {"x": _image(draw)}, {"output_size": draw.per_axis(2, 1, 2, 3, 7) if draw(True, False) else (None, 2)}


def global_pool(draw: Draw) -> Arguments:
    """Draw an image, with ties in half the cases."""
    x = _image(draw)
    return {"x": x if draw(True, False) else draw.steps(*x.shape)}, {}


def conv2d_relu_max_pool2d(draw: Draw) -> Arguments:
    """Draw a convolution, exact in float32 so that the same maxima win, and its pooling."""
    kernel, pool, stride = draw.size(2, 1, 3), draw.per_axis(2, 1, 2, 3), draw.per_axis(2, 1, 2)
    padding = draw(0, 1, (1, 0), ((0, 1), (2, 0)), "valid", "same")
    axes = zip(kernel, _each(stride, 2), _each(pool, 2), strict=True)
    size = tuple(k + s * (p - 1) + draw.whole(0, 4) for k, s, p in axes)
    channels, filters = draw(1, 2), draw(1, 3)
    bias = draw.steps(filters, step=0.25) if draw(True, False) else None
    x, weight = draw.steps(draw.batch(), channels, *size), draw.steps(filters, channels, *kernel, step=0.25)
    return {"x": x, "weight": weight, "bias": bias}, {"stride": stride, "padding": padding, "pool_size": pool}


def affine(draw: Draw) -> Arguments:
    """Draw a fully connected layer, with images in some cases."""
    shape, out = draw((3,), (1,), (2, 3, 2), (7, 1), (64,)), draw(1, 4, 64)
    weight = draw.normal(prod(shape), out)
    return {"x": draw.normal(draw.batch(), *shape), "weight": weight, "bias": draw.maybe(out)}, {}


def activation(draw: Draw, choices: dict[str, Any]) -> Arguments:
    """Draw values of any shape: usual ones, those at kinks, those far out."""
    shape = draw((), (0,), (7,), (2, 3, 4), (1, 2, 3, 2), (3, 7000))
    kind = draw("usual", "usual", "kinks", "extremes")
    x = (
        draw.normal(*shape, scale=3.0)
        if kind == "usual"
        else draw.among(KINKS if kind == "kinks" else EXTREMES, *shape)
    )
    return {"x": x}, draw.some(**choices)


def clip(draw: Draw) -> Arguments:
    """Draw values as for any activation, and a bound or two, among them one value that all are held to."""
    arrays, _ = activation(draw, {})
    low, high = draw((-1.0, None), (None, 1.0), (-3.0, 3.0), (0.0, 6.0), (1.0, 1.0), (-100.0, -0.5))
    return arrays, {name: bound for name, bound in (("low", low), ("high", high)) if bound is not None}


def upsample2d(draw: Draw) -> Arguments:
    """Draw an image and how often its pixels are repeated."""
    return {"x": _image(draw)}, {"factor": draw.per_axis(2, 1, 2, 3)}


def softmax(draw: Draw) -> Arguments:
    """Draw logits, small, far apart or equal, and an axis."""
    shape = draw.size(draw.whole(1, 4), 1, 4)
    return {"x": _logits(draw, *shape)}, draw.some(axis=range(-len(shape), len(shape)))


def batch_norm(draw: Draw) -> Arguments:
    """Draw a batch with at least two values per channel, or any batch and statistics."""
    train, shape, channels = draw(True, False), draw((), (3,), (2, 3), (1, 2, 2)), draw(1, 2, 3)
    x = draw.spaced(draw(2, 3, 2, 3, MANY) if train else draw.batch(), channels, *shape)
    known = not train or draw(True, True, False)
    statistics = (draw.normal(channels), draw.positive(channels)) if known else (None, None)
    arrays = {"x": x, "gamma": draw.maybe(channels), "beta": draw.maybe(channels)}
    arrays |= dict(zip(("running_mean", "running_var"), statistics, strict=True))
    return arrays, {"train": train, **draw.some(momentum=(0.1, 0.0, 0.5, 1.0), eps=(1e-5, 1e-3, 0.1))}


def layer_norm(draw: Draw) -> Arguments:
    """Draw examples and any of their axes."""
    axes = draw(1, -1, (1,), (1, 2), (-2, -1), (1, 2, 3), (1, 3), (0, 2), (0, 1, 2, 3))
    over = {axis % 4 for axis in _each(axes, 1)}
    shape = (draw(1, 2) if 0 in over else draw(0, 1, 2, 3), *draw.size(3, 1, 3))
    part = [n for axis, n in enumerate(shape) if axis in over]
    arrays = {"x": draw.spaced(*shape), "gamma": draw.maybe(*part), "beta": draw.maybe(*part)}
    return arrays, {"axes": axes, **draw.some(eps=(1e-5, 0.1))}


def group_norm(draw: Draw) -> Arguments:
    """Draw examples and groups of channels, one for each or one for all included."""
    groups, width, shape = draw(1, 2, 3), draw(1, 2), draw((), (4,), (2, 3), (1, 2, 2))
    channels = groups * width
    x = draw.spaced(draw(0, 1, 2, 3), channels, *shape)
    arrays = {"x": x, "gamma": draw.maybe(channels), "beta": draw.maybe(channels)}
    return arrays, {"groups": groups, **draw.some(eps=(1e-5, 0.1))}


def dropout(draw: Draw) -> Arguments:
    """Draw a mask of x's shape, or one for whole channels."""
    shape = (draw.batch(), draw(1, 3), 2, 2)
    mask = draw.rng.random(draw(shape, (*shape[:2], 1, 1))) < 0.6
    return {"x": draw.normal(*shape)}, {"mask": mask, "rate": draw(0.0, 0.25, 0.5, 0.9)}


def softmax_cross_entropy(draw: Draw) -> Arguments:
    """Draw logits with labels or probabilities; some example always counts in a mean."""
    classes, places, reduction = draw(1, 2, 5), draw((), (), (2,), (2, 1)), draw("mean", "sum", "none")
    shape = (draw(1, 2, 3) if reduction == "mean" else draw.batch(), *places)
    arrays = {"logits": _logits(draw, shape[0], classes, *places)}
    options = {"reduction": reduction, **draw.some(label_smoothing=(0.0, 0.1, 1.0))}
    if draw(True, False, False):
        arrays["targets"] = np.moveaxis(draw.positive(*shape, classes), -1, 1)
    else:
        labels = draw.rng.integers(0, classes, shape)
        labels.flat[:1] = classes - 1
        if draw(True, False):
            options["ignore_index"] = ignored = draw(-100, 0) if classes > 1 else -100
            labels.flat[1::2] = ignored
        options["targets"] = labels.astype(draw("int64", "int32", "int8"))
    weights = draw.positive(classes)
    weights[: classes - 1] *= draw(0.0, 1.0)
    return {**arrays, "class_weights": draw(None, weights)}, options


def binary_cross_entropy_with_logits(draw: Draw) -> Arguments:
    """Draw logits and targets, whole or between, and weights that may broadcast."""
    shape = (draw(1, 2, 3), 4, *draw((), (2,)))
    targets = np.clip(draw.normal(*shape), 0.0, 1.0)
    weight, positive = (draw.positive(*draw(shape, shape[1:], shape[-1:])) for _ in range(2))
    arrays = {"logits": _logits(draw, *shape), "targets": targets, "weight": draw(None, weight)}
    return {**arrays, "pos_weight": draw(None, positive)}, draw.some(reduction=("mean", "sum", "none"))


def squared_error(draw: Draw, choices: dict[str, Any]) -> Arguments:
    """Draw outputs and targets."""
    shape = (draw(1, 2, 3), *draw((), (4,), (2, 3)))
    return {"y": draw.normal(*shape), "t": draw.normal(*shape)}, draw.some(**choices)


def _image(draw: Draw) -> Array:
    return draw.normal(draw.batch(), draw(1, 2), *draw.size(2, 1, 6))


def _logits(draw: Draw, *shape: int) -> Array:
    kind = draw("usual", "usual", "far", "equal")
    return {
        "usual": partial(draw.normal, scale=2.0),
        "far": partial(draw.among, (-1e4, 0.0, 1e4, 9999.0)),
        "equal": partial(draw.among, (1.5,)),
    }[kind](*shape)


def _each(value: Any, n: int) -> Any:
    return (value,) * n if isinstance(value, int) else value


DRAWERS: dict[str, Callable[[Draw], Arguments]] = {
    **{f"{f.__name__}{n}d": partial(f, n=n) for f in (conv, conv_transpose, max_pool, avg_pool) for n in (1, 2, 3)},
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "global_avg_pool2d": global_pool,
    "global_max_pool2d": global_pool,
    "conv2d_relu_max_pool2d": conv2d_relu_max_pool2d,
    "affine": affine,
    **{name: partial(activation, choices=choices) for name, choices in ELEMENTWISE.items()},
    "clip": clip,
    "upsample2d": upsample2d,
    "softmax": softmax,
    "log_softmax": softmax,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "dropout": dropout,
    "softmax_cross_entropy": softmax_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "mean_squared_error": partial(squared_error, choices={"reduction": ("mean", "sum", "none")}),
    "half_squared_error": partial(squared_error, choices={}),
}  # fmt: skip


def draw_case(op: str, pick: Pick) -> Case:
    """Return one case of an op, every choice in it made by ``pick(choices)``."""
    draw = Draw(pick)
    arrays, options = DRAWERS[op](draw)
    backward: dict[str, Any] = {}
    if op in LOSSES and draw(True, False):
        backward["dy"] = None
    if "x" in arrays and "weight" in arrays and draw(True, False, False, False):
        backward["need_dx"] = False
    return Case(op, arrays, options, backward, draw(True, False, False), draw.whole(0, 2**32 - 1))
