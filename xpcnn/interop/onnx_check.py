"""Whether an ONNX graph computes what the network does, measured before the file is there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

import xpcnn
from xpcnn import layers as la
from xpcnn.errors import XpcnnError
from xpcnn.kernels.threads import thread_count
from xpcnn.layers.base import Layer, Shape, leaves

Host = np.ndarray[Any, Any]

TOLERANCE = {"float32": 1e-4, "float64": 1e-6}  # of the largest output; options such as eps are float32 in any file
BATCHES = (slice(0, 1), slice(1, 3))  # of the images that are drawn
GAPS = (ValueError, TypeError, LookupError, NotImplementedError, RuntimeError)  # as it fails: grouped ConvTranspose
MOST_SECONDS = 20.0  # that the reference evaluator may take, by estimates of what it does in a second
PRODUCTS = 5e8
RATES: dict[type[Layer], float] = {  # outputs, where it computes one by one
    la.MaxPool1D: 1e5, la.MaxPool2D: 1e5, la.MaxPool3D: 1e5,
    la.AvgPool1D: 3e4, la.AvgPool2D: 3e4, la.AvgPool3D: 3e4, la.AdaptiveAvgPool2D: 3e4,
    la.ConvTranspose1D: 5e4, la.ConvTranspose2D: 5e4, la.ConvTranspose3D: 5e4, la.Conv3D: 2e5,
}  # fmt: skip


def checked(
    model: ModelProto, content: bytes, predict: Callable[[Host], Any] | None, net: Layer, input_shape: Shape
) -> dict[str, Any]:
    """Compare what others make of a graph with what the network predicts, for random images from a fixed seed.

    The graph is run by ONNX's reference evaluator, unless that would take long, and by onnxruntime, where that is
    installed and has its operators for the dtype; one image alone and two together.

    Parameters
    ----------
    model : ModelProto
        The graph.
    content : bytes
        The same as a file.
    predict : callable, optional
        The network's outputs for images; without it only ONNX's checker is asked.
    net, input_shape
        The network, and one example's shape.

    Returns
    -------
    dict
        Versions, tolerance and, for each of the two, the largest difference and its share of the largest output, or
        why it was left out.

    Raises
    ------
    XpcnnError
        When the checker or onnxruntime complains, or a difference is above the tolerance.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise XpcnnError(f"ONNX's checker refuses the graph: {error}.") from None
    versions = {"xpcnn": xpcnn.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    facts: dict[str, Any] = {"versions": versions, "checker": "passed"}
    if predict is None:
        return facts | {"compared": "nothing, as asked"}
    images, dtype = _images(model, input_shape)
    expected = np.asarray(predict(images))
    if not np.isfinite(expected).all():
        raise XpcnnError("the model's own outputs are no finite numbers, so there is nothing to compare with.")
    facts |= {"images": len(images), "largest_output": float(np.abs(expected).max()), "tolerance": TOLERANCE[dtype]}
    for name, run, why in (
        ("reference", _by_reference, _too_slow(net, input_shape)),
        ("onnxruntime", _by_onnxruntime, _not_installed(versions)),
    ):
        found = why or run(content, [images[rows] for rows in BATCHES])
        facts[name] = {"left_out": found} if isinstance(found, str) else _differences(name, found, expected, dtype)
    reference, runtime = facts["reference"], facts["onnxruntime"]
    if not reference.get("relative", 0.0) <= TOLERANCE[dtype]:
        if "relative" not in runtime:
            raise XpcnnError(_differ("reference", reference, dtype))
        # it is wrong, for one, in grouped transposed convolutions with a bias
        facts["reference"] = {"left_out": f"it differs from the model, with which onnxruntime agrees: {reference}"}
    return facts


def _images(model: ModelProto, input_shape: Shape) -> tuple[Host, str]:
    """Return a few images of the graph's input type, and the dtype that it computes in."""
    rng = np.random.default_rng(0)
    takes, gives = (tensors[0].type.tensor_type.elem_type for tensors in (model.graph.input, model.graph.output))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(gives).name
    shape = (BATCHES[-1].stop, *input_shape)
    if takes == onnx.TensorProto.UINT8:
        return rng.integers(0, 256, shape, np.uint8), dtype
    return rng.standard_normal(shape).astype(dtype), dtype


def _differences(name: str, found: list[Host], expected: Host, dtype: str) -> dict[str, Any]:
    """Return the largest difference, or raise if it is too large.

    The reference evaluator makes too few outputs of a MaxPool whose padding is after a signal alone; the checker, which
    infers shapes, knows better.
    """
    shapes = [y.shape for y in found]
    if shapes != [expected[rows].shape for rows in BATCHES]:
        said = f"makes outputs {shapes[0]}, where the model makes {expected[:1].shape}"
        if name == "reference":
            return {"left_out": f"it {said} and so does ONNX's shape inference"}
        raise XpcnnError(f"{name} {said}.")
    absolute = float(np.abs(np.concatenate(found) - expected).max(initial=0.0))
    relative = absolute / (float(np.abs(expected).max(initial=0.0)) or 1.0)
    facts = {"absolute": absolute, "relative": relative}
    if name != "reference" and not relative <= TOLERANCE[dtype]:
        raise XpcnnError(_differ(name, facts, dtype))
    return facts


def _differ(name: str, facts: Mapping[str, float], dtype: str) -> str:
    """Return the sentence about a difference that is too large."""
    return (
        f"{name} and the model differ by {facts['absolute']:.2g}, {facts['relative']:.2g} of the largest output, where "
        f"{TOLERANCE[dtype]:g} is allowed."
    )


def _by_reference(content: bytes, batches: list[Host]) -> list[Host] | str:
    """Return what ONNX's reference evaluator makes of batches, or why it cannot."""
    try:
        session = ReferenceEvaluator(onnx.load_from_string(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # its sigmoid of large numbers, for one, overflows
            return [np.asarray(session.run(None, {session.input_names[0]: x})[0]) for x in batches]
    except GAPS as error:
        return f"it fails ({error!r})"


def _by_onnxruntime(content: bytes, batches: list[Host]) -> list[Host] | str:
    """Return what onnxruntime makes of batches, or that it has not all operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    options.intra_op_num_threads = thread_count()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return [np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0]) for x in batches]
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        if type(error).__name__ == "NotImplemented":  # such as most of its float64
            return f"it has not all operators ({error})"
        raise XpcnnError(
            f"onnxruntime {onnxruntime.__version__} refuses the graph: {error}; a lower opset may help, or leaving out "
            "the check."
        ) from None


def _not_installed(versions: dict[str, str]) -> str:
    """Return that onnxruntime is not installed, or nothing and note its version."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"it cannot be imported ({error})"
    versions["onnxruntime"] = onnxruntime.__version__
    return ""


def _too_slow(net: Layer, input_shape: Shape) -> str:
    """Return that the reference evaluator would take too long, or nothing."""
    one_by_one = sum(math.prod(p.output_shape) / RATES.get(type(p.layer), math.inf) for p in leaves(net, input_shape))
    seconds = BATCHES[-1].stop * (net.cost(input_shape).multiply_adds / PRODUCTS + one_by_one)
    return f"it would take about {seconds:.0f} s" if seconds > MOST_SECONDS else ""
