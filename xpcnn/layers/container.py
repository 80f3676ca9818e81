"""What layers that hold layers share: names, paths and the gathering of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put a layer's name before what its ops complain of."""
    try:
        yield
    except XpcnnError as error:
        raise type(error)(f"layer {name}: {error}") from None


def split(arrays: Arrays) -> dict[str, Arrays]:
    """Group arrays by the first part of their path."""
    groups: dict[str, Arrays] = {}
    for path, array in arrays.items():
        name, _, rest = path.partition("/")
        groups.setdefault(name, {})[rest] = array
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
