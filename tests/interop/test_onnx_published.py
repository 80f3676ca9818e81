"""Published networks: those inside the PyPI package rapidocr-onnxruntime, against onnxruntime."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import optim
from xpcnn.errors import XpcnnError

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
package = importlib.util.find_spec("rapidocr_onnxruntime")
if package is None:
    pytest.skip("rapidocr-onnxruntime is not installed", allow_module_level=True)

MODELS = Path(package.origin).parent / "models"
CLASSIFIER = MODELS / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
DETECTION = MODELS / "ch_PP-OCRv4_det_infer.onnx"
RECOGNITION = MODELS / "ch_PP-OCRv4_rec_infer.onnx"
SHAPE = (3, 48, 192)
TARGET = 1e-4  # of the largest output


def session(path, output=None):
    model = onnx.load(path)
    if output is not None:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def pictures(shape, count=6):
    """Return noise, and pictures with edges, stripes and gradients: images / 127.5 - 1, as the package makes them."""
    rng, (_, height, width) = np.random.default_rng(4), shape
    rows, columns = np.mgrid[:height, :width]
    stripes = np.where((columns // 5 + rows // 9) % 2, 1.0, -1.0)
    slope = columns / width * 2 - 1
    disc = np.where((rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 3) ** 2, 0.9, -0.7)
    drawn = [np.broadcast_to(plane, shape) for plane in (stripes, slope, disc)]
    return np.stack([*rng.normal(size=(count - 3, *shape)), *drawn]).astype(np.float32)


@pytest.fixture(scope="module")
def classifier():
    return xc.Model.from_onnx(CLASSIFIER, "cpu", input_shape=SHAPE)


def test_the_classifier_computes_what_onnxruntime_does(classifier):
    x, theirs = pictures(SHAPE), session(CLASSIFIER)
    expected = theirs.run(None, {"x": x})[0]
    assert np.ptp(expected[:, 0]) > 0.1  # pictures that it tells apart
    assert np.abs(classifier.predict(x) - expected).max() <= TARGET * np.abs(expected).max()
    for image in x:
        alone = theirs.run(None, {"x": image[None]})[0]
        assert np.abs(classifier.predict(image[None]) - alone).max() <= TARGET * np.abs(alone).max()


def test_the_classifiers_nodes_became_layers(classifier):
    kinds = [type(layer) for _, layer, _ in classifier.net.nodes]
    assert [kinds.count(kind) for kind in (la.Conv2D, la.BatchNorm, la.HardSwish, la.HardSigmoid)] == [53, 35, 18, 9]
    assert kinds[-3:] == [la.GlobalAvgPool, la.Affine, la.Softmax]
    assert la.Scale not in kinds  # every sum and quotient found its place
    assert la.Clip not in kinds


def test_the_classifier_without_its_softmax_trains(classifier, tmp_path):
    model = xc.Model.from_onnx(CLASSIFIER, "cpu", input_shape=SHAPE, output="linear_1.tmp_1")
    x, t = pictures(SHAPE), np.array([0, 1, 0, 1, 0, 1])
    trainer = xc.Trainer(model, optim.adam(lr=0.002))
    losses = [float(trainer.step(x, t)) for _ in range(8)]
    assert losses[-1] < losses[0] / 2
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(xc.Model.load(tmp_path / "m.safetensors", "cpu").predict(x), model.predict(x))


@pytest.mark.parametrize("shape", [(3, 96, 160), (3, 192, 256)])
def test_the_detection_network_computes_what_onnxruntime_does(shape):
    x = pictures(shape)[1:5]
    for output, limit in (
        ("p2o.Add.215", TARGET),
        ("p2o.Concat.1", TARGET),
        ("p2o.Add.281", TARGET),
    ):  # backbone, neck, head
        expected = session(DETECTION, output).run([output], {"x": x})[0]
        model = xc.Model.from_onnx(DETECTION, "cpu", input_shape=shape, output=output)
        assert model.output_shape == expected.shape[1:]
        assert np.abs(model.predict(x) - expected).max() <= limit * np.abs(expected).max(), output
    probabilities = xc.Model.from_onnx(DETECTION, "cpu", input_shape=shape).predict(x)
    assert probabilities.shape == (4, 1, *shape[1:])
    np.testing.assert_allclose(probabilities, session(DETECTION).run(None, {"x": x})[0], rtol=0, atol=TARGET)  # of 1


def test_the_recognition_network_is_refused_with_all_reasons():
    """It has attention: products of two tensors, transpositions and slices of what depends on the images."""
    with pytest.raises(XpcnnError) as caught:
        xc.Model.from_onnx(RECOGNITION, "cpu", input_shape=(3, 48, 320))
    message = str(caught.value)
    assert re.search(r"cannot be imported: \d+ of its \d+ nodes have no counterpart: ", message)
    nodes = {node.name: node.op_type for node in onnx.load(RECOGNITION).graph.node}
    for name, op in nodes.items():  # every one of an operator that has no layer is named
        if op in ("Pow", "Sqrt"):
            assert re.search(rf"\b{re.escape(name)}\b", message), name
    for part in ("Transpose p2o.Transpose.0 (", "MatMul p2o.MatMul.2,", "Slice p2o.Slice.4,", "Div p2o.Div.28,"):
        assert part.rstrip(",") in message, part


def test_its_backbone_is_imported():
    output, x = "p2o.Add.231", pictures((3, 48, 64))
    model = xc.Model.from_onnx(RECOGNITION, "cpu", input_shape=(3, 48, 64), output=output)
    expected = session(RECOGNITION, output).run([output], {"x": x})[0]
    assert np.abs(model.predict(x) - expected).max() <= TARGET * np.abs(expected).max()
