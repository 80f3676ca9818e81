"""Layers as plain data (for files) and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from xpcnn.errors import XpcnnError
from xpcnn.layers import (
    activation,
    affine,
    arithmetic,
    conv,
    dropout,
    graph,
    norm,
    pad,
    parallel,
    pool,
    sequential,
    upsample,
)
from xpcnn.layers.base import Layer
from xpcnn.layers.sequential import Sequential
from xpcnn.optim.initializers import HeNormal, Initializer, Normal, Ones, Zeros

MODULES = (
    activation, affine, arithmetic, conv, dropout, graph, norm, pad, parallel, pool, sequential, upsample,
)  # fmt: skip
INITIALIZERS = (HeNormal, Normal, Ones, Zeros)
CLASSES: list[Any] = [cls for module in MODULES for cls in vars(module).values() if is_dataclass(cls)]
LAYERS = [cls for cls in CLASSES if issubclass(cls, Layer) and not cls.__name__.startswith("_")]
KNOWN: dict[str, type[Any]] = {cls.__name__: cls for cls in (*LAYERS, *INITIALIZERS)}


def to_config(value: Any) -> Any:
    """Return a layer as nested dicts and lists of numbers, strings, booleans and None: JSON's types."""
    if isinstance(value, Layer) and not is_dataclass(value):
        raise XpcnnError(f"{type(value).__name__} cannot be saved: a layer must be a frozen dataclass.")
    if isinstance(value, Layer | Initializer):
        options = {field.name: to_config(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]
        return {"type": type(value).__name__} | options
    if isinstance(value, tuple | list):
        return [to_config(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, range):
        return list(value)
    raise XpcnnError(f"a layer's options must be numbers, strings, tuples or layers to be saved, got {value!r}.")


def replaced(value: Any, change: Callable[[Layer], Layer]) -> Any:
    """Return a network with each of its layers that holds no others replaced by what ``change`` makes of it."""
    if isinstance(value, tuple | list):
        return tuple(replaced(item, change) for item in value)
    if not isinstance(value, Layer) or not is_dataclass(value):
        return value
    options = {field.name: getattr(value, field.name) for field in fields(value)}
    new = {name: replaced(option, change) for name, option in options.items()}
    if all(new[name] is options[name] or new[name] == options[name] for name in options):
        return change(value)
    if isinstance(value, Sequential):
        return Sequential(*new["layers"], input_shape=new["input_shape"])
    return type(value)(**new)


def from_config(config: Any, custom: Iterable[type[Layer]] = ()) -> Any:
    """Rebuild what `to_config` described; ``custom`` lists the caller's own layer classes.

    Raises
    ------
    XpcnnError
        For an unknown layer, or options it does not have.
    """
    known = KNOWN | {cls.__name__: cls for cls in custom}
    if isinstance(config, list):
        return tuple(from_config(item, custom) for item in config)
    if not isinstance(config, dict):
        return config
    name = config.get("type")
    if name not in known:
        raise XpcnnError(f"the network has a layer of unknown type {name!r}; pass its class as custom=[...].")
    options = {key: from_config(value, custom) for key, value in config.items() if key != "type"}
    try:
        if known[name] is Sequential:
            return Sequential(*options["layers"], input_shape=options.get("input_shape"))
        return known[name](**options)
    except (TypeError, KeyError) as error:
        raise XpcnnError(f"the network's {name} layer is described wrongly ({error}).") from None
