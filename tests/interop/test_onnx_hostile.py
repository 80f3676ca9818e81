"""Damaged and hostile ONNX files: each becomes a model or is refused in one sentence, before anything large is allocated."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn.errors import DataError, XpcnnError
from xpcnn.interop.onnx_fold import FOLDED
from xpcnn.interop.onnx_nodes import CONVERTERS
from xpcnn.interop.onnx_wire import MOST_FIELDS

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

MOST = 64 << 20  # bytes that reading a small file may take
BYTES, STRUCTURES = 2000, 1000  # mutations
TRACED = 8  # of one of so many the memory is watched, which takes its time
ODD = [0, -1, 1, 2, 3, -2, 7, 100, 2**31, 2**62, -(2**63), 2**63 - 1]
NETS = [
    la.Sequential(
        la.Conv2D(4, 3, padding=1), la.BatchNorm(), la.ReLU6(), la.MaxPool2D(2), la.Flatten(), la.Dropout(0.3), la.Affine(3),
        input_shape=(2, 6, 6),
    ),
    la.Graph(
        [("a", la.Conv2D(2, 1), "input"), ("b", la.HardSwish(), "a"), ("c", la.Join("add"), ("a", "b")),
         ("d", la.Upsample2D(2), "c"), ("e", la.Pad2D(1), "d"), ("f", la.GlobalAvgPool(), "e"), ("g", la.Softmax(), "f")],
        input_shape=(2, 4, 4),
    ),
    la.Sequential(
        la.ConvTranspose2D(2, 2, stride=2), la.GELU(), la.LayerNorm(), la.GroupNorm(2), la.Scale((2, 1, 1), shift=True),
        la.Clip(0.0, 1.0), la.AvgPool2D(2), la.Reshape((2, 4, 4)), la.AdaptiveAvgPool2D(1), input_shape=(2, 4, 4),
    ),
]  # fmt: skip


def shape_arithmetic():
    """Return a file in which a shape is computed in every way that is understood."""
    ints = {"zero": 0, "one": 1, "minus": [-1], "first": [0], "second": [1]}
    nodes = [
        ("Shape", ["x"], "s"), ("Slice", ["s", "first", "second"], "n"), ("Concat", ["n", "minus"], "t", {"axis": 0}),
        ("Reshape", ["x", "t"], "y"), ("ConstantOfShape", ["second"], "c"), ("Expand", ["c", "second"], "d"),
        ("Tile", ["d", "second"], "e"), ("Range", ["zero", "one", "one"], "r"), ("Gather", ["s", "r"], "g"),
        ("Cast", ["e"], "f", {"to": 1}), ("Add", ["y", "f"], "w"), ("Unsqueeze", ["w", "second"], "u"),
        ("Squeeze", ["u", "second"], "q"), ("Transpose", ["q"], "output", {"perm": [0, 1]}),
    ]  # fmt: skip
    return graph(nodes, {name: np.array(value) for name, value in ints.items()})


def graph(nodes, constants=None, *, shape=("N", 2, 4, 4), opset=17):
    rows = [
        helper.make_node(op, taken, [out], name=out, **(more[0] if more else {})) for op, taken, out, *more in nodes
    ]
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    end = helper.make_tensor_value_info(rows[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph(rows, "g", [given], [end], arrays), opset_imports=[helper.make_opsetid("", opset)]
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return small files as bytes."""
    path = tmp_path_factory.mktemp("small") / "m.onnx"
    found = [shape_arithmetic().SerializeToString()]
    for number, net in enumerate(NETS):
        xc.Model(net, "cpu", classes=("a", "b", "c")).to_onnx(path, check=False, normalise=not number)
        found.append(path.read_bytes())
    return found


