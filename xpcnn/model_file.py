"""A model as a safetensors file: its arrays, and the description of everything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import xpcnn
from xpcnn.errors import DataError, XpcnnError
from xpcnn.layers import Layer, from_config, to_config
from xpcnn.layers.base import Shape
from xpcnn.layers.stored import check_shapes, read, write

Host = np.ndarray[Any, Any]


def save(
    path: str | Path,
    net: Layer,
    input_shape: Shape,
    dtype: str,
    normalise: Mapping[str, float],
    classes: Sequence[str],
    dataset: str,
    arrays: Mapping[str, Host],
) -> None:
    """Write a network with its arrays, whole or not at all."""
    description = {
        "xpcnn": xpcnn.__version__,
        "network": to_config(net),
        "input_shape": list(input_shape),
        "dtype": dtype,
        "normalise": dict(normalise),
        "classes": list(classes),
        "dataset": dataset,
    }
    write(path, description, arrays)


@contextmanager
def opened(path: str | Path, custom: Iterable[type[Layer]] = ()) -> Iterator[tuple[Layer, dict[str, Any]]]:
    """Give a file's network and what else a model is made with; what goes wrong with them is said of the file.

    Shapes are compared before any array is read.

    Raises
    ------
    DataError
        When the file is missing, truncated, corrupt or not a model.
    """
    custom = tuple(custom)
    if not all(isinstance(cls, type) and issubclass(cls, Layer) for cls in custom):
        raise XpcnnError(f"custom must list layer classes, not {custom!r}.")
    description, shapes, arrays = read(Path(path))
    if "kind" in description:
        raise DataError(f"{path} is no model but a {description['kind']}; the model is beside it, if there is one.")
    try:
        net, shape = from_config(description["network"], custom), tuple(description["input_shape"])
        if not isinstance(net, Layer) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise XpcnnError("its network or input shape is none.")
        check_shapes(net.parameters(shape) | net.state(shape), shapes)
        options = {name: description[name] for name in ("dtype", "normalise", "classes", "dataset")}
        yield net, {"input_shape": shape, "values": arrays()} | options
    except (XpcnnError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path} is not a whole xpcnn model: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return an error's text as the end of a sentence."""
    return str(error) if isinstance(error, XpcnnError) else f"its description is wrong ({error!r})."
