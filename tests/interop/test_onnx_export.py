"""ONNX files: what they compute in onnxruntime and ONNX's reference evaluator, what they hold, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from layers.test_every_layer import CASES

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import optim
from xpcnn.data.normalise import Normalise
from xpcnn.errors import XpcnnError
from xpcnn.layers.describe import LAYERS

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from xpcnn.interop import onnx_check, onnx_export  # noqa: E402
from xpcnn.interop.onnx_converters import CONVERTERS  # noqa: E402

IMAGE = (4, 7, 6)
TARGET = 1e-5  # of the largest output, in float32
TARGET64 = 1e-7  # in float64, where options such as eps and slopes are float32 nevertheless
UNSAYABLE = {  # cases that ONNX has no words for, and what is said of them
    "AdaptiveAvgPool2D": "one (AdaptiveAvgPool2D) has bins of different sizes, (7, 6) to (3, 3)",
    "AdaptiveAvgPool2D-pair": "has bins of different sizes, (7, 6) to (5, 6)",
    "AdaptiveAvgPool2D-larger": "has bins of different sizes, (7, 6) to (9, 1)",
    "Softplus-options": "has the threshold 2.0",
}
MORE = {
    "AdaptiveAvgPool2D-even": (la.AdaptiveAvgPool2D((3, 2)), (2, 6, 8)),
    "AdaptiveAvgPool2D-kept": (la.AdaptiveAvgPool2D(None), IMAGE),
    "AdaptiveAvgPool2D-one": (la.AdaptiveAvgPool2D(1), IMAGE),
    "AvgPool2D-ceil-inside": (la.AvgPool2D(2, ceil_mode=True), IMAGE),
    "AvgPool2D-ceil-uncounted": (la.AvgPool2D(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), IMAGE),
    "Conv2D-center-beyond": (la.Conv2D(2, 5, stride=3, center=(4, 4), mode="convolution"), (2, 3, 2)),
    "Conv2D-center-gap": (la.Conv2D(2, 2, stride=3, dilation=7, center=(1, 1)), (2, 3, 3)),
    "ConvTranspose2D-less-padding": (la.ConvTranspose2D(2, 3, padding=2, dilation=2, output_padding=1), IMAGE),
    "ConvTranspose2D-same-wide": (la.ConvTranspose2D(2, 2, stride=3, padding="same"), IMAGE),
    "Dropout-half": (la.Dropout(0.5), IMAGE),
    "ELU-whole": (la.ELU(1), IMAGE),
    "MaxPool1D-uneven": (la.MaxPool1D(4, stride=1, padding=((0, 3),)), (2, 7)),
    "MaxPool2D-dilated-padding": (la.MaxPool2D(2, padding=2, dilation=3), IMAGE),
    "ReLU6-large": (la.Sequential(la.Scale(()), la.ReLU6()), IMAGE),
    "Softplus-beta": (la.Softplus(beta=3.0), IMAGE),
}  # fmt: skip
GAPS = {  # what the reference evaluator gets wrong, though onnxruntime and ONNX's shape inference do not
    "ConvTranspose1D-options", "ConvTranspose2D-options", "ConvTranspose2D-less-padding", "ConvTranspose3D", "MaxPool1D-uneven",
}  # fmt: skip
WITHOUT_FLOAT64 = {"Conv2D-groups", "AvgPool2D-ceil", "Softplus-beta", "Residual"}  # of onnxruntime's operators
IN_FLOAT64 = sorted(
    {"Affine-images", "BatchNorm", "GroupNorm", "LayerNorm-channels", "LeakyReLU", "ReLU6-large"} | WITHOUT_FLOAT64
)
ALONE = {name: case for name, case in CASES.items() if name not in UNSAYABLE} | MORE


@dataclass(frozen=True)
class Unheard(la.Identity):
    """A layer of a user's own."""


@dataclass(frozen=True)
class OwnConv(la.Conv2D):
    """One that inherits a converter's class, and might compute anything."""


def drawn(net, rng, dtype="float32", **options):
    """Return a model whose every parameter and statistic is drawn, so that none is where it began."""
    model = xc.Model(net, "cpu", dtype=dtype, **options)
    values = {}
    for path, array in (model.parameters() | model.state()).items():
        values[path] = rng.uniform(0.5, 1.5, array.shape) if path.endswith("var") else rng.standard_normal(array.shape)
    model.load_parameters(values)
    return model


