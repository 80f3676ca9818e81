"""Any tree of layers run by PyTorch: an independent answer for layers and whole networks.

It reads a layer's options and calls PyTorch's functions; nothing of xpcnn computes here. Paddings that PyTorch does not
have (pairs, "same" with strides, a central element) are laid around the input by hand.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from xpcnn.random import Key

torch.set_num_threads(1)  # on arrays this small, threads only wait for each other

Tensors = dict[str, torch.Tensor]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Outcome(NamedTuple):
    """What one step of training computes, as host arrays."""

    y: Any
    dx: Any
    grads: dict[str, Any]
    state: dict[str, Any]


class Axis(NamedTuple):
    """The windows along one axis."""

    before: int  # padding
    after: int
    overhang: int  # of the last window, past the padding
    rows: int


def run(layer, params: Tensors, state: Tensors, x, *, train: bool = False):
    """Return a layer's output; the running statistics in ``state`` are updated in place."""
    name = type(layer).__name__
    if name not in RULES:
        raise NotImplementedError(f"the mirror has no rule for {name}")
    return RULES[name](layer, params, state, x, train)


def outcome(net, params, state, x, dy, *, train: bool = True) -> Outcome:
    """Return what autograd makes of host arrays, in float64."""

    def leaf(host, trained=True):
        return torch.tensor(np.asarray(host, dtype=np.float64), requires_grad=trained)

    leaves = {path: leaf(value) for path, value in params.items()}
    kept = {path: leaf(value, False) for path, value in state.items()}
    start = leaf(x)
    y = run(net, leaves, kept, start, train=train)
    wanted = [start, *leaves.values()]
    found = torch.autograd.grad(y, wanted, leaf(dy, False))
    dx, *grads = (gradient.numpy() for gradient in found)
    return Outcome(
        y.detach().numpy(),
        dx,
        dict(zip(leaves, grads, strict=True)),
        {path: value.numpy() for path, value in kept.items()},
    )


def draw(net, shape, dtype="float64", seed=0):
    """Return host parameters and state that no default hides behind: noisy scales, biases and statistics."""
    rng = np.random.default_rng(seed)
    params, state = {}, {}
    for path, p in net.parameters(shape).items():
        noise = rng.standard_normal(p.shape)
        if path.endswith("weight"):
            params[path] = (noise * (1 / p.fan_in) ** 0.5).astype(dtype)
        else:
            params[path] = np.asarray(path.endswith(("gamma", "scale")) + 0.2 * noise, dtype)
    for path, p in net.state(shape).items():
        values = 0.5 + rng.random(p.shape) if path.endswith("var") else 0.2 * rng.standard_normal(p.shape)
        state[path] = values.astype(dtype)
    return params, state


def check(net, shape, backend, dtype="float64", *, train=True, batch=3, tolerance=None, seed=0) -> Outcome:
    """Compare forward, every gradient and the new state of a network on a backend with PyTorch's; return PyTorch's.

    A tolerance is of the largest value of each array. Nothing that was given may change, dtypes must stay, and
    without ``need_dx`` the gradients of the parameters must be the same.
    """
    rng = np.random.default_rng(seed)
    limit = tolerance or {"float64": 1e-10, "float32": 1e-4}[dtype]
    params, state = draw(net, shape, dtype, seed)
    x = rng.standard_normal((batch, *shape)).astype(dtype)
    dy = rng.standard_normal((batch, *net.output_shape(shape))).astype(dtype)
    expected = outcome(net, params, state, x, dy, train=train)
    for host in (x, dy, *params.values(), *state.values()):
        host.flags.writeable = False
    own = {path: backend.asarray(p) for path, p in params.items()}
    kept = {path: backend.asarray(s) for path, s in state.items()}
    y, saved, new = net.forward(own, kept, backend.asarray(x), train=train, key=Key(seed))
    dx, grads = net.backward(own, backend.asarray(dy), saved)
    nothing, alone = net.backward(own, backend.asarray(dy), saved, need_dx=False)
    assert nothing is None
    assert list(grads) == list(alone) == list(params)
    assert list(new) == list(state)
    assert tuple(y.shape) == (batch, *net.output_shape(shape))
    near = partial(close, backend, dtype=dtype, limit=limit)
    near(y, expected.y, "y")
    near(dx, expected.dx, "dx")
    largest = max((np.abs(gradient).max() for gradient in expected.grads.values()), default=1.0)
    for path, gradient in expected.grads.items():
        near(grads[path], gradient, path, largest=largest)
        near(alone[path], gradient, f"{path} without dx", largest=largest)
    for path, values in expected.state.items():
        near(new[path], values, path)
    return expected