def attempt(path, content, traced=True):
    """Read bytes as a file; return the model or the error, which must be one sentence and cheap."""
    path.write_bytes(content)
    if traced:
        tracemalloc.start()
    try:
        found = xc.Model.from_onnx(path, "cpu")
    except XpcnnError as error:
        message = str(error)
        assert message.endswith("."), message
        assert message.isprintable(), message
        found = error
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < MOST + len(content)
    return found


def mutated(files, number, rng):
    """Return a file with flipped bits, cut off, with a piece of another one in it, or with odd bytes."""
    content, other = bytearray(files[number % len(files)]), files[rng.integers(len(files))]
    kind = rng.integers(4)
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    elif kind == 1:
        del content[rng.integers(len(content)) :]
    elif kind == 2:
        a, b = rng.integers(len(content)), rng.integers(len(other))
        content[a : a + rng.integers(1, 60)] = other[b : b + rng.integers(1, 60)]
    else:
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    return bytes(content)


def test_mutated_bytes(files, tmp_path):
    rng, found = np.random.default_rng(2), []
    for number in range(BYTES):
        found.append(attempt(tmp_path / "m.onnx", mutated(files, number, rng), not number % TRACED))
    assert sum(isinstance(each, xc.Model) for each in found) > BYTES // 50  # a flipped bit of a weight harms nothing
    assert len({str(each).split(":", 1)[-1] for each in found if isinstance(each, XpcnnError)}) > 100