def images_of(model, rng, count, dtype=None):
    shape = (count, *model.input_shape)
    return rng.integers(0, 256, shape, np.uint8) if dtype == "uint8" else rng.standard_normal(shape).astype(model.dtype)


def by_onnxruntime(path, *batches):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(["output"], {"input": x})[0] for x in batches]


def by_reference(path, *batches):
    evaluator = ReferenceEvaluator(path)
    with np.errstate(all="ignore"):
        return [evaluator.run(["output"], {"input": x})[0] for x in batches]


def assert_near(found, expected, tolerance):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1e-3, np.abs(expected).max()))


def nodes(path):
    """Return a file's nodes as (operator, name, inputs)."""
    return [(node.op_type, node.name, list(node.input)) for node in onnx.load(path).graph.node]


def attributes(node):
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def exported(path, layer, shape=IMAGE, **options):
    """Export a layer alone, without a check, and return its nodes."""
    xc.Model(la.Sequential(("one", layer), input_shape=shape), "cpu").to_onnx(path, check=False, **options)
    return onnx.load(path).graph.node


def test_every_layer_has_its_converter():
    assert set(CONVERTERS) | {la.Join} == set(LAYERS)


@pytest.mark.parametrize("case", ALONE)
def test_a_layer_alone(case, rng, tmp_path):
    layer, shape = ALONE[case]
    model = drawn(la.Sequential(("one", layer), input_shape=shape), rng)
    path = str(tmp_path / "one.onnx")
    facts = model.to_onnx(path)
    batches = [images_of(model, rng, count) for count in (1, 4)]
    runs = [by_onnxruntime(path, *batches)]
    if "left_out" not in facts["reference"]:
        runs.append(by_reference(path, *batches))
    assert len(runs) == 2 or case in GAPS
    for x, *found in zip(batches, *runs, strict=True):
        for y in found:
            assert_near(y, model.predict(x), TARGET)


@pytest.mark.parametrize("case", IN_FLOAT64)
def test_float64_is_written_as_it_is(case, rng, tmp_path):
    layer, shape = ALONE[case]
    model = drawn(la.Sequential(("one", layer), input_shape=shape), rng, "float64")
    path = str(tmp_path / "one.onnx")
    facts = model.to_onnx(path)
    assert ("has not all operators" in facts["onnxruntime"].get("left_out", "")) == (case in WITHOUT_FLOAT64)
    assert {facts["input"]["dtype"], facts["output"]["dtype"]} == {"float64"}
    x = images_of(model, rng, 3)
    run = by_onnxruntime if case.startswith("LayerNorm") else by_reference
    assert_near(*run(path, x), model.predict(x), TARGET64)


@pytest.mark.parametrize("case", UNSAYABLE)
def test_what_has_no_words(case, tmp_path):
    layer, shape = CASES[case]
    model = xc.Model(la.Sequential(("one", layer), input_shape=shape), "cpu")
    with pytest.raises(XpcnnError) as error:
        model.to_onnx(tmp_path / "m.onnx")
    assert UNSAYABLE[case] in str(error.value)
    assert not list(tmp_path.iterdir())


def any_layer(kind, rng):
    """Draw a layer with windows and an input's shape."""
    axes, groups = int(rng.integers(1, 4)), int(rng.integers(1, 3))

    def each(low, high):
        return tuple(int(n) for n in rng.integers(low, high + 1, axes))

    kernel = each(1, 4)
    options = {"stride": each(1, 4), "dilation": each(1, 3) if rng.random() < 0.5 else 1}
    padding = ["same", int(rng.integers(0, 3)), each(0, 3), tuple(zip(each(0, 3), each(0, 3), strict=True))]
    options["padding"] = padding[rng.integers(0, 4)]
    if kind == "ConvTranspose" and options["padding"] != "same":
        options["output_padding"] = int(rng.integers(0, 3))
    if kind.endswith("Pool"):
        options["ceil_mode"] = bool(rng.integers(0, 2))
    if kind == "AvgPool":
        options["count_include_pad"] = bool(rng.integers(0, 2))
    if kind in ("Conv", "MaxPool"):
        options["mode"] = ("convolution", "cross-correlation")[rng.integers(0, 2)]
        if rng.random() < 0.3:
            options |= {"center": tuple(int(rng.integers(0, k)) for k in kernel), "padding": 0, "ceil_mode": False}
    if kind.startswith("Conv"):
        options |= {"groups": groups, "filters": 2 * groups}
        options.pop("ceil_mode", None)
    return getattr(la, f"{kind}{axes}D")(kernel_size=kernel, **options), (2 * groups, *each(1, 9))