def close(backend, found, expected, name, *, dtype="float64", limit=1e-10, largest=1.0) -> None:
    """Assert dtype, shape, and values to a fraction of the largest expected.

    Some gradients vanish, as a shift's before a normalisation does, and leave rounding alone: it is held against
    ``largest``.
    """
    found = backend.to_numpy(found)
    assert found.dtype == dtype, name
    assert found.shape == expected.shape, name
    scale = np.abs(expected).max(initial=0.0)
    scale = scale if scale > 1e-12 * largest else largest
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit * scale, err_msg=name)


def _of(arrays: Tensors, name: str) -> Tensors:
    """Return the arrays under a name."""
    return {path[len(name) + 1 :]: array for path, array in arrays.items() if path.startswith(f"{name}/")}


def _each(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


def _axes(layer, size, mode="cross-correlation", center=None, stride=None) -> list[Axis]:
    """Return where a layer's windows lie, from the words of the contract."""
    n = len(size)
    kernel, dilation = _each(layer.kernel_size, n), _each(layer.dilation, n)
    stride = _each(layer.stride if stride is None else stride, n)
    axes = []
    for a, (m, k, s, d) in enumerate(zip(size, kernel, stride, dilation, strict=True)):
        span = d * (k - 1) + 1
        if center is not None:
            middle = _each(center, n)[a]
            before = (middle if mode == "cross-correlation" else k - 1 - middle) * d
            rows = 0
            while rows < m and any(0 <= rows * s + e * d - before < m for e in range(k)):
                rows += 1
            axes.append(Axis(before, max(0, (rows - 1) * s + span - before - m), 0, rows))
            continue
        if layer.padding == "same":
            total = max(0, (-(-m // s) - 1) * s + span - m)
            before, after = total // 2, total - total // 2
        else:
            pads = (0,) * n if layer.padding == "valid" else _each(layer.padding, n)
            before, after = _each(pads[a], 2)
        rows = 0
        whole = before + m + after
        late = s if getattr(layer, "ceil_mode", False) else 1  # a window may hang over by less than this
        while rows * s + span < whole + late and (rows * s + span <= whole or rows * s < before + m):
            rows += 1
        axes.append(Axis(before, after, max(0, (rows - 1) * s + span - whole), rows))
    return axes


def _pad(x, axes: list[Axis], value: float = 0.0):
    """Lay values around the spatial axes."""
    return F.pad(x, [n for a in reversed(axes) for n in (a.before, a.after + a.overhang)], value=value)


def _crop(y, axes: list[Axis]):
    return y[(..., *(slice(0, a.rows) for a in axes))]


def _conv(layer, params, state, x, train):
    n = x.ndim - 2
    weight = params["weight"]
    if layer.mode == "convolution":
        weight = weight.flip(tuple(range(2, 2 + n)))
    axes = _axes(layer, tuple(x.shape[2:]), layer.mode, layer.center)
    bias = params.get("bias")
    y = CONV[n](_pad(x, axes), weight, bias, layer.stride, 0, layer.dilation, layer.groups)
    return _crop(y, axes)


def _conv_transpose(layer, params, state, x, train):
    n = x.ndim - 2
    kernel, dilation, stride = (_each(v, n) for v in (layer.kernel_size, layer.dilation, layer.stride))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if layer.padding == "same":
        extra = tuple(max(0, s - span) for s, span in zip(stride, spans, strict=True))
        cuts = [(max(0, span - s) // 2, -(-max(0, span - s) // 2)) for s, span in zip(stride, spans, strict=True)]
    else:
        extra = _each(layer.output_padding, n)
        cuts = [_each(p, 2) for p in ((0,) * n if layer.padding == "valid" else _each(layer.padding, n))]
    y = TRANSPOSED[n](x, params["weight"], params.get("bias"), stride, 0, extra, layer.groups, dilation)
    return y[(..., *(slice(b, m - a) for (b, a), m in zip(cuts, y.shape[2:], strict=True)))]


def _native(layer, n) -> bool:
    """Whether PyTorch's pooling has the layer's padding."""
    plain = layer.padding != "same" and getattr(layer, "center", None) is None
    pads = () if not plain or layer.padding == "valid" else _each(layer.padding, n)
    small = all(isinstance(p, int) and 2 * p <= k for p, k in zip(pads, _each(layer.kernel_size, n), strict=False))
    return plain and small and layer.padding != "valid"


def _max_pool(layer, params, state, x, train):
    n = x.ndim - 2
    stride = layer.kernel_size if layer.stride is None else layer.stride
    if _native(layer, n):
        return MAX_POOL[n](x, layer.kernel_size, stride, layer.padding, layer.dilation, layer.ceil_mode)
    axes = _axes(layer, tuple(x.shape[2:]), layer.mode, layer.center, stride)
    return _crop(MAX_POOL[n](_pad(x, axes, -torch.inf), layer.kernel_size, stride, 0, layer.dilation), axes)


def _avg_pool(layer, params, state, x, train):
    n = x.ndim - 2
    stride = layer.kernel_size if layer.stride is None else layer.stride
    if _native(layer, n) and _each(layer.dilation, n) == (1,) * n:
        return AVG_POOL[n](x, layer.kernel_size, stride, layer.padding, layer.ceil_mode, layer.count_include_pad)
    axes = _axes(layer, tuple(x.shape[2:]), stride=stride)
    counted = torch.ones_like(x)
    if layer.count_include_pad:
        counted = _pad(counted, [a._replace(overhang=0) for a in axes], 1.0)
        counted = _pad(counted, [Axis(0, 0, a.overhang, a.rows) for a in axes])
    else:
        counted = _pad(counted, axes)
    ones = torch.ones((x.shape[1], 1, *_each(layer.kernel_size, n)), dtype=x.dtype)
    options = {"stride": stride, "dilation": layer.dilation, "groups": x.shape[1]}
    return _crop(CONV[n](_pad(x, axes), ones, **options) / CONV[n](counted, ones, **options), axes)


def _adaptive(layer, params, state, x, train):
    size = layer.output_size
    return F.adaptive_avg_pool2d(x, size if isinstance(size, int) else tuple(size))


def _affine(layer, params, state, x, train):
    return F.linear(x.flatten(1), params["weight"].T, params.get("bias"))


def _batch_norm(layer, params, state, x, train):
    statistics = state["mean"], state["var"]
    return F.batch_norm(x, *statistics, params["gamma"], params["beta"], train, layer.momentum, layer.eps)


def _layer_norm(layer, params, state, x, train):
    given = range(1, x.ndim) if layer.axes is None else layer.axes
    axes = sorted(a % x.ndim for a in ([given] if isinstance(given, int) else given))
    last = list(range(x.ndim - len(axes), x.ndim))
    gamma, beta = params["gamma"], params["beta"]
    return F.layer_norm(x.movedim(axes, last), gamma.shape, gamma, beta, layer.eps).movedim(last, axes)


def _dropout(layer, params, state, x, train):
    assert not train or layer.rate == 0, "PyTorch draws other masks"
    return x


def _pad_channels(layer, params, state, x, train):
    return F.pad(x, [0, 0] * (x.ndim - 2) + [0, layer.channels - x.shape[1]])


def _sequential(layer, params, state, x, train):
    for name, child in layer.layers:
        x = run(child, _of(params, name), _of(state, name), x, train=train)
    return x


def _residual(layer, params, state, x, train):
    body, shortcut = (
        run(getattr(layer, name), _of(params, name), _of(state, name), x, train=train) for name in ("body", "shortcut")
    )
    return body + shortcut


def _parallel(layer, params, state, x, train):
    outputs = [run(child, _of(params, name), _of(state, name), x, train=train) for name, child in layer.branches]
    return torch.cat(outputs, 1) if layer.merge == "concat" else torch.stack(outputs).sum(0)


def _graph(layer, params, state, x, train):
    values = {"input": x}
    for name, child, inputs in layer.nodes:
        given = [values[one] for one in inputs]
        given = given[0] if len(given) == 1 else given
        values[name] = run(child, _of(params, name), _of(state, name), given, train=train)
    return values[layer.output]


def _join(layer, params, state, x, train):
    if layer.how in ("add", "concat"):
        return sum(x) if layer.how == "add" else torch.cat(list(x), 1)
    a, b = x
    return a - b if layer.how == "subtract" else a * b


def _scale(layer, params, state, x, train):
    return x * params.get("scale", 1.0) + params.get("shift", 0.0)


def _pad2d(layer, params, state, x, train):
    (top, bottom), (left, right) = (_each(p, 2) for p in _each(layer.padding, 2))
    return F.pad(x, [left, right, top, bottom], value=layer.value)


def _plain(function):
    """Return the rule of a layer whose only input is x."""
    return lambda layer, params, state, x, train: function(x, layer)


RULES = {
    **{f"Conv{n}D": _conv for n in CONV},
    **{f"ConvTranspose{n}D": _conv_transpose for n in CONV},
    **{f"MaxPool{n}D": _max_pool for n in CONV},
    **{f"AvgPool{n}D": _avg_pool for n in CONV},
    "AdaptiveAvgPool2D": _adaptive,
    "GlobalAvgPool": _plain(lambda x, layer: x.mean((2, 3))),
    "GlobalMaxPool": _plain(lambda x, layer: x.amax((2, 3))),
    "Affine": _affine,
    "Flatten": _plain(lambda x, layer: x.flatten(1)),
    "BatchNorm": _batch_norm,
    "LayerNorm": _layer_norm,
    "GroupNorm": lambda layer, p, state, x, train: F.group_norm(x, layer.groups, p["gamma"], p["beta"], layer.eps),
    "Dropout": _dropout,
    "PadChannels": _pad_channels,
    "Pad2D": _pad2d,
    "Upsample2D": _plain(lambda x, layer: F.interpolate(x, scale_factor=layer.factor, mode="nearest")),
    "Reshape": _plain(lambda x, layer: x.unflatten(0, (x.shape[0], 1)).flatten(1).unflatten(1, layer.shape)),
    "Clip": _plain(lambda x, layer: torch.clamp(x, layer.low, layer.high)),
    "HardSigmoid": _plain(lambda x, layer: torch.clamp(layer.alpha * x + layer.beta, 0, 1)),
    "Scale": _scale,
    "Join": _join,
    "ReLU": _plain(lambda x, layer: F.relu(x)),
    "ReLU6": _plain(lambda x, layer: F.relu6(x)),
    "LeakyReLU": _plain(lambda x, layer: F.leaky_relu(x, layer.negative_slope)),
    "ELU": _plain(lambda x, layer: F.elu(x, layer.alpha)),
    "SELU": _plain(lambda x, layer: F.selu(x)),
    "GELU": _plain(lambda x, layer: F.gelu(x, approximate=layer.approximate)),
    "SiLU": _plain(lambda x, layer: F.silu(x)),
    "Softplus": _plain(lambda x, layer: F.softplus(x, layer.beta, layer.threshold)),
    "HardSwish": _plain(lambda x, layer: F.hardswish(x)),
    "Sigmoid": _plain(lambda x, layer: torch.sigmoid(x)),
    "Tanh": _plain(lambda x, layer: torch.tanh(x)),
    "Softmax": _plain(lambda x, layer: F.softmax(x, layer.axis)),
    "LogSoftmax": _plain(lambda x, layer: F.log_softmax(x, layer.axis)),
    "Identity": _plain(lambda x, layer: x),
    "Sequential": _sequential,
    "Residual": _residual,
    "Parallel": _parallel,
    "Graph": _graph,
}