def restructured(model, rng):
    """Return a model of which operators, attributes, names, sizes or versions are others."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(rng.integers(1, 4)):
        rng.choice([_operator, _attribute, _name, _constant, _size, _more, _version])(changed, rng)
    return changed


def _one(things, rng):
    return things[rng.integers(len(things))] if len(things) else None


def _operator(model, rng):
    _one(model.graph.node, rng).op_type = _one(sorted({*CONVERTERS, *FOLDED, "If", "Loop"}), rng)


def _attribute(model, rng):
    attribute = _one(_one(model.graph.node, rng).attribute, rng)
    if attribute is not None and attribute.type == attribute.INT:
        attribute.i = _one(ODD, rng)
    elif attribute is not None and attribute.type == attribute.INTS and attribute.ints:
        attribute.ints[rng.integers(len(attribute.ints))] = _one(ODD, rng)
    elif attribute is not None and attribute.type == attribute.FLOAT:
        attribute.f = _one([0.0, -1.0, np.nan, np.inf, 1e38, 1e-45], rng)
    elif attribute is not None:
        attribute.s = _one([b"SAME_UPPER", b"VALID", b"x", b"\xff"], rng)


def _name(model, rng):
    node, made = _one(model.graph.node, rng), [name for node in model.graph.node for name in node.output]
    names = [tensor.name for tensor in model.graph.initializer] + made + ["x", "input", ""]
    if node.input:
        node.input[rng.integers(len(node.input))] = _one(names, rng)
    else:
        node.input.append(_one(names, rng))


def _constant(model, rng):
    tensor = _one(model.graph.initializer, rng)
    if tensor is not None and tensor.dims and rng.integers(2):
        tensor.dims[rng.integers(len(tensor.dims))] = _one(ODD, rng)
    elif tensor is not None:
        values = np.array([_one(ODD, rng) for _ in range(rng.integers(5))], np.int64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _size(model, rng):
    _one(model.graph.input[0].type.tensor_type.shape.dim, rng).dim_value = _one(ODD, rng)


def _more(model, rng):
    name = _one(["pads", "axis", "axes", "group", "kernel_shape", "auto_pad", "strides", "output_shape", "perm"], rng)
    values = [_one(ODD, rng) for _ in range(rng.integers(1, 5))]
    _one(model.graph.node, rng).attribute.append(helper.make_attribute(name, values))


def _version(model, rng):
    model.opset_import[0].version = int(rng.integers(5, 31))


def test_mutated_structures(files, tmp_path):
    rng, models = np.random.default_rng(3), [onnx.load_model_from_string(content) for content in files]
    found = []
    for number in range(STRUCTURES):
        content = restructured(models[number % len(models)], rng).SerializeToString()
        found.append(attempt(tmp_path / "m.onnx", content, not number % TRACED))
    assert sum(isinstance(each, xc.Model) for each in found) > STRUCTURES // 10


def cyclic():
    return graph([("Add", ["x", "b"], "a"), ("Relu", ["a"], "b")])


def unsorted():
    return graph([("Relu", ["b"], "a"), ("Tanh", ["x"], "b"), ("Relu", ["a"], "y")])


def twice():
    return graph([("Relu", ["x"], "a"), ("Tanh", ["x"], "a"), ("Relu", ["a"], "y")])


def from_nowhere():
    return graph([("Add", ["x", "w"], "y")])


def without_operator():
    return graph([("", ["x"], "y")])


def with_dims(*dims):
    model = graph([("Add", ["x", "w"], "y")], {"w": np.zeros((2, 4, 4), np.float32)})
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


def truncated_weight():
    model = graph([("Add", ["x", "w"], "y")], {"w": np.zeros((2, 4, 4), np.float32)})
    model.graph.initializer[0].raw_data = b"\0" * 7
    return model


def outside(location):
    model = graph([("Add", ["x", "w"], "y")], {"w": np.zeros((2, 4, 4), np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "128"}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def strings():
    model = graph([("Add", ["x", "w"], "y")])
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.STRING, [1], [b"text"]))
    return model


def input_size(size):
    return graph([("Relu", ["x"], "y")], shape=("N", 2, size, 4))


def sparse():
    model = graph([("Relu", ["x"], "y")])
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    model.graph.sparse_initializer.add(
        values=values, indices=helper.make_tensor("i", TensorProto.INT64, [1], [0]), dims=[4]
    )
    return model


def subgraph():
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "inner", [], [helper.make_empty_tensor_value_info("z")]
    )
    return graph([("If", ["c"], "y", {"then_branch": inner, "else_branch": inner})], {"c": np.array(True)})


def function():
    model = graph([("Mine", ["x"], "y", {"domain": "me"})])
    body = [helper.make_node("Mine", ["a"], ["b"], domain="me")]  # which calls itself
    model.functions.append(helper.make_function("me", "Mine", ["a"], ["b"], body, [helper.make_opsetid("me", 1)]))
    return model


REFUSED = {
    "cycle": (cyclic, "Add a takes b, which only it or a later node makes (a cycle, or nodes out of order)."),
    "out of order": (unsorted, "Relu a takes b, which only it or a later node makes (a cycle, or nodes out of order)."),
    "made twice": (twice, "Tanh a makes a, which is there already."),
    "made by nothing": (from_nowhere, "Add y takes w, which nothing makes."),
    "no operator": (without_operator, "it has a node without an operator."),
    "negative size": (lambda: with_dims(-2, 4, 4), "tensor w states the sizes (-2, 4, 4), which none can have."),
    "overflowing sizes": (
        lambda: with_dims(2**32, 2**32, 0),
        "tensor w states the sizes (4294967296, 4294967296, 0), but holds",
    ),
    "huge size": (lambda: with_dims(2**62), "tensor w states the sizes (4611686018427387904), which none can have."),
    "wrong sizes": (lambda: with_dims(2, 4, 5), "tensor w states the sizes (2, 4, 5), but holds 32 numbers."),
    "very many axes": (lambda: with_dims(*[1] * 1000), "which none can have."),
    "truncated weight": (truncated_weight, "tensor w is truncated: it ends in the middle of a number."),
    "data outside": (lambda: outside("../../etc/passwd"), "tensor w lies in another file or in pieces (external data)"),
    "data by an absolute path": (
        lambda: outside("/etc/passwd"),
        "tensor w lies in another file or in pieces (external data)",
    ),
    "data beside it": (lambda: outside("weights.bin"), "onnx.save(onnx.load(file), file) makes one file of it."),
    "texts": (strings, "tensor w holds string, not numbers."),
    "huge image": (lambda: input_size(2**39), "its input x makes (2, 549755813888, 4) numbers of one image, more than"),
    "image of no size": (
        lambda: input_size(2**62),
        "x states a size of 4,611,686,018,427,387,904, which none can have.",
    ),
    "sparse": (sparse, "it has sparse initializers, which are not understood."),
    "old": (
        lambda: graph([("Relu", ["x"], "y")], opset=6),
        "it uses version 6 of ONNX's operators, and 7 to 28 are understood",
    ),
    "new": (lambda: graph([("Relu", ["x"], "y")], opset=99), "it uses version 99 of ONNX's operators"),
    "subgraph": (subgraph, "If y (has no counterpart)."),
    "function that calls itself": (function, "me::Mine y (has no counterpart)."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damage_is_refused(name, tmp_path):
    make, message = REFUSED[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(XpcnnError) as caught:
        xc.Model.from_onnx(path, "cpu")
    assert message in str(caught.value)


HUGE = 2**40
GREEDY = {  # files of about a kilobyte that claim gigabytes
    "ConstantOfShape": [("ConstantOfShape", ["huge"], "c"), ("Add", ["x", "c"], "y")],
    "ConstantOfShape, negative": [
        ("ConstantOfShape", ["minus"], "b"), ("ConstantOfShape", ["huge"], "c"), ("Add", ["x", "c"], "y"),
    ],
    "Expand": [("Expand", ["one", "huge"], "c"), ("Add", ["x", "c"], "y")],
    "Tile": [("Tile", ["one", "huge"], "c"), ("Add", ["x", "c"], "y")],
    "Range": [("Range", ["zero", "many", "step"], "c"), ("Add", ["x", "c"], "y")],
    "outer product": [
        ("ConstantOfShape", ["column"], "a"), ("ConstantOfShape", ["row"], "b"), ("Add", ["a", "b"], "c"), ("Add", ["x", "c"], "y"),
    ],
    "doubling": [
        ("ConstantOfShape", ["row"], "c0"),
        *(("Concat", [f"c{n}", f"c{n}"], f"c{n + 1}", {"axis": 0}) for n in range(40)), ("Add", ["x", "c40"], "y"),
    ],
    "Gather": [("ConstantOfShape", ["index"], "i"), ("Gather", ["row", "i"], "c"), ("Gather", ["c", "i"], "d"), ("Add", ["x", "d"], "y")],
    "Resize": [("Resize", ["x", "", "scales"], "y", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"})],
    "Resize, again and again": [
        ("Resize", ["x", "", "eight"], "a0", {"mode": "nearest"}),
        *(("Resize", [f"a{n}", "", "eight"], f"a{n + 1}", {"mode": "nearest"}) for n in range(12)), ("Relu", ["a12"], "y"),
    ],
    "Pad": [("Pad", ["x", "pads"], "y")],
    "Pad of channels": [("Pad", ["x", "behind"], "y")],
    "kernel": [("MaxPool", ["x"], "y", {"kernel_shape": [HUGE, HUGE], "pads": [HUGE] * 4})],
    "padding": [("MaxPool", ["x"], "y", {"kernel_shape": [2, 2], "pads": [2**30] * 4})],
    "filters": [("Conv", ["x", "none"], "y")],
    "groups": [("Conv", ["x", "w"], "y", {"group": HUGE})],
    "output padding": [("ConvTranspose", ["x", "w"], "y", {"strides": [2**20, 2**20], "output_padding": [2**20 - 1] * 2})],
    "output shape": [("ConvTranspose", ["x", "w"], "y", {"output_shape": [HUGE, HUGE]})],
    "Reshape": [("Reshape", ["x", "huge"], "y")],
    "a bias for many": [("Flatten", ["x"], "f"), ("Gemm", ["f", "wide", "g"], "y")],
}  # fmt: skip
CONSTANTS = {
    "huge": [HUGE], "minus": [-HUGE], "one": np.ones(1, np.float32), "zero": 0, "many": HUGE, "step": 1, "column": [2**20, 1],
    "row": [2**20], "index": [2**21], "scales": np.array([1, 1, 2**19, 2**19], np.float32), "eight": np.array([1, 1, 8, 8], np.float32),
    "pads": [0, 0, HUGE, 0, 0, 0, HUGE, 0], "behind": [0, 0, 0, 0, 0, 2**40, 0, 0], "none": np.zeros((0, 2, 1, 1), np.float32),
    "w": np.ones((2, 2, 2, 2), np.float32), "g": np.ones(1, np.float32), "wide": np.zeros((32, 0), np.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_claims_are_refused_before_anything_is_allocated(name, tmp_path):
    nodes = GREEDY[name]
    taken = {tensor for _, inputs, *_ in nodes for tensor in inputs}
    model = graph(nodes, {key: value for key, value in CONSTANTS.items() if key in taken}, opset=20)
    content = model.SerializeToString()
    assert len(content) < 4096
    assert isinstance(attempt(tmp_path / "m.onnx", content), XpcnnError)


def field(number, content):
    """Return a protobuf field of bytes."""
    size, count = b"", len(content)
    while count > 0x7F:
        size, count = size + bytes([count & 0x7F | 0x80]), count >> 7
    return bytes([number << 3 | 2]) + size + bytes([count]) + content


EMPTY = {  # two bytes for each message: a parser of them all would make an object of each
    "nodes": field(7, b"\x0a\x00" * 2**18),
    "initializers": field(7, b"\x2a\x00" * 2**18),
    "inputs": field(7, b"\x5a\x00" * 2**18),
    "inputs of a node": field(7, field(1, b"\x0a\x00" * 2**18 + field(4, b"Sum"))),
    "attributes of a node": field(7, field(1, b"\x2a\x00" * 2**18 + field(4, b"Sum"))),
    "whole numbers": field(7, field(1, field(4, b"Sum") + field(5, field(1, b"a") + field(8, b"\0" * 2**20) + b"\xa0\x01\x07"))),
    "sizes": field(7, field(5, field(8, b"w") + field(1, b"\1" * 2**20))),
    "unknown": field(7, b"\x7a\x00" * 2**18),
    "metadata": b"\x72\x00" * 2**16,
    "text": field(7, field(1, field(4, b"\xff" * 2**20))),
    "list of lists": field(14, field(1, b"xpcnn.classes") + field(2, b"[" * 2**20)) + b"\x3a\x00\x42\x02\x10\x11",
    "graphs": b"\x3a\x00" * 2**18,
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_millions_of_empty_messages(name, tmp_path):
    assert len(EMPTY[name]) < 2**21 < 8 * MOST_FIELDS
    assert isinstance(attempt(tmp_path / "m.onnx", EMPTY[name]), DataError)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\x3a", b"\xff" * 30, b"PK\x03\x04", b"\x80" * 12, b"\x3a\x80\x80\x80\x80\x80\x20"]
)
def test_no_file_at_all(content, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"m.onnx cannot be read as an ONNX file: it .*\.$"):
        xc.Model.from_onnx(path, "cpu")


def test_every_prefix_is_refused(files, tmp_path):
    path, content = tmp_path / "m.onnx", files[0]  # which ends with the version of its operators
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(XpcnnError):
            xc.Model.from_onnx(path, "cpu")


def test_a_deep_chain_is_no_recursion(tmp_path):
    nodes = [("Relu", ["x" if not n else f"t{n - 1}"], f"t{n}") for n in range(5000)]
    found = attempt_untraced(tmp_path / "m.onnx", graph(nodes))
    assert len(found.net.layers) == 5000


def attempt_untraced(path, model):
    path.write_bytes(model.SerializeToString())
    return xc.Model.from_onnx(path, "cpu")