def sayable(layer, shape, path):
    """Export a layer alone and return its model; None if its options do not fit, or ONNX has no words for them."""
    try:
        model = xc.Model(la.Sequential(layer, input_shape=shape), "cpu")
    except XpcnnError:
        return None
    try:
        model.to_onnx(path, check=False)
    except XpcnnError as error:
        unusual = "no smaller than the kernel" in str(error) or "only below the stride" in str(error)
        if unusual and layer.dilation != 1:
            return None
        raise
    return model


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MaxPool", "AvgPool"])
def test_windows_of_any_kind(kind, rng, tmp_path):
    path, seen = str(tmp_path / "m.onnx"), 0
    while seen < 40:
        model = sayable(*any_layer(kind, rng), path)
        if model is None:
            continue
        x = images_of(model, rng, 2)
        expected = model.predict(x)
        if np.isfinite(expected).all():  # a window may meet no pixel at all
            assert_near(*by_onnxruntime(path, x), expected, TARGET)
            seen += 1


def settled(net, rng, **options):
    """Return a model with batch norms that are not as they begin but, as after training, know what they are given."""
    model = xc.Model(net, "cpu", **options)
    near = {
        path: a * rng.uniform(0.8, 1.2, a.shape) for path, a in model.parameters().items() if path.endswith("gamma")
    }
    near |= {
        path: 0.1 * rng.standard_normal(a.shape)
        for path, a in model.parameters().items()
        if path.endswith(("beta", "bias"))
    }
    model.load_parameters(model.parameters() | near)
    x, before = images_of(model, rng, 8), model.state()
    _, _, after = net.forward(model.parameters(), before, x, train=True, key=xc.random.Key(0))
    of_batch = {path: (after[path] - 0.9 * before[path]) / 0.1 for path in before}
    model.load_parameters(
        model.parameters() | {path: a * rng.uniform(0.95, 1.05, a.shape) for path, a in of_batch.items()}
    )
    return model


