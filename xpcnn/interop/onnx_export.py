"""A network as an ONNX file: made in memory, checked there, then written whole."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import xpcnn
from xpcnn.data.normalise import Normalise
from xpcnn.errors import XpcnnError, whole
from xpcnn.files import check_writable, write_whole
from xpcnn.layers.base import Layer, Placed, Shape

if TYPE_CHECKING:
    from xpcnn.interop.onnx_draft import Draft

Host = np.ndarray[Any, Any]

MOST_BYTES = (1 << 31) - (1 << 24)  # of arrays: what protobuf can hold in one message, but for the graph


def export(
    path: str | Path,
    net: Layer,
    input_shape: Shape,
    arrays: Mapping[str, Host],
    predict: Callable[[Host], Any] | None,
    *,
    opset: int | None,
    normalise: Normalise | None,
    dtype: str,
    classes: Sequence[str],
    dataset: str,
) -> dict[str, Any]:
    """Write a network to an ONNX file once it is known to compute the same, and return what was measured.

    The graph takes ``input`` (N, *input_shape), any number of images, and returns ``output``. Nodes have the layers'
    paths with dots for names, arrays those of their nodes and their own, as in ``stage1.block1.body.conv1/weight``. A
    network gives the same bytes each time. ONNX keeps options such as eps and slopes in float32, also in a float64
    network; softplus is written without its threshold.

    Parameters
    ----------
    path : path
        Of the file, which ends in ``.onnx``; what was measured goes beside it, to ``<path>.json``.
    net : Layer
        The network.
    input_shape : tuple of int
        One example's shape.
    arrays : mapping
        Parameters and state by path.
    predict : callable, optional
        The network's outputs for a batch of images; without it no outputs are compared.
    opset : int, optional
        Version of ONNX's operators; by default the lowest that the network needs, 17 or more.
    normalise : Normalise, optional
        Let the graph take uint8 images and do this to them first.
    dtype : {"float32", "float64"}
        Of arrays and computation.
    classes, dataset
        Kept in the file's metadata.

    Returns
    -------
    dict
        What is written beside the file: its size, opset, inputs and outputs, the number of nodes of each operator,
        versions, and the largest differences.

    Raises
    ------
    XpcnnError
        When layers have no counterpart, the opset is not enough, a checker complains or outputs differ. Nothing is
        written then.
    OSError
        When there cannot be such a file.
    """
    path, beside = Path(path), Path(f"{path}.json")
    if path.suffix.lower() != ".onnx":
        raise XpcnnError(f"an ONNX file's name must end in .onnx, not {path.name!r}.")
    for file in (path, beside):
        check_writable(file)
    if find_spec("onnx") is None:
        raise XpcnnError("writing ONNX files needs the package onnx: pip install 'xpcnn[onnx]'.")
    from xpcnn.interop import onnx_check

    draft = _drafted(net, input_shape, arrays, normalise, dtype)
    model = draft.model(
        _opset(draft, opset), input_shape, net.output_shape(input_shape), pixels=normalise is not None,
        properties=_properties(classes, dataset),
    )  # fmt: skip
    content: bytes = model.SerializeToString(deterministic=True)
    facts = _facts(path, model, content) | onnx_check.checked(model, content, predict, net, input_shape)
    write_whole(path, content)
    write_whole(beside, (json.dumps(facts, indent=2) + "\n").encode())
    return facts


def _drafted(
    net: Layer, input_shape: Shape, arrays: Mapping[str, Host], normalise: Normalise | None, dtype: str
) -> Draft:
    """Return the network's nodes, or raise listing every layer that cannot be written."""
    from xpcnn.interop.onnx_converters import convert
    from xpcnn.interop.onnx_draft import INPUT, Draft

    if sum(array.nbytes for array in arrays.values()) > MOST_BYTES:
        raise XpcnnError("the network's arrays take more than 2 GiB, which is more than one ONNX file holds.")
    draft = Draft(arrays, dtype)
    x = INPUT if normalise is None else draft.normalise(normalise.mean, normalise.std)
    draft.end(convert(draft, Placed("", net, input_shape, net.output_shape(input_shape)), x))
    if draft.faults:
        raise XpcnnError(f"the network cannot be written as ONNX: {'; '.join(draft.faults)}.")
    return draft


def _opset(draft: Draft, asked: int | None) -> int:
    """Return the opset: the one asked for, if it is enough and known, or the lowest that all nodes have."""
    import onnx
    from onnx.defs import onnx_opset_version

    from xpcnn.interop.onnx_draft import LEAST

    least = max(LEAST, *draft.since.values()) if draft.since else LEAST
    opset = least if asked is None else whole("opset", asked, 1)
    if opset < least:
        needs = ", ".join(f"{label} {since}" for label, since in draft.since.items() if since > opset)
        raise XpcnnError(f"opset {opset} is too low: it must be {least} or more{f' (for {needs})' if needs else ''}.")
    if opset > onnx_opset_version():
        raise XpcnnError(
            f"opset {opset} is higher than the installed onnx {onnx.__version__} knows, {onnx_opset_version()}; "
            "install a newer one."
        )
    return opset


def _properties(classes: Sequence[str], dataset: str) -> dict[str, str]:
    """Return what the file says of the model besides the graph."""
    names = {"xpcnn.classes": json.dumps(list(classes))} if classes else {}
    return {"xpcnn.version": xpcnn.__version__} | names | ({"xpcnn.dataset": dataset} if dataset else {})


def _facts(path: Path, model: Any, content: bytes) -> dict[str, Any]:
    """Return what the file is."""
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "input": _tensor(model.graph.input[0]),
        "output": _tensor(model.graph.output[0]),
        "nodes": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    }


def _tensor(info: Any) -> dict[str, Any]:
    """Return a tensor's name, dtype and shape."""
    from onnx.helper import tensor_dtype_to_np_dtype

    described = info.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in described.shape.dim]
    return {"name": info.name, "dtype": tensor_dtype_to_np_dtype(described.elem_type).name, "shape": shape}
