"""Weights from elsewhere: read, matched to a network's layers, and laid out as they lie here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xpcnn.errors import XpcnnError
from xpcnn.interop.layouts import LAYOUTS, Place, Wanted, in_sequence, places
from xpcnn.interop.matching import MOST_ROWS, Pairs, by_name, by_shape, grouped
from xpcnn.interop.weight_files import Found, Host, opened
from xpcnn.layers.base import Layer, Shape

COUNTS = ("num_batches_tracked", "seed_generator_state")  # last parts of names that are no weights


def fitted(
    values: Mapping[str, Any] | str | Path,
    net: Layer,
    input_shape: Shape,
    *,
    layout: str | None = None,
    names: Mapping[str, str | None] | Callable[[str], str | None] | None = None,
) -> dict[str, Host]:
    """Return a network's arrays by path from weights of PyTorch, Keras or xpcnn.

    Arrays go where their names say: "conv1.weight" is "conv1/weight", and the last part is what the layout calls it
    ("running_mean" for a batch norm's "mean"). If some names are none of the network's and no ``names`` are given, all
    arrays go by their shapes instead, layer by layer; layers of equal shapes go in the order of the numbers in their
    names ("features.3" before "features.10", Keras' "conv2d" before "conv2d_1"), and are refused where no number tells
    or where the network has them side by side, in branches.

    What makes the two networks compute the same is the caller's to say in the layers' options, such as eps: 1e-5 here
    and in PyTorch, 1e-3 in Keras.

    Parameters
    ----------
    values : mapping or path
        Arrays by name, such as a PyTorch module's ``state_dict()`` or ``{w.path: w.numpy() for w in model.weights}``
        in Keras; or a file: ``.safetensors``, or Keras' ``.weights.h5`` or ``.keras``.
    net : Layer
        The network.
    input_shape : (C, H, W)
        One example's shape.
    layout : {"xpcnn", "pytorch", "keras"}, optional
        How arrays lie; by default what the file says, else "pytorch" if names have dots and no slashes, else "xpcnn".
        "pytorch": affine weights are (out, in) there; "num_batches_tracked" is left out. "keras": convolutions are
        (KH, KW, C, F), depthwise (KH, KW, C, M), transposed (KH, KW, F, C), and images are flattened as (H, W, C), so
        that the rows of what follows are put in this order; a SeparableConv2D is two layers, "NAME/depthwise" and
        "NAME/pointwise". Arrays of a Keras file are "LAYER/kernel", "LAYER/bias", "LAYER/gamma" and so on.
    names : mapping or function, optional
        From a name there to the path here, or to None to leave it out. A mapping's key may be an array, a layer or any
        beginning of names up to a dot or slash; the longest counts, and what follows stays. A function is given each
        array's whole name, and may give its layer's path. What is not mentioned goes by its own name.

    Returns
    -------
    dict of str -> array
        On the host. State, such as running means, is among them if it was given.

    Raises
    ------
    DataError
        When the file is missing, damaged, a pickle, or of another kind.
    XpcnnError
        When an argument is wrong; or listing all that is missing, unknown or of another shape. Nothing is read then.
    """
    if layout is not None and layout not in LAYOUTS:
        raise XpcnnError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}.")
    if names is not None and not callable(names) and not isinstance(names, Mapping):
        raise XpcnnError(f"names must be a mapping or a function, not {names!r}.")
    with opened(values) as (found, kind):
        layout = layout or kind or _guessed(found)
        found = {name: stored for name, stored in found.items() if not name.endswith(COUNTS)}
        found = _separated(found) if layout == "keras" else found
        here = places(net, input_shape, layout)
        wanted = {array.path: array for place in here for array in place.arrays.values()}
        pairs, faults = by_name(found, here, names)
        if faults and names is None and layout != "xpcnn":
            pairs, faults = _guessed_pairs(found, here, partial(in_sequence, net, input_shape)), []
        _check(wanted, found, pairs, faults)
        return {path: wanted[path].ways[found[name].shape](found[name].read()) for path, name in pairs.items()}


def _guessed_pairs(found: Found, here: Sequence[Place], in_sequence: Callable[[str, str], bool]) -> Pairs:
    """Return which array goes where if not by its whole name: by all but a common first part, or by shapes."""
    if shared := _shared(found):
        pairs, faults = by_name(found, here, {shared: ""})
        if not faults:
            return pairs
    return by_shape(found, here, in_sequence)


def _check(wanted: Mapping[str, Wanted], found: Found, pairs: Pairs, faults: list[str]) -> None:
    """Raise unless every parameter has an array of its shape."""
    missing = [f"{path} is missing" for path, array in wanted.items() if path not in pairs and not array.is_state]
    wrong = [
        f"{path} takes {' or '.join(map(str, wanted[path].ways))}, but {name} has shape {found[name].shape}"
        for path, name in pairs.items()
        if found[name].shape not in wanted[path].ways
    ]
    if all_of_it := missing + faults + wrong:
        more = f"; and {len(all_of_it) - MOST_ROWS} more" if len(all_of_it) > MOST_ROWS else ""
        raise XpcnnError(f"the weights do not fit the network: {'; '.join(all_of_it[:MOST_ROWS])}{more}.")
    state = [path for path, array in wanted.items() if array.is_state]
    begun = {path.rpartition("/")[0] for path in state if path in pairs}
    if lone := [path for path in state if path not in pairs and path.rpartition("/")[0] in begun]:
        raise XpcnnError(f"the weights have only a part of the running statistics: {lone[0]} is missing.")


def _guessed(found: Found) -> str:
    """Return the layout that names look like."""
    return "pytorch" if any("." in name for name in found) and not any("/" in name for name in found) else "xpcnn"


def _separated(found: Found) -> Found:
    """Return Keras' separable convolutions as the two layers that they are."""
    renamed: Found = {}
    for layer, parts in grouped(found).items():
        names = dict(parts)
        if {"depthwise_kernel", "pointwise_kernel"} <= parts.keys():
            names = {
                (f"{part.partition('_')[0]}/kernel" if part.endswith("_kernel") else f"pointwise/{part}"): name
                for part, name in parts.items()
            }
        for part, name in names.items():
            stored = found[name]
            between = part.rpartition("/")[0]
            place = f"{stored.place}/{between}" if stored.place and between else stored.place
            renamed[f"{layer}/{part}" if layer else part] = stored._replace(place=place)
    return renamed


def _shared(found: Found) -> str:
    """Return the first part of names if all share it and go on with a layer's, such as the whole model's name."""
    first = {name.replace(".", "/").split("/")[0] if name.replace(".", "/").count("/") > 1 else "" for name in found}
    return first.pop() if len(first) == 1 else ""