NETWORKS = {
    "simple_convnet": xc.models.simple_convnet(),
    "lenet5": xc.models.lenet5(),
    "two_conv_net": xc.models.two_conv_net(),
    "vgg11": xc.models.vgg11((3, 32, 32), 10, hidden=64, batch_norm=True),
    "resnet20": xc.models.resnet20((3, 16, 16)),
    "resnet18": xc.models.resnet18((3, 48, 40), 10, stem="large"),
    "mobilenet_v2": xc.models.mobilenet_v2((3, 32, 32), 10, width=0.5),
    "densenet_bc": xc.models.densenet_bc((3, 16, 16), depth=22),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_models(name, rng, tmp_path):
    model = settled(NETWORKS[name], rng)
    path = str(tmp_path / "model.onnx")
    assert model.to_onnx(path)["opset"] == 17
    x = images_of(model, rng, 4)
    expected = model.predict(x)
    exact = xc.Model(model.net, "cpu", dtype="float64", values=model.parameters() | model.state()).predict(x)
    largest = np.abs(exact).max()
    rounding = np.abs(expected - exact).max() / largest  # 1e-5 in MobileNetV2 before it is trained, else below 2e-6
    assert rounding < 5e-5
    (found,) = by_onnxruntime(path, x)
    assert np.abs(found - expected).max() <= (TARGET + rounding) * largest


def test_a_trained_model_on_pixels(rng, tmp_path):
    net = la.Sequential(
        la.Conv2D(8, 3, padding=1, bias=False), la.BatchNorm(momentum=0.3), la.ReLU6(), la.MaxPool2D(2),
        la.Residual(la.Sequential(la.Conv2D(8, 3, padding=1, groups=8), la.BatchNorm(), la.SiLU())),
        la.GlobalAvgPool(), la.Dropout(0.2), la.Affine(3), input_shape=(1, 8, 8),
    )  # fmt: skip
    model = xc.Model(net, "cpu", normalise=Normalise(0.3, 0.2), classes=["a", "b", "ü"], dataset="folder:x")
    trainer = xc.Trainer(model, optimizer=optim.adam(lr=0.01))
    pixels, labels = images_of(model, rng, 24, "uint8"), rng.integers(0, 3, 24)
    for _ in range(6):
        trainer.step(pixels, labels)
    path = str(tmp_path / "model.onnx")
    facts = model.to_onnx(path, normalise=True)
    assert facts["input"] == {"name": "input", "dtype": "uint8", "shape": ["N", 1, 8, 8]}
    assert facts["output"] == {"name": "output", "dtype": "float32", "shape": ["N", 3]}
    for batch in (pixels, pixels[:1]):
        assert_near(*by_onnxruntime(path, batch), model.predict(batch), TARGET)
        assert_near(*by_reference(path, batch), model.predict(batch), TARGET)
    kept = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert kept == {
        "xpcnn.version": xc.__version__, "xpcnn.classes": json.dumps(["a", "b", "ü"]), "xpcnn.dataset": "folder:x",
    }  # fmt: skip
    facts = model.to_onnx(path)  # which takes floats
    floats = ((pixels / 255 - 0.3) / 0.2).astype(np.float32)
    assert facts["input"]["dtype"] == "float32"
    assert_near(*by_onnxruntime(path, floats), model.predict(pixels), TARGET)


def test_nodes_and_arrays_have_the_layers_names(tmp_path):
    net = la.Sequential(
        ("stem", la.Sequential(la.Conv2D(4, 3, padding=1, bias=False), la.BatchNorm(momentum=0.25), la.ReLU())),
        ("block", la.Residual(la.Sequential(la.Conv2D(4, 1)))),
        ("wide", la.Parallel([("past", la.Identity()), ("new", la.SiLU())])),
        ("three", la.Parallel([la.Tanh(), la.Sigmoid(), la.Identity()], merge="add")),
        ("head", la.Affine(3)),
        input_shape=(2, 4, 4),
    )
    path = tmp_path / "m.onnx"
    model = xc.Model(net, "cpu", normalise=Normalise(0.5, 0.25))
    model.to_onnx(path, normalise=True)
    found = onnx.load(path)
    assert [(node.op_type, node.name, *node.input) for node in found.graph.node] == [
        ("Cast", "normalise.cast", "input"),
        ("Mul", "normalise.scale", "normalise.cast", "normalise/scale"),
        ("Sub", "normalise.shift", "normalise.scale", "normalise/shift"),
        ("Conv", "stem.conv1", "normalise.shift", "stem.conv1/weight"),
        (
            "BatchNormalization",
            "stem.norm1",
            "stem.conv1",
            *(f"stem.norm1/{n}" for n in ("gamma", "beta", "mean", "var")),
        ),
        ("Relu", "stem.relu1", "stem.norm1"),
        ("Conv", "block.body.conv1", "stem.relu1", "block.body.conv1/weight", "block.body.conv1/bias"),
        ("Add", "block", "block.body.conv1", "stem.relu1"),
        ("Sigmoid", "wide.new", "block"),
        ("Mul", "wide.new.1", "block", "wide.new"),
        ("Concat", "wide", "block", "wide.new.1"),
        ("Tanh", "three.tanh1", "wide"),
        ("Sigmoid", "three.sigmoid1", "wide"),
        ("Add", "three", "three.tanh1", "three.sigmoid1"),
        ("Add", "three.1", "three", "wide"),
        ("Flatten", "head.flatten", "three.1"),
        ("Gemm", "head", "head.flatten", "head/weight", "head/bias"),
    ]
    assert attributes(found.graph.node[4]) == {"epsilon": pytest.approx(1e-5), "momentum": 0.75}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    assert stored["normalise/scale"] == np.float32(1 / (255 * 0.25))
    assert stored["normalise/shift"] == 2
    for path_, array in (model.parameters() | model.state()).items():
        name = path_.rpartition("/")[0].replace("/", ".") + "/" + path_.rpartition("/")[2]
        np.testing.assert_array_equal(stored[name], array)
    assert (found.producer_name, found.ir_version, found.opset_import[0].version) == ("xpcnn", 8, 17)


def test_names_stay_distinct(rng, tmp_path):
    net = la.Sequential(
        ("a", la.Sequential(("b", la.Affine(4)), ("output", la.Tanh()), ("flatten", la.Affine(4)))),
        ("a.b", la.Affine(4)), ("input", la.Tanh()), ("output", la.Affine(5)), ("normalise", la.Scale(())),
        ("silu", la.SiLU()), ("silu.1", la.Tanh()), ("normalise.scale", la.Tanh()), input_shape=(2, 2),
    )  # fmt: skip
    model = drawn(net, rng)
    path = str(tmp_path / "m.onnx")
    model.to_onnx(path, normalise=True)
    names = [name for _, name, _ in nodes(path)]
    assert len(set(names)) == len(names)
    assert {"a.b", "a.b_", "input", "output", "normalise_", "silu.1", "silu.1_", "normalise.scale_"} <= set(names)
    pixels = images_of(model, rng, 3, "uint8")
    assert_near(*by_onnxruntime(path, pixels), model.predict(pixels), TARGET)


@pytest.mark.parametrize(
    ("net", "expected"), [(la.Conv2D(2, 3), "conv"), (la.Residual(la.Tanh()), "residual"), (la.Identity(), "identity")]
)
def test_a_network_that_is_one_layer(net, expected, rng, tmp_path):
    model = drawn(net, rng, input_shape=IMAGE)
    path = str(tmp_path / "m.onnx")
    model.to_onnx(path)
    assert nodes(path)[-1][1] == expected


def test_the_same_bytes_each_time(rng, tmp_path):
    model = drawn(xc.models.resnet20((1, 8, 8), blocks=1), rng, classes=list("0123456789"))
    facts = model.to_onnx(tmp_path / "a.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert (facts["bytes"], facts["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert json.loads((tmp_path / "a.onnx.json").read_text()) == facts
    model.save(tmp_path / "m.safetensors")
    program = (
        "import sys, xpcnn; model = xpcnn.Model.load(sys.argv[1] + '/m.safetensors', 'cpu');"
        "model.to_onnx(sys.argv[1] + '/b.onnx', check=False)"
    )
    seed = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=seed, timeout=120)
    assert (tmp_path / "b.onnx").read_bytes() == content


@pytest.mark.parametrize(
    ("layer", "asked", "opset", "ir"),
    [
        (la.ReLU(), None, 17, 8), (la.ReLU(), 19, 19, 9), (la.GELU(), None, 20, 9), (la.AvgPool2D(2, dilation=2), None, 19, 9),
        (la.GroupNorm(2), None, 21, 10), (la.GroupNorm(2), 22, 22, 10), (la.Upsample2D(2), 22, 22, 10), (la.Dropout(), 22, 22, 10),
    ],
)  # fmt: skip
def test_the_lowest_opset_or_the_one_asked_for(layer, asked, opset, ir, rng, tmp_path):
    model = drawn(la.Sequential(layer, input_shape=IMAGE), rng)
    path = str(tmp_path / "m.onnx")
    facts = model.to_onnx(path, opset=asked)
    found = onnx.load(path)
    assert (facts["opset"], facts["ir_version"]) == (found.opset_import[0].version, found.ir_version) == (opset, ir)
    x = images_of(model, rng, 2)
    assert_near(*by_onnxruntime(path, x), model.predict(x), TARGET)


@pytest.mark.parametrize(
    ("opset", "says"),
    [
        (16, "opset 16 is too low: it must be 21 or more (for gelu1 (GELU) 20, norm1 (GroupNorm) 21)."),
        (20, "opset 20 is too low: it must be 21 or more (for norm1 (GroupNorm) 21)."),
        (1000, "opset 1000 is higher than the installed onnx"),
        (True, "opset must be a whole number"),
        ("21", "opset must be a whole number"),
    ],
)
def test_an_opset_that_will_not_do(opset, says, tmp_path):
    model = xc.Model(la.Sequential(la.GELU(), la.GroupNorm(2), input_shape=IMAGE), "cpu")
    with pytest.raises(XpcnnError) as error:
        model.to_onnx(tmp_path / "m.onnx", opset=opset)
    assert says in str(error.value)
    with pytest.raises(XpcnnError, match=r"too low: it must be 17 or more\.$"):
        xc.Model(la.ReLU(), "cpu", input_shape=IMAGE).to_onnx(tmp_path / "m.onnx", opset=16)
    assert not list(tmp_path.iterdir())


def test_all_layers_without_counterpart_are_listed_at_once(tmp_path):
    net = la.Sequential(
        Unheard(), la.Residual(la.Sequential(Unheard(), OwnConv(4, 1))), la.AdaptiveAvgPool2D(3), la.GELU(),
        la.ConvTranspose2D(2, 2, dilation=2, output_padding=1), la.AvgPool2D(2, padding=2, dilation=3), input_shape=IMAGE,
    )  # fmt: skip
    with pytest.raises(XpcnnError) as error:
        xc.Model(net, "cpu").to_onnx(tmp_path / "m.onnx")
    assert str(error.value) == (
        "the network cannot be written as ONNX: identity1 (Unheard) has no counterpart; "
        "residual1/body/identity1 (Unheard) has no counterpart; residual1/body/conv1 (OwnConv) has no counterpart; "
        "pool1 (AdaptiveAvgPool2D) has bins of different sizes, (7, 6) to (3, 3); "
        "conv1 (ConvTranspose2D) has output_padding 1, which onnxruntime takes only below the stride; "
        "pool2 (AvgPool2D) has padding that is no smaller than the kernel (2, 2) before it is dilated."
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small():
    return xc.Model(xc.models.simple_convnet((1, 8, 8), 3, filters=2, kernel_size=3, hidden=4), "cpu", seed=1)


def test_without_the_package(small, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(XpcnnError, match=r"pip install 'xpcnn\[onnx\]'"):
        small.to_onnx(tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    facts = small.to_onnx(tmp_path / "m.onnx")
    assert "cannot be imported" in facts["onnxruntime"]["left_out"]
    assert "onnxruntime" not in facts["versions"]
    assert facts["reference"]["relative"] <= TARGET


def test_a_network_too_large_for_the_reference_evaluator(small, tmp_path, monkeypatch):
    large = xc.models.vgg11((3, 224, 224), 10)
    assert onnx_check._too_slow(large, large.input_shape)
    assert not onnx_check._too_slow(small.net, small.input_shape)
    monkeypatch.setattr(onnx_check, "MOST_SECONDS", 0.0)
    facts = small.to_onnx(tmp_path / "m.onnx")
    assert "would take about" in facts["reference"]["left_out"]
    assert facts["onnxruntime"]["relative"] <= TARGET


def test_no_check_compares_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(small, "predict", None)
    facts = small.to_onnx(tmp_path / "m.onnx", check=False)
    assert facts["compared"] == "nothing, as asked"
    assert facts["checker"] == "passed"


@pytest.mark.parametrize("left_out", ["reference", "onnxruntime"])
def test_other_outputs_leave_no_file(small, tmp_path, monkeypatch, left_out):
    old = {"m.onnx": b"old", "m.onnx.json": b"{}"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(onnx_check, f"_by_{left_out}", lambda content, batches: "not today")
    predict = small.predict

    def different(x):
        y = predict(x)
        y[2, 1] += 3e-4 * np.abs(y).max()
        return y

    monkeypatch.setattr(small, "predict", different)
    other = "onnxruntime" if left_out == "reference" else "reference"
    with pytest.raises(
        XpcnnError, match=rf"^{other} and the model differ by .* 0\.0003 of the largest output, where 0\.0001 is"
    ):
        small.to_onnx(tmp_path / "m.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_outputs_that_are_no_numbers(small, tmp_path):
    small.load_parameters(small.parameters() | {"affine2/bias": np.array([0.0, np.nan, 0.0])})
    with pytest.raises(XpcnnError, match="own outputs are no finite numbers"):
        small.to_onnx(tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_fault_of_onnxruntimes_is_found(rng, tmp_path):
    """It moves the zeros around an image into the pooling, where padding never wins."""
    model = xc.Model(la.Sequential(la.Pad2D(3), la.MaxPool2D(2), input_shape=(1, 6, 6)), "cpu")
    with pytest.raises(XpcnnError, match=r"^onnxruntime "):
        model.to_onnx(tmp_path / "m.onnx")


def test_a_network_that_is_too_large(small, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 100)
    with pytest.raises(XpcnnError, match="more than 2 GiB"):
        small.to_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["m", "m.onx", "m.onnx.txt", "onnx"])
def test_the_files_name(small, tmp_path, name):
    with pytest.raises(XpcnnError, match=f"must end in .onnx, not '{name}'"):
        small.to_onnx(tmp_path / name)


def test_a_disk_that_is_full(small, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    (tmp_path / "m.onnx").write_bytes(b"old")
    monkeypatch.setattr(onnx_export, "write_whole", full)
    with pytest.raises(OSError, match=r"No space left .*m\.onnx"):
        small.to_onnx(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        small.to_onnx(tmp_path / "nowhere" / "m.onnx")


def test_softplus_with_a_slope_is_three_nodes(tmp_path):
    found = exported(tmp_path / "m.onnx", la.Softplus(beta=4.0))
    assert [(node.op_type, node.name, *node.input) for node in found] == [
        ("Mul", "one", "input", "one/scale"), ("Softplus", "one.1", "one"), ("Mul", "one.2", "one.1", "one.2/scale"),
    ]  # fmt: skip


def test_attributes_of_windows(tmp_path):
    path = tmp_path / "m.onnx"
    (conv,) = exported(path, la.Conv2D(2, (3, 2), stride=(1, 2), padding="same", dilation=(2, 1)))
    assert attributes(conv) == {
        "kernel_shape": [3, 2], "strides": [1, 2], "pads": [2, 0, 2, 0], "dilations": [2, 1], "group": 1,
    }  # fmt: skip
    (pool,) = exported(path, la.MaxPool2D(2, ceil_mode=True))
    assert attributes(pool) == {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 0], "dilations": [1, 1]}
    pad, pool = exported(path, la.AvgPool2D(3, stride=2, padding=1, ceil_mode=True))
    assert (pad.op_type, pad.name, *pad.input) == ("Pad", "one.pad", "input", "one.pad/pads")
    assert attributes(pool) == {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 0, 1], "count_include_pad": 0}
    (pool,) = exported(path, la.AvgPool2D(3, stride=2, padding=1))
    assert attributes(pool) == {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}


def test_a_model_of_any_backend(arrays, rng, tmp_path):
    net = la.Sequential(la.Conv2D(3, 3), la.BatchNorm(), la.ReLU(), la.GlobalAvgPool(), input_shape=(2, 5, 5))
    values = drawn(net, rng).parameters()
    model = xc.Model(net, arrays.backend)
    model.load_parameters(values)
    facts = model.to_onnx(tmp_path / "there.onnx")
    assert facts["onnxruntime"]["relative"] <= TARGET
    here = xc.Model(net, "cpu")
    here.load_parameters(values)
    here.to_onnx(tmp_path / "here.onnx", check=False)
    assert (tmp_path / "there.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()


def test_where_the_reference_evaluator_is_wrong_onnxruntime_counts(tmp_path, rng):
    """It computes grouped transposed convolutions with a bias wrongly; onnxruntime agrees with PyTorch and this."""
    net = la.Sequential(la.ConvTranspose2D(4, 4, stride=2, padding=1, groups=4), input_shape=(4, 5, 5))
    model = xc.Model(net, "cpu")
    model.load_parameters({path: rng.standard_normal(a.shape) for path, a in model.parameters().items()})
    report = model.to_onnx(tmp_path / "model.onnx")
    assert report["onnxruntime"]["relative"] < 1e-6
    reference = report["reference"]  # right in a version to come, and else left out, with the reason
    assert reference.get("relative", 0.0) < 1e-4
    assert "relative" in reference or "differs from the model" in reference["left_out"]
