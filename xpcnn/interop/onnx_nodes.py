"""ONNX's operators without windows as layers: activations, sums and products, matrices, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from xpcnn import layers as la
from xpcnn.interop.onnx_call import Call, Converter, Known, reads
from xpcnn.interop.onnx_fold import Unsupported
from xpcnn.interop.onnx_shapes import SHAPING
from xpcnn.interop.onnx_sketch import Tensor
from xpcnn.interop.onnx_windows import WINDOWED
from xpcnn.interop.onnx_wire import Host
from xpcnn.layers import Layer

SELU = {"alpha": 1.67326324, "gamma": 1.05070098}  # G. Klambauer et al., "Self-normalizing neural networks", 2017


def simple(make: Callable[..., Layer], **options: tuple[str, float]) -> Converter:
    """Return the converter to a layer whose options are float attributes, each with its name and usual value."""

    @reads(*options)
    def convert(call: Call) -> Tensor:
        return call.add(make(**{own: call.real(name, usual) for name, (own, usual) in options.items()}))

    return convert


@reads("alpha", "gamma")
def selu(call: Call) -> Tensor:
    """Take the scaled ELU, whose numbers are fixed here."""
    for name, usual in SELU.items():
        if abs(call.real(name, usual) - usual) > 1e-6 * usual:
            raise Unsupported(f"has the {name} {call.real(name, usual)}, not {usual}")
    return call.add(la.SELU())


@reads("approximate")
def gelu(call: Call) -> Tensor:
    """Take the GELU, exactly or nearly."""
    return call.add(la.GELU(call.text("approximate", "none")))


@reads("alpha")
def swish(call: Call) -> Tensor:
    """Multiply by the sigmoid."""
    if call.real("alpha", 1.0) != 1.0:
        raise Unsupported("has an alpha other than 1")
    return call.add(la.SiLU())


@reads("min", "max")
def clip(call: Call) -> Tensor:
    """Hold within bounds; what only a float's largest value bounds is not bounded."""
    low, high = call.number(1, "min", None), call.number(2, "max", None)
    largest = float(str(np.finfo(np.float32).max))
    low, high = None if low == -largest else low, None if high == largest else high
    if low is None and high is None:
        return call.x
    return call.add(la.ReLU6() if (low, high) == (0.0, 6.0) else la.Clip(low, high))


def softmax(make: Callable[..., Layer]) -> Converter:
    """Return the converter of a softmax; before opset 13 it is over all axes from one on."""

    @reads("axis")
    def convert(call: Call) -> Tensor:
        axis, rank = call.whole("axis", -1 if call.opset >= 13 else 1), len(call.shape) + 1
        (first,) = call.axes([axis], rank)
        if call.opset < 13 and prod(call.shape[first:]) != 1:
            raise Unsupported(f"is over all axes from {axis} on of examples {call.shape}")
        return call.add(make(axis=axis))

    return convert


def arithmetic(how: str) -> Converter:
    """Return the converter of an operator of two inputs, of which one may be a constant."""

    @reads()
    def convert(call: Call) -> Tensor:
        if len(call.given) == 2 and any(isinstance(value, Known) for value in call.given):
            return _with_constant(call, how)
        tensors = [call.tensor(index) for index in range(len(call.given))]
        if how == "divide":
            raise Unsupported("divides what depends on the images by what does, too")
        ranks = {len(call.shape_of(tensor)) for tensor in tensors}
        if len(ranks) > 1:
            raise Unsupported(f"joins examples of {' and '.join(map(str, sorted(ranks)))} axes")
        return tensors[0] if len(tensors) == 1 else call.add(la.Join(how), inputs=tensors)

    return convert


def _with_constant(call: Call, how: str) -> Tensor:
    """Multiply by a constant, or add one."""
    first = isinstance(call.given[0], Tensor)
    x, constant = (call.tensor(0), call.needed(1)) if first else (call.tensor(1), call.needed(0))
    shape = call.shape_of(x)
    if constant.ndim == len(shape) + 1:
        if constant.shape[0] != 1:
            raise Unsupported(f"takes a constant {constant.shape}, which differs from image to image")
        constant = constant.reshape(constant.shape[1:])
    stretches = constant.ndim > len(shape) or any(
        n not in (1, m) for n, m in zip(constant.shape[::-1], shape[::-1], strict=False)
    )
    if stretches or constant.dtype.kind != "f" or not constant.size:
        raise Unsupported(f"takes a constant {constant.shape} of {constant.dtype}, to examples {shape}")
    if how == "divide" and (not first or not constant.all()):
        raise Unsupported("divides a constant, or by 0")
    arrays = _line(how, constant, first)
    layer = la.Scale(constant.shape, scale="scale" in arrays, shift="shift" in arrays)
    return call.add(layer, arrays, [x])


def _line(how: str, constant: Host, first: bool) -> dict[str, Host]:
    """Return what an operation with a constant multiplies by and adds."""
    if how == "multiply":
        return {"scale": constant}
    if how == "divide":
        return {"scale": (1 / constant.astype(np.float64)).astype(constant.dtype)}
    if how == "add":
        return {"shift": constant}
    return {"shift": -constant} if first else {"scale": np.full_like(constant, -1), "shift": constant}


@reads("axis")
def concat(call: Call) -> Tensor:
    """Join along the channels."""
    tensors = [call.tensor(index) for index in range(len(call.given))]
    if call.axes([call.whole("axis", 1)], len(call.shape) + 1) != [1]:
        raise Unsupported(f"joins along axis {call.whole('axis', 1)}, not along the channels")
    for tensor in tensors:
        call.shape_of(tensor)
    return tensors[0] if len(tensors) == 1 else call.add(la.Join("concat"), inputs=tensors)


