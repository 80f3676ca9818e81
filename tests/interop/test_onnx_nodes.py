"""ONNX's own test cases of single nodes: each is computed as it should be, or refused with a sentence."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

import xpcnn as xc
from xpcnn.errors import XpcnnError

onnx = pytest.importorskip("onnx")

ELEMENTWISE = {  # operators for whose cases the whole tensor can be one example
    "Add", "Clip", "Div", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Selu", "Sigmoid", "Softplus",
    "Sub", "Sum", "Swish", "Tanh",
}  # fmt: skip
PASSING = {  # operators of which at least this many cases are computed
    "Add": 2, "AveragePool": 18, "BatchNormalization": 2, "Clip": 4, "Conv": 6, "ConvTranspose": 9, "Div": 3, "Dropout": 3,
    "Elu": 3, "Flatten": 3, "Gelu": 4, "Gemm": 8, "GlobalAveragePool": 2, "GlobalMaxPool": 2, "GroupNormalization": 2,
    "HardSigmoid": 3, "HardSwish": 1, "Identity": 1, "InstanceNormalization": 2, "LayerNormalization": 11, "LeakyRelu": 3,
    "LogSoftmax": 6, "MatMul": 1, "MaxPool": 16, "Mul": 3, "Relu": 1, "Reshape": 6, "Resize": 3, "Selu": 1, "Sigmoid": 2,
    "Softmax": 6, "Softplus": 2, "Squeeze": 1, "Sub": 3, "Tanh": 2, "Transpose": 1, "Unsqueeze": 6, "Upsample": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        from onnx.backend.test.case.node import collect_testcases

        return [case for case in collect_testcases(None) if case.data_sets and _of_arrays(*case.data_sets[0])]


def _of_arrays(inputs, outputs):
    """Whether a case is about arrays, the first of which may be images."""
    return bool(inputs) and all(isinstance(value, np.ndarray | np.generic) for value in (*inputs, *outputs))


def prepared(case):
    """Return a case's model with every input but the first as a constant, its input and its first output."""
    inputs, outputs = ([np.asarray(array) for array in arrays] for arrays in case.data_sets[0])
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    for described, array in list(zip(graph.input, inputs, strict=False))[1:]:
        graph.initializer.append(onnx.numpy_helper.from_array(array, described.name))
    first = graph.input[0]
    del graph.input[1:], graph.output[1:]
    x, y = inputs[0], outputs[0]
    sizes = first.type.tensor_type.shape.dim
    if {node.op_type for node in graph.node} <= ELEMENTWISE and (x.ndim < 2 or _needs_one(inputs, x)):
        sizes.insert(0, onnx.TensorShapeProto.Dimension(dim_param="N"))
        x, y = x[None], y[None]
    return model, x, y


def _needs_one(inputs, x):
    """Whether a constant has all axes of the images, the batch's too: then all are one image."""
    return any(array.ndim == x.ndim and array.shape[0] > 1 for array in inputs[1:])


def outcome(case, path):
    """Return what became of a case: "computed", or the sentence with which it is refused."""
    model, x, y = prepared(case)
    path.write_bytes(model.SerializeToString())
    try:
        found = xc.Model.from_onnx(path, "cpu").predict(x)
    except XpcnnError as error:
        return str(error)
    assert found.shape == y.shape, case.name
    half = any(array.dtype == np.float16 for array in map(np.asarray, case.data_sets[0][0]))
    limit = (1e-3 if half else 1e-4) * max(1.0, float(np.abs(y[np.isfinite(y)]).max(initial=0)))
    np.testing.assert_allclose(found, y, rtol=0, atol=limit, err_msg=case.name)
    return "computed"


def test_every_case_is_computed_or_refused(cases, tmp_path):
    assert len(cases) > 1000
    computed, count = Counter(), 0
    for case in cases:
        found = outcome(case, tmp_path / "case.onnx")
        ops = {node.op_type for node in case.model.graph.node}
        if found == "computed":
            computed.update(ops)
            count += 1
        else:
            assert "cannot be imported: " in found or "cannot be read as an ONNX file: " in found, case.name
            assert found.endswith(".")
            assert "\n" not in found
            if "no counterpart" in found:
                assert any(f"{op} the one that makes" in found for op in ops), case.name
    assert {op: computed[op] for op in PASSING if computed[op] < PASSING[op]} == {}
    print(f"{count} of {len(cases)} cases are computed, the others refused")
    assert count >= 160
