"""ONNX files as networks: against onnxruntime, in all the ways that exporters write a layer."""

from __future__ import annotations

import numpy as np
import pytest
from layers.test_every_layer import CASES

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models, optim
from xpcnn.data.normalise import Normalise
from xpcnn.errors import XpcnnError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from interop.onnx_files import SHAPE, assert_agrees, expected, images, imported, kinds, made  # noqa: E402
from onnx import TensorProto  # noqa: E402

ZOO = {
    "densenet_bc": {"depth": 22, "input_shape": (3, 16, 16)}, "lenet5": {}, "mobilenet_v2": {"input_shape": (3, 32, 32)},
    "pooled_convnet": {}, "resnet8": {}, "resnet18": {"input_shape": (3, 96, 96)}, "resnet20": {}, "simple_convnet": {},
    "two_conv_net": {},
}  # fmt: skip
WRITTEN_OTHERWISE = {  # layers that are another one there and back, and which
    "PadChannels-none": ["Identity"], "Reshape-flat": ["Flatten"],
}  # fmt: skip
UNSAYABLE = ("AdaptiveAvgPool2D", "AdaptiveAvgPool2D-pair", "AdaptiveAvgPool2D-larger", "Softplus-options")
RNG = np.random.default_rng(11)


def f4(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def c(value, dtype=np.float32):
    return np.array(value, dtype)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


# there and back again


@pytest.mark.parametrize("name", ZOO)
def test_models_come_back_as_they_went(name, path):
    net = getattr(models, name)(classes=10, **ZOO[name])
    model = xc.Model(
        net, "cpu", 3, normalise=Normalise(0.1307, 0.3081), classes=[str(n) for n in range(10)], dataset="mnist"
    )
    model.to_onnx(path, check=False, normalise=True)
    again = xc.Model.from_onnx(path, "cpu")
    first = path.read_bytes()
    again.to_onnx(path, check=False, normalise=True)
    assert path.read_bytes() == first
    assert (again.classes, again.dataset, again.input_shape) == (model.classes, "mnist", model.input_shape)
    pixels = np.random.default_rng(1).integers(0, 256, (3, *model.input_shape), np.uint8)
    np.testing.assert_array_equal(again.predict(pixels), model.predict(pixels))
    assert list(again.parameters()) == [
        ".".join(p.split("/")[:-1]) + "/" + p.split("/")[-1] for p in model.parameters()
    ]
    assert isinstance(again.net, la.Graph) == any(
        "residual" in p or "dense" in p or "body" in p for p in model.parameters()
    )


def test_where_pooling_is_fused_otherwise_outputs_differ_by_rounding(path):
    layers = la.Conv2D(4, 3, padding=1), la.ReLU(), la.MaxPool2D(2, ceil_mode=True), la.Affine(3)
    model = xc.Model(la.Sequential(*layers, input_shape=SHAPE), "cpu")
    model.to_onnx(path, check=False)
    again, x = xc.Model.from_onnx(path, "cpu"), images()
    np.testing.assert_allclose(again.predict(x), model.predict(x), rtol=0, atol=1e-6 * np.abs(model.predict(x)).max())


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNSAYABLE])
def test_layers_come_back_as_they_went(name, path):
    layer, shape = CASES[name][:2]
    model = xc.Model(layer, "cpu", 3, input_shape=shape)
    model.to_onnx(path, check=False)
    again, first = xc.Model.from_onnx(path, "cpu"), path.read_bytes()
    again.to_onnx(path, check=False)
    if name in WRITTEN_OTHERWISE:
        assert kinds(again) == WRITTEN_OTHERWISE[name]
    else:
        assert path.read_bytes() == first
    x = images(shape=shape)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    again.save(path.with_suffix(".safetensors"))
    np.testing.assert_array_equal(xc.Model.load(path.with_suffix(".safetensors"), "cpu").predict(x), model.predict(x))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "densenet_bc"])
