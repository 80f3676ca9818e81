"""Small ONNX files made node by node, and what onnxruntime computes of them."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import xpcnn as xc

SHAPE = (3, 8, 6)


def made(
    nodes, constants=None, *, shape=SHAPE, opset=17, batch="N", dtype=TensorProto.FLOAT, outputs=("y",), inputs=()
):
    """Return a model of nodes (op, inputs, output or outputs, attributes) whose input is x."""
    listed = []
    for number, (op, taken, out, attributes) in enumerate(nodes):
        outs = [out] if isinstance(out, str) else out
        listed.append(helper.make_node(op, taken, outs, name=attributes.pop("name", f"n{number}"), **attributes))
    taken = [helper.make_tensor_value_info("x", dtype, [batch, *shape])]
    taken += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *size]) for name, size in inputs]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(listed, "graph", taken, given, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def expected(model, x, output=None):
    """Return what onnxruntime computes."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None if output is None else [output], {session.get_inputs()[0].name: x})[0]


def imported(model, path, **options):
    """Return a model read from a file."""
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return xc.Model.from_onnx(path, "cpu", **options)


def images(count=4, shape=SHAPE, seed=5):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def assert_agrees(model, path, *, x=None, tolerance=1e-5, **options):
    """Assert that a file computes here what it does in onnxruntime, in batches of several sizes; return the import."""
    found = imported(model, path, **options)
    x = images(shape=found.input_shape) if x is None else x
    for count in (1, len(x)):
        y = expected(model, x[:count])
        assert found.predict(x[:count]).shape == y.shape
        np.testing.assert_allclose(found.predict(x[:count]), y, rtol=0, atol=tolerance * max(1.0, np.abs(y).max()))
    return found


def kinds(model):
    """Return the names of a network's layers."""
    net = model.net
    return [type(row[1]).__name__ for row in getattr(net, "nodes", None) or net.layers]
