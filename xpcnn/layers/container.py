"""What layers that hold layers share: names, paths and the gathering of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays, Layer, Parameter, Placed, Shape

Child = Layer | tuple[str, Layer]
Named = tuple[tuple[str, Layer], ...]


class Container(Layer):
    """A layer made of named ones; a parameter's path is its layer's name and its own: ``conv1/weight``."""

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return every child's parameters under ``name/path``."""
        children = self.children(input_shape)
        return {f"{c.path}/{path}": p for c in children for path, p in c.layer.parameters(c.input_shape).items()}

    def state(self, input_shape: Shape) -> dict[str, Parameter]:
        """Return every child's state under ``name/path``."""
        children = self.children(input_shape)
        return {f"{c.path}/{path}": s for c in children for path, s in c.layer.state(c.input_shape).items()}


def place(name: str, layer: Layer, input_shape: Shape) -> Placed:
    """Return a child with its shapes, or raise naming it if it does not fit."""
    try:
        return Placed(name, layer, input_shape, layer.output_shape(input_shape))
    except XpcnnError as error:
        raise XpcnnError(f"layer {name} does not fit its input {input_shape}: {error}") from None


class naming:  # noqa: N801  a context manager by name; as a generator it would take three times as long
    """Put a layer's name before what its ops complain of."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, XpcnnError):
            raise type(error)(f"layer {self.name}: {error}") from None


def split(arrays: Arrays) -> dict[str, Arrays]:
    """Group arrays by the first part of their path."""
    return {name: {rest: arrays[path] for rest, path in inside} for name, inside in _grouped(tuple(arrays)).items()}


@lru_cache(256)
def _grouped(paths: tuple[str, ...]) -> dict[str, list[tuple[str, str]]]:
    """Group paths by their first part, each with the rest of it: the same for every call of a network."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path in paths:
        name, _, rest = path.partition("/")
        groups.setdefault(name, []).append((rest, path))
    return groups


def under(name: str, arrays: Arrays) -> Arrays:
    """Put a child's name before each path."""
    return {f"{name}/{path}": array for path, array in arrays.items()}


def named(children: Sequence[Child], owner: str) -> Named:
    """Return (name, layer) pairs, naming unnamed layers by kind and number, or raise on what is no layer."""
    counts: Counter[str] = Counter()
    pairs = []
    for child in children:
        if isinstance(child, Layer):
            counts[child.kind] += 1
            child = (f"{child.kind}{counts[child.kind]}", child)
        if not (isinstance(child, tuple | list) and len(child) == 2 and isinstance(child[1], Layer)):
            raise XpcnnError(f"{owner} takes layers or (name, layer) pairs, got {child!r}.")
        name, layer = child
        if not isinstance(name, str) or not name or "/" in name:
            raise XpcnnError(f"a layer's name must be a word without '/', got {name!r}.")
        pairs.append((name, layer))
    _check_distinct(name for name, _ in pairs)
    return tuple(pairs)


def _check_distinct(names: Iterable[str]) -> None:
    """Raise if a name occurs twice."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise XpcnnError(f"layer names must differ, but {', '.join(twice)} occurs more than once.")