def test_an_import_trains_as_the_original(name, path):
    net = getattr(models, name)(classes=4, **ZOO[name] | ({"dropout": 0.0} if name == "mobilenet_v2" else {}))
    model = xc.Model(net, "cpu", 3, dtype="float64")
    model.to_onnx(path, check=False)
    again = xc.Model.from_onnx(path, "cpu")
    assert again.dtype == "float64"
    x, t = images(6, model.input_shape).astype(np.float64), np.arange(6) % 4
    before = model.parameters()
    losses = [float(xc.Trainer(m, optim.sgd(lr=1.0)).step(x, t)) for m in (model, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    found = model.parameters() | model.state(), again.parameters() | again.state()
    assert len(found[0]) == len(found[1])
    moved = 0.0
    for p, array in found[0].items():
        *layer, own = p.split("/")
        np.testing.assert_allclose(found[1][f"{'.'.join(layer)}/{own}"], array, rtol=1e-9, atol=1e-12, err_msg=p)
        moved += np.abs(array - before[p]).max() if p in before else 0.0
    assert moved > 0.1


# patterns: several nodes that are one layer


HARD_SWISH = {
    "div last": [("Add", ["x", "3"], "a", {}), ("Clip", ["a", "0", "6"], "b", {}), ("Mul", ["x", "b"], "c", {}),
                 ("Div", ["c", "6"], "y", {})],
    "div first": [("Add", ["3", "x"], "a", {}), ("Clip", ["a", "0", "6"], "b", {}), ("Div", ["b", "6"], "c", {}),
                  ("Mul", ["c", "x"], "y", {})],
    "times a sixth": [("Mul", ["x", "sixth"], "s", {}), ("Sub", ["x", "-3"], "a", {}), ("Clip", ["a", "0", "6"], "b", {}),
                      ("Mul", ["b", "s"], "y", {})],
    "hard sigmoid": [("HardSigmoid", ["x"], "a", {"alpha": 1 / 6}), ("Mul", ["a", "x"], "y", {})],
}  # fmt: skip
GELU = {
    "pytorch": [("Div", ["x", "root2"], "a", {}), ("Erf", ["a"], "b", {}), ("Add", ["b", "1"], "c", {}),
                ("Mul", ["x", "c"], "d", {}), ("Mul", ["d", "half"], "y", {})],
    "keras": [("Mul", ["x", "half"], "h", {}), ("Mul", ["x", "halfroot"], "a", {}), ("Erf", ["a"], "b", {}),
              ("Add", ["1", "b"], "c", {}), ("Mul", ["h", "c"], "y", {})],
    "half inside": [("Mul", ["x", "halfroot"], "a", {}), ("Erf", ["a"], "b", {}), ("Add", ["1", "b"], "c", {}),
                    ("Mul", ["c", "half"], "d", {}), ("Mul", ["x", "d"], "y", {})],
    "tanh": [("Pow", ["x", "3"], "p", {}), ("Mul", ["p", "0.044715"], "q", {}), ("Add", ["x", "q"], "r", {}),
             ("Mul", ["r", "root2pi"], "s", {}), ("Tanh", ["s"], "t", {}), ("Add", ["t", "1"], "u", {}),
             ("Mul", ["x", "u"], "v", {}), ("Mul", ["v", "half"], "y", {})],
    "tanh by products": [("Mul", ["x", "x"], "xx", {}), ("Mul", ["xx", "x"], "p", {}), ("Mul", ["p", "0.044715"], "q", {}),
             ("Add", ["x", "q"], "r", {}), ("Mul", ["r", "root2pi"], "s", {}), ("Tanh", ["s"], "t", {}),
             ("Add", ["t", "1"], "u", {}), ("Mul", ["x", "half"], "v", {}), ("Mul", ["v", "u"], "y", {})],
}  # fmt: skip
SILU = {
    "plain": [("Sigmoid", ["x"], "a", {}), ("Mul", ["x", "a"], "y", {})],
    "with a beta of 1": [("Mul", ["x", "1"], "b", {}), ("Sigmoid", ["b"], "a", {}), ("Mul", ["a", "x"], "y", {})],
}  # fmt: skip
NUMBERS = {
    "0": c(0), "1": c([1]), "3": c(3), "-3": c(-3), "6": c(6), "sixth": c(1 / 6), "half": c(0.5), "root2": c(2**0.5),
    "halfroot": c(0.5**0.5), "root2pi": c((2 / np.pi) ** 0.5), "0.044715": c(0.044715),
}  # fmt: skip
PATTERNS = {
    **{f"hard swish, {name}": (nodes, ["HardSwish"]) for name, nodes in HARD_SWISH.items()},
    **{f"GELU, {name}": (nodes, ["GELU"]) for name, nodes in GELU.items()},
    **{f"SiLU, {name}": (nodes, ["SiLU"]) for name, nodes in SILU.items()},
    "hard sigmoid": ([*HARD_SWISH["div first"][:2], ("Div", ["b", "6"], "y", {})], ["HardSigmoid"]),
    "not quite hard swish": (
        [("Add", ["x", "1"], "a", {}), ("Clip", ["a", "0", "6"], "b", {}), ("Mul", ["x", "b"], "c", {}),
         ("Div", ["c", "6"], "y", {})], ["Scale", "ReLU6", "Join", "Scale"],
    ),
    "not quite SiLU": (
        [("Mul", ["x", "half"], "b", {}), ("Sigmoid", ["b"], "a", {}), ("Mul", ["a", "x"], "y", {})],
        ["Scale", "Sigmoid", "Join"],
    ),
    "a sigmoid that is also used otherwise": (
        [("Sigmoid", ["x"], "a", {}), ("Mul", ["x", "a"], "b", {}), ("Add", ["a", "b"], "y", {})],
        ["Sigmoid", "Join", "Join"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name, path):
    nodes, layers = PATTERNS[name]
    found = assert_agrees(made([(*row[:3], dict(row[3])) for row in nodes], NUMBERS), path)
    assert kinds(found) == layers


W, B = f4(5, 3, 3, 3), f4(5)
LINEAR = {
    "bias after a convolution": ([("Conv", ["x", "w"], "a", {}), ("Add", ["a", "b"], "y", {})],
                                 {"w": W, "b": B.reshape(1, 5, 1, 1)}, ["Conv2D"]),
    "bias before": ([("Conv", ["x", "w"], "a", {}), ("Add", ["b", "a"], "y", {})],
                    {"w": W, "b": B.reshape(5, 1, 1)}, ["Conv2D"]),
    "a sum per column is no bias": ([("Conv", ["x", "w"], "a", {}), ("Add", ["a", "b"], "y", {})],
                                    {"w": f4(4, 3, 3, 3), "b": f4(4)}, ["Conv2D", "Scale"]),
    "a second bias": ([("Conv", ["x", "w", "c"], "a", {}), ("Add", ["a", "b"], "y", {})],
                      {"w": W, "b": B.reshape(5, 1, 1), "c": f4(5)}, ["Conv2D", "Scale"]),
    "bias of a transposed convolution": (
        [("ConvTranspose", ["x", "w"], "a", {"group": 3, "strides": [2, 2]}), ("Add", ["a", "b"], "y", {})],
        {"w": f4(3, 2, 2, 2), "b": f4(1, 6, 1, 1)}, ["ConvTranspose2D"]),
    "bias of a product": (
        [("Flatten", ["x"], "a", {}), ("MatMul", ["a", "w"], "c", {}), ("Add", ["c", "b"], "y", {})],
        {"w": f4(144, 4), "b": f4(4)}, ["Flatten", "Affine"]),
    "gemm": (
        [("Flatten", ["x"], "a", {}), ("Gemm", ["a", "w", "b"], "y", {"alpha": 0.5, "beta": 2.0, "transB": 1})],
        {"w": f4(4, 144), "b": f4(1, 4)}, ["Flatten", "Affine"]),
    "gemm without a bias": ([("Flatten", ["x"], "a", {}), ("Gemm", ["a", "w"], "y", {})], {"w": f4(144, 4)},
                            ["Flatten", "Affine"]),
    "padding before a convolution": (
        [("Pad", ["x", "p"], "a", {}), ("Conv", ["a", "w", "b"], "y", {"pads": [1, 0, 0, 0], "strides": [2, 1]})],
        {"w": W, "b": B, "p": c([0, 0, 0, 1, 0, 0, 2, 0], np.int64)}, ["Conv2D"]),
    "padding with ones": (
        [("Pad", ["x", "p", "v"], "a", {}), ("Conv", ["a", "w", "b"], "y", {})],
        {"w": W, "b": B, "p": c([0, 0, 0, 1, 0, 0, 2, 0], np.int64), "v": c(1)}, ["Pad2D", "Conv2D"]),
    "padding that is also used otherwise": (
        [("Pad", ["x", "p"], "a", {}), ("Conv", ["a", "w"], "d", {"pads": [1, 1, 1, 1]}), ("Add", ["a", "d"], "y", {})],
        {"w": f4(3, 3, 3, 3), "p": c([0, 0, 0, 1, 0, 0, 2, 0], np.int64)}, ["Pad2D", "Conv2D", "Join"]),
    "scale and shift": ([("Mul", ["x", "s"], "a", {}), ("Add", ["t", "a"], "y", {})],
                        {"s": f4(3, 1, 1), "t": f4(1, 3, 1, 1)}, ["Scale"]),
    "quotients and differences": (
        [("Div", ["x", "s"], "a", {}), ("Sub", ["t", "a"], "b", {}), ("Sub", ["b", "s"], "y", {})],
        {"s": c(1.5) + abs(f4(3, 1, 1)), "t": f4(8, 6)}, ["Scale", "Scale", "Scale"]),
    "layer norm of channels": (
        [("Transpose", ["x"], "a", {"perm": [0, 2, 3, 1]}), ("LayerNormalization", ["a", "s", "t"], "b", {}),
         ("Transpose", ["b"], "y", {"perm": [0, 3, 1, 2]})], {"s": f4(3), "t": f4(3)}, ["LayerNorm"]),
    "instance norm": ([("InstanceNormalization", ["x", "s", "t"], "y", {})], {"s": f4(3), "t": f4(3)}, ["GroupNorm"]),
    "batch norm": (
        [("BatchNormalization", ["x", "s", "t", "m", "v"], "y", {"epsilon": 0.01})],
        {"s": f4(3), "t": f4(3), "m": f4(3), "v": abs(f4(3))}, ["BatchNorm"]),
    "squeeze and excitation": (
        [("GlobalAveragePool", ["x"], "a", {}), ("Conv", ["a", "w", "b"], "d", {}), ("Sigmoid", ["d"], "e", {}),
         ("Mul", ["x", "e"], "y", {})], {"w": f4(3, 3, 1, 1), "b": f4(3)}, ["AdaptiveAvgPool2D", "Conv2D", "Sigmoid", "Join"]),
    "branches": (
        [("Conv", ["x", "w"], "a", {"pads": [1, 1, 1, 1]}), ("Concat", ["x", "a"], "d", {"axis": -3}),
         ("Sub", ["x", "x"], "e", {}), ("Sum", ["e", "x", "x"], "f", {}), ("Concat", ["d", "f"], "y", {"axis": 1})],
        {"w": f4(2, 3, 3, 3)}, ["Conv2D", "Join", "Join", "Join", "Join"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_what_belongs_together_is_one_layer(name, path):
    nodes, constants, layers = LINEAR[name]
    assert kinds(assert_agrees(made([(*row[:3], dict(row[3])) for row in nodes], constants), path)) == layers


I8 = np.int64
FLAT = {
    "Flatten": ([("Flatten", ["p"], "y", {})], {}),
    "Reshape to 0, -1": ([("Reshape", ["p", "s"], "y", {})], {"s": c([0, -1], I8)}),
    "Reshape to -1, 3": ([("Reshape", ["p", "s"], "y", {})], {"s": c([-1, 3], I8)}),
    "Squeeze": ([("Squeeze", ["p", "s"], "y", {})], {"s": c([2, -1], I8)}),
    "by its shape": (
        [("Shape", ["p"], "a", {}), ("Gather", ["a", "zero"], "b", {}), ("Unsqueeze", ["b", "axis"], "d", {}),
         ("Concat", ["d", "rest"], "e", {"axis": 0}), ("Reshape", ["p", "e"], "y", {})],
        {"zero": c(0, I8), "axis": c([0], I8), "rest": c([-1], I8)}),
    "by its shape, sliced and cast": (
        [("Shape", ["p"], "a", {}), ("Cast", ["a"], "b", {"to": 6}), ("Slice", ["b", "zero", "one"], "d", {}),
         ("Cast", ["d"], "e", {"to": 7}), ("Concat", ["e", "rest"], "f", {"axis": -1}), ("Reshape", ["p", "f"], "y", {})],
        {"zero": c([0], I8), "one": c([1], I8), "rest": c([3], I8)}),
    "by all its sizes": (
        [("Shape", ["p"], "a", {"start": 1}), ("ReduceProd", ["a"], "b", {}), ("Shape", ["p"], "d", {"end": 1}),
         ("Concat", ["d", "b"], "e", {"axis": 0}), ("Reshape", ["p", "e"], "y", {})], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools_that_are_flattened(name, pool, path):
    nodes, constants = FLAT[name]
    rows = [(pool, ["x"], "p", {}), *((*row[:3], dict(row[3])) for row in nodes)]
    assert kinds(assert_agrees(made(rows, constants), path)) == [pool.replace("erage", "g")]


@pytest.mark.parametrize("keepdims", [0, 1])
def test_means_over_all_pixels(keepdims, path):
    found = assert_agrees(made([("ReduceMean", ["x"], "y", {"axes": [-1, 2], "keepdims": keepdims})]), path)
    assert kinds(found) == ["AdaptiveAvgPool2D" if keepdims else "GlobalAvgPool"]
    newer = made([("ReduceMean", ["x", "a"], "y", {"keepdims": keepdims})], {"a": c([3, 2], I8)}, opset=18)
    assert kinds(assert_agrees(newer, path)) == kinds(found)


def test_a_global_pool_that_is_not_flattened_keeps_its_axes(path):
    assert assert_agrees(made([("GlobalMaxPool", ["x"], "y", {})]), path).output_shape == (3, 1, 1)
    assert assert_agrees(made([("GlobalAveragePool", ["x"], "y", {})]), path).output_shape == (3, 1, 1)


def test_other_arrangements(path):
    nodes = [
        ("Reshape", ["x", "s"], "a", {}), ("Unsqueeze", ["a", "one"], "b", {}), ("Transpose", ["b"], "d", {"perm": [0, 2, 1, 3]}),
        ("Cast", ["d"], "e", {"to": 1}), ("Identity", ["e"], "y", {}),
    ]  # fmt: skip
    found = assert_agrees(made(nodes, {"s": c([0, 24, -1], I8), "one": c([1], I8)}), path)
    assert kinds(found) == ["Reshape", "Reshape", "Reshape"]
    assert found.output_shape == (24, 1, 6)


# older operators, and the many ways to say padding


OLD = {
    "Clip": ([("Clip", ["x"], "y", {"min": 0.0, "max": 6.0})], {}, ["ReLU6"]),
    "Clip above": ([("Clip", ["x"], "y", {"max": 0.5})], {}, ["Clip"]),
    "Dropout": ([("Dropout", ["x"], "y", {"ratio": 0.25})], {}, ["Dropout"]),
    "Upsample": ([("Upsample", ["x"], "y", {"scales": [1.0, 1.0, 2.0, 3.0]})], {}, ["Upsample2D"]),
    "Squeeze": ([("GlobalAveragePool", ["x"], "a", {}), ("Squeeze", ["a"], "y", {"axes": [2, 3]})], {}, ["GlobalAvgPool"]),
    "Unsqueeze": ([("Unsqueeze", ["x"], "y", {"axes": [1]})], {}, ["Reshape"]),
    "Pad": ([("Pad", ["x"], "y", {"pads": [0, 0, 1, 2, 0, 0, 0, 3], "value": 0.5})], {}, ["Pad2D"]),
    "Softmax": ([("Flatten", ["x"], "a", {}), ("Softmax", ["a"], "y", {})], {}, ["Flatten", "Softmax"]),
    "BatchNormalization": (
        [("BatchNormalization", ["x", "s", "s", "s", "v"], "y", {})], {"s": f4(3), "v": abs(f4(3))}, ["BatchNorm"]),
    "AveragePool": ([("AveragePool", ["x"], "y", {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]})], {}, ["AvgPool2D"]),
    "Gemm": ([("Flatten", ["x"], "a", {}), ("Gemm", ["a", "w", "b"], "y", {})], {"w": f4(144, 2), "b": f4(2)},
             ["Flatten", "Affine"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_older_operators(name, path):
    nodes, constants, layers = OLD[name]
    model = made([(*row[:3], dict(row[3])) for row in nodes], constants, opset=7)
    assert kinds(assert_agrees(model, path)) == layers


def test_dropout_remembers_its_rate(path):
    for version, nodes, constants in (
        (7, [("Dropout", ["x"], "y", {"ratio": 0.25})], {}), (13, [("Dropout", ["x", "r"], "y", {})], {"r": c(0.25)}),
        (13, [("Dropout", ["x", "r", "t"], "y", {})], {"r": c(0.25), "t": np.array(False)}),
    ):  # fmt: skip
        ((_, layer),) = imported(made(nodes, constants, opset=version), path).net.layers
        assert layer == la.Dropout(0.25)
    with pytest.raises(XpcnnError, match=r"Dropout n0 \(drops values in prediction, too \(training_mode\)\)"):
        imported(made([("Dropout", ["x", "r", "t"], "y", {})], {"r": c(0.25), "t": np.array(True)}), path)


WINDOWS = {
    f"{op}, {auto}, {size}": (op, {"auto_pad": auto, "strides": [2, 3], "kernel_shape": list(size)})
    for op in ("Conv", "MaxPool", "AveragePool") for auto in ("SAME_UPPER", "SAME_LOWER", "VALID") for size in ((3, 3), (4, 5))
} | {
    "MaxPool, ceil": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "AveragePool, ceil, counted": ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1],
                                                   "ceil_mode": 0, "count_include_pad": 1}),
    "ConvTranspose, SAME_UPPER": ("ConvTranspose", {"auto_pad": "SAME_UPPER", "strides": [2, 3], "kernel_shape": [3, 4]}),
    "ConvTranspose, output_shape": ("ConvTranspose", {"output_shape": [16, 18], "strides": [2, 3], "kernel_shape": [3, 4]}),
    "ConvTranspose, output_padding": ("ConvTranspose", {"output_padding": [1, 0], "strides": [2, 2], "kernel_shape": [3, 3],
                                                        "pads": [1, 1, 0, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_paddings(name, path):
    op, options = WINDOWS[name]
    weight = {"w": f4(3, 3, *options["kernel_shape"])} if "Conv" in op else {}
    assert_agrees(made([(op, ["x", *weight], "y", dict(options))], weight), path)


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes(axes, path):
    shape = (2, 6, 5, 4)[: axes + 1]
    nodes = [
        ("Conv", ["x", "w"], "a", {"pads": [1] * 2 * axes, "group": 2}), ("MaxPool", ["a"], "b", {"kernel_shape": [2] * axes}),
        ("ConvTranspose", ["b", "v"], "d", {}), ("AveragePool", ["d"], "e", {"kernel_shape": [2] * axes}),
        ("GlobalAveragePool", ["e"], "f", {}), ("Flatten", ["f"], "y", {}),
    ]  # fmt: skip
    found = assert_agrees(made(nodes, {"w": f4(4, 1, *(3,) * axes), "v": f4(4, 2, *(2,) * axes)}, shape=shape), path)
    assert kinds(found)[:2] == [f"Conv{axes}D", f"MaxPool{axes}D"]


RESIZED = {
    "asymmetric": ({"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, [1, 1, 2, 3]),
    "half pixel": ({}, [1, 1, 3, 4]),
    "half pixel, ceil": ({"nearest_mode": "round_prefer_ceil"}, [1, 1, 2, 5]),
    "pytorch": ({"coordinate_transformation_mode": "pytorch_half_pixel"}, [1, 1, 4, 3]),
    "asymmetric, rounded": ({"coordinate_transformation_mode": "asymmetric"}, [1, 1, 2, 2]),
}


@pytest.mark.parametrize("name", RESIZED)
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resizing(name, by, path):
    options, factors = RESIZED[name]
    if by == "scales":
        model = made([("Resize", ["x", "", "s"], "y", dict(options))], {"s": c(factors)})
    else:  # the batch's size comes from the image
        nodes = [("Shape", ["x"], "a", {"end": 2}), ("Concat", ["a", "s"], "b", {"axis": 0}),
                 ("Resize", ["x", "", "", "b"], "y", dict(options))]  # fmt: skip
        model = made(nodes, {"s": c([8 * factors[2], 6 * factors[3]], I8)})
    assert kinds(assert_agrees(model, path)) == ["Upsample2D"]


# inputs and outputs, types and names


@pytest.mark.parametrize(
    ("nodes", "constants", "mean", "std", "layers"),
    [
        ([("Mul", ["f", "a"], "g", {}), ("Sub", ["g", "b"], "y", {})], {"a": c(1 / 51), "b": c(0.75)}, 0.15, 0.2, []),
        ([("Div", ["f", "a"], "g", {}), ("Add", ["g", "b"], "y", {})], {"a": c(255), "b": c(-0.5)}, 0.5, 1.0, []),
        ([("Sub", ["f", "b"], "g", {}), ("Div", ["g", "a"], "y", {})], {"a": c(51), "b": c(127.5)}, 0.5, 0.2, []),
        ([("Relu", ["f"], "y", {})], {}, 0.0, 1 / 255, ["ReLU"]),
        ([("Mul", ["f", "a"], "g", {}), ("Mul", ["g", "b"], "y", {})], {"a": c(1 / 51), "b": c(0.75)}, 0.0, 0.2, ["Scale"]),
        ([("Sub", ["f", "b"], "g", {}), ("Div", ["g", "a"], "y", {})],
         {"a": c([50, 51, 52]).reshape(3, 1, 1), "b": c([120, 121, 122]).reshape(3, 1, 1)}, 0.0, 1 / 255, ["Scale", "Scale"]),
    ],
)  # fmt: skip
def test_normalisation_of_pixels(nodes, constants, mean, std, layers, path):
    rows = [("Cast", ["x"], "f", {"to": 1}), *((*row[:3], dict(row[3])) for row in nodes)]
    model = made(rows, constants, dtype=TensorProto.UINT8)
    pixels = np.random.default_rng(1).integers(0, 256, (3, *SHAPE), np.uint8)
    found = assert_agrees(model, path, x=pixels)
    assert (found.normalise.mean, found.normalise.std) == (pytest.approx(mean), pytest.approx(std))
    assert [kind for kind in kinds(found) if kind != "Identity"] == layers


def test_half_precision_weights_become_float32(path):
    w = f4(2, 3, 1, 1).astype(np.float16)
    nodes = [("Cast", ["w"], "v", {"to": 1}), ("Conv", ["x", "v"], "y", {})]
    found = assert_agrees(made(nodes, {"w": w}), path)
    assert found.dtype == "float32"
    np.testing.assert_array_equal(next(iter(found.parameters().values())), w.astype(np.float32))


def test_numbers_however_they_are_stored(path):
    w = f4(2, 3, 1, 1)
    tensor = onnx.helper.make_tensor("w", TensorProto.FLOAT, w.shape, w.reshape(-1).tolist())  # not as raw bytes
    half = onnx.helper.make_tensor("h", TensorProto.FLOAT16, (2, 1, 1), [0.5, -3.0])
    wide = onnx.helper.make_tensor("b", TensorProto.BFLOAT16, (2, 1, 1), [2.0, 0.25])
    model = made([("Conv", ["x", "w"], "a", {}), ("Mul", ["a", "h"], "m", {}), ("Add", ["m", "b"], "y", {})])
    model.graph.initializer.extend([tensor, half, wide])
    x = images()
    y = np.einsum("fc,nchw->nfhw", w[:, :, 0, 0], x) * c([0.5, -3.0])[:, None, None] + c([2.0, 0.25])[:, None, None]
    np.testing.assert_allclose(imported(model, path).predict(x), y, atol=1e-5)


def test_a_file_for_one_image_takes_batches(path):
    nodes = [("Reshape", ["x", "s"], "a", {}), ("MatMul", ["a", "w"], "y", {})]
    model = made(nodes, {"s": c([1, -1], I8), "w": f4(144, 2)}, batch=1)
    found, x = imported(model, path), images()
    np.testing.assert_allclose(found.predict(x), np.concatenate([expected(model, one[None]) for one in x]), atol=1e-5)


def test_a_network_can_end_at_any_tensor(path):
    nodes = [("Conv", ["x", "w"], "a", {}), ("Relu", ["a"], "b", {}), ("Det", ["b"], "y", {})]
    model = made(nodes, {"w": f4(3, 3, 1, 1)})
    with pytest.raises(XpcnnError, match=r"1 of its 3 nodes has no counterpart: Det n2 \(has no counterpart\)\.$"):
        imported(model, path)
    found = imported(model, path, output="b")
    assert kinds(found) == ["Conv2D", "ReLU"]
    with pytest.raises(XpcnnError, match=r"no node makes the output 'c'; its own outputs are y\."):
        imported(model, path, output="c")


def test_several_outputs_must_be_chosen_from(path):
    model = made([("Relu", ["x"], "y", {}), ("Tanh", ["y"], "z", {})], outputs=("y", "z"))
    with pytest.raises(XpcnnError, match=r"it has 2 outputs \(y, z\): choose the tensor to end at with output=\."):
        imported(model, path)
    assert kinds(imported(model, path, output="z")) == ["ReLU", "Tanh"]
    assert kinds(imported(model, path, output="y")) == ["ReLU"]


def test_several_inputs(path):
    model = made([("Add", ["x", "u"], "a", {}), ("Relu", ["x"], "b", {})], inputs=[("u", SHAPE)], outputs=("a", "b"))
    with pytest.raises(XpcnnError, match=r"its output a takes x, u, and a network here has one input\."):
        imported(model, path, output="a")
    assert kinds(imported(model, path, output="b")) == ["ReLU"]


def test_open_sizes_are_given(path):
    model = made([("Conv", ["x", "w"], "y", {})], {"w": f4(2, 3, 3, 3)}, shape=(3, None, "W"))
    with pytest.raises(
        XpcnnError, match=r"its input x takes \(N, 3, \?, \?\), so that sizes are open: give input_shape"
    ):
        imported(model, path)
    assert_agrees(model, path, input_shape=(3, 5, 9))
    with pytest.raises(XpcnnError, match=r"takes \(N, 3, \?, \?\), not the input_shape \(1, 5, 9\)"):
        imported(model, path, input_shape=(1, 5, 9))
    with pytest.raises(XpcnnError, match="input_shape must be one example's shape"):
        imported(model, path, input_shape=7)


def test_everything_without_a_counterpart_is_said_at_once(path):
    nodes = [
        ("Transpose", ["x"], "a", {"perm": [0, 1, 3, 2], "name": "turn"}), ("Relu", ["a"], "b", {}),
        ("Einsum", ["b"], "d", {"equation": "nchw->nc", "name": "sum"}), ("MaxPool", ["x"], ["e", "f"], {"kernel_shape": [2, 2]}),
        ("Resize", ["e", "", "s"], "g", {"mode": "linear", "name": ""}), ("MatMul", ["d", "d"], "h", {"name": "one"}),
        ("MatMul", ["h", "d"], "i", {"name": "two"}), ("Relu", ["f"], "j", {"alpha": 3.0}), ("Join3", ["g", "i", "j"], "y", {}),
    ]  # fmt: skip
    model = made(nodes, {"s": c([1, 1, 2, 2])})
    model.graph.node[8].domain = "org.example"
    with pytest.raises(XpcnnError) as caught:
        imported(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be imported: 8 of its 9 nodes have no counterpart: ")
    for part in (
        "Transpose turn (puts the axes of examples (3, 8, 6) in the order [0, 1, 3, 2])", "Einsum sum (has no counterpart)",
        "Resize the one that makes g (resizes in the mode linear, not by repeating pixels)",
        "MatMul one, two (takes an input 1 that is no constant)", "Relu n7 (has the attribute alpha, which is not understood)",
        "org.example::Join3 n8 (has no counterpart)", "MaxPool n3 (has more outputs than are understood (f))",
    ):  # fmt: skip
        assert part in message


def test_layers_are_called_as_nodes(path):
    names = ["/stage1/conv", "/stage1/conv", "", "input", "stage1.conv__"]
    rows = [("Relu", [a], b, {"name": name}) for a, b, name in zip("xabcd", "abcdy", names, strict=True)]
    found = [name for name, _ in imported(made(rows), path).net.layers]
    assert found == ["stage1.conv", "stage1.conv_2", "relu3", "input_2", "stage1.conv__"]


def test_float_options_are_what_was_meant(path):
    rows = [("LeakyRelu", ["x"], "a", {"alpha": 0.1}), ("Elu", ["a"], "y", {"alpha": 1.3})]
    (_, leaky), (_, elu) = imported(made(rows), path).net.layers
    assert (leaky.negative_slope, elu.alpha) == (0.1, 1.3)


def test_an_empty_network_passes_its_input_on(path):
    x = images()
    np.testing.assert_array_equal(imported(made([("Identity", ["x"], "y", {})]), path).predict(x), x)


def test_no_package_is_needed(path):
    import subprocess
    import sys

    path.write_bytes(made([("Relu", ["x"], "y", {})]).SerializeToString())
    program = f"import sys; sys.modules['onnx'] = None; import xpcnn; xpcnn.Model.from_onnx({str(path)!r}, 'cpu')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_nodes_of_one_name_get_names_of_their_own_and_faults_are_few_words(tmp_path):
    from onnx import TensorProto, helper

    def write(nodes):
        takes, gives = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", f"x{len(nodes)}")
        )
        graph = helper.make_graph(nodes, "graph", [takes], [gives])
        path = tmp_path / "model.onnx"
        path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
        return path

    def chain(op, count):
        return [helper.make_node(op, [f"x{i}" if i else "x"], [f"x{i + 1}"], name="a") for i in range(count)]

    model = xc.Model.from_onnx(write(chain("Relu", 3000)), "cpu")
    assert len({name for name, _ in model.net.layers}) == 3000
    with pytest.raises(xc.XpcnnError) as raised:
        xc.Model.from_onnx(write(chain("Nonsense", 3000)), "cpu")
    assert "3000 of its 3000 nodes have no counterpart" in str(raised.value)
    assert len(str(raised.value)) < 2000