@reads("alpha", "beta", "transA", "transB")
def gemm(call: Call) -> Tensor:
    """Multiply by a matrix and add a bias; alpha and beta become part of them."""
    weight, bias = call.needed(1), call.constant(2)
    if call.whole("transA", 0):
        raise Unsupported("transposes what depends on the images")
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    weight = np.ascontiguousarray(weight.T) if call.whole("transB", 0) else weight
    weight = weight if alpha == 1 else (weight * alpha).astype(weight.dtype)
    if bias is not None:
        bias = bias if beta == 1 else (bias * beta).astype(bias.dtype)
    return _affine(call, weight, bias)


@reads()
def matmul(call: Call) -> Tensor:
    """Multiply by a matrix."""
    return _affine(call, call.needed(1), call.constant(2))


def _affine(call: Call, weight: Host, bias: Host | None) -> Tensor:
    """Add an affine layer, whose weight is (in, out)."""
    if weight.ndim != 2 or len(call.shape) != 1:
        raise Unsupported(f"multiplies examples {call.shape} by {weight.shape}: only vectors by a matrix")
    out = weight.shape[1]
    arrays = {"weight": weight}
    if bias is not None:
        if bias.shape not in ((out,), (1, out), (), (1,), (1, 1)):
            raise Unsupported(f"adds a bias {bias.shape}, which differs from image to image, to {out} numbers")
        arrays["bias"] = np.broadcast_to(bias.reshape(-1), (out,))
    return call.add(la.Affine(out, bias=bias is not None), arrays)


@reads("epsilon", "momentum", "training_mode", "spatial")
def batch_norm(call: Call) -> Tensor:
    """Normalise each channel; ONNX's momentum is the share of the old mean, here it is that of the new."""
    if call.whole("training_mode", 0) or not call.whole("spatial", 1):
        raise Unsupported("is in training mode, or normalises every pixel by itself (spatial=0)")
    momentum = round(1 - call.real("momentum", 0.9), 9)
    arrays = {name: call.needed(index) for index, name in enumerate(("gamma", "beta", "mean", "var"), start=1)}
    return call.add(la.BatchNorm(momentum, call.real("epsilon", 1e-5)), arrays)


@reads("epsilon")
def instance_norm(call: Call) -> Tensor:
    """Normalise each channel of each image."""
    arrays = {"gamma": call.needed(1), "beta": call.needed(2)}
    return call.add(la.GroupNorm(call.shape[0], call.real("epsilon", 1e-5)), arrays)


@reads("epsilon", "num_groups", "stash_type")
def group_norm(call: Call) -> Tensor:
    """Normalise groups of channels; before opset 21, scale and bias are those of a group."""
    groups, gamma, beta = call.whole("num_groups", 0), call.needed(1), call.needed(2)
    if groups < 1 or call.shape[0] % groups:
        raise Unsupported(f"has {groups} groups of {call.shape[0]} channels")
    if call.opset < 21:
        gamma, beta = (np.repeat(array, call.shape[0] // groups) for array in (gamma, beta))
    return call.add(la.GroupNorm(groups, call.real("epsilon", 1e-5)), {"gamma": gamma, "beta": beta})


@reads("axis", "axes", "epsilon", "stash_type")
def layer_norm(call: Call) -> Tensor:
    """Normalise each example over its last axes, or those that a transposition around it puts there."""
    rank = len(call.shape) + 1
    (first,) = call.axes([call.whole("axis", -1)], rank)
    axes = call.axes(call.wholes("axes") or list(range(first, rank)), rank)
    if 0 in axes:
        raise Unsupported("normalises over images, too")
    wanted = tuple(call.shape[axis - 1] for axis in axes)
    gamma, beta = call.needed(1), call.constant(2)
    beta = np.zeros_like(gamma) if beta is None else beta
    layer = la.LayerNorm(None if axes == list(range(1, rank)) else tuple(axes), call.real("epsilon", 1e-5))
    if gamma.shape != wanted or beta.shape != wanted:
        raise Unsupported(f"has {gamma.shape} and {beta.shape} numbers for axes of {wanted}")
    return call.add(layer, {"gamma": gamma, "beta": beta})


CONVERTERS: dict[str, Converter] = WINDOWED | SHAPING | {
    "Add": arithmetic("add"),
    "BatchNormalization": batch_norm,
    "Clip": clip,
    "Concat": concat,
    "Div": arithmetic("divide"),
    "Elu": simple(la.ELU, alpha=("alpha", 1.0)),
    "Gelu": gelu,
    "Gemm": gemm,
    "GroupNormalization": group_norm,
    "HardSigmoid": simple(la.HardSigmoid, alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "HardSwish": simple(la.HardSwish),
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": simple(la.LeakyReLU, alpha=("negative_slope", 0.01)),
    "LogSoftmax": softmax(la.LogSoftmax),
    "MatMul": matmul,
    "Mul": arithmetic("multiply"),
    "Relu": simple(la.ReLU),
    "Selu": selu,
    "Sigmoid": simple(la.Sigmoid),
    "Softmax": softmax(la.Softmax),
    "Softplus": simple(la.Softplus),
    "Sub": arithmetic("subtract"),
    "Sum": arithmetic("add"),
    "Swish": swish,
    "Tanh": simple(la.Tanh),
}  # fmt: skip
