"""Which array goes where: by names, as they are or as a map says, and by shapes where names say nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from xpcnn.errors import XpcnnError
from xpcnn.interop.layouts import Place
from xpcnn.interop.weight_files import Found

Names = Mapping[str, str | None] | Callable[[str], str | None]
Pairs = dict[str, str]  # the path here -> the name there
Layers = dict[str, dict[str, str]]  # layer there -> part -> name there

MOST_ROWS = 60  # of a table that people read


def by_name(there: Iterable[str], places: Sequence[Place], names: Names | None) -> tuple[Pairs, list[str]]:
    """Return where the arrays go whose names, or what a map makes of them, are paths of the network; and the faults.

    A name and a path are the same if they differ by "." and "/" alone, and if only the last part, such as
    "running_mean" for "mean", is another word there.
    """
    index = _index(places)
    layers = {_spelt(place.path): place for place in places}
    pairs: Pairs = {}
    faults = _needless(there, names)
    for name in there:
        target = _renamed(name, names)
        if target is None:
            continue
        part = _split(name)[1]
        path = index.get(_spelt(target))
        if path is None and callable(names) and _spelt(target) in layers:
            path = index.get(_spelt(f"{target}/{part}"))
        if path is None:
            faults.append(f"{name} is unknown" + ("" if target == name else f", also as {target}"))
        elif path in pairs:
            faults.append(f"{path} is given twice, by {pairs[path]} and {name}")
        else:
            pairs[path] = name
    return pairs, faults


def by_shape(there: Found, places: Sequence[Place], in_sequence: Callable[[str, str], bool]) -> Pairs:
    """Return where arrays go by their shapes, layer by layer, and by the numbers in names where shapes are equal.

    Numbers count only where ``in_sequence`` says of two paths that the layers run one after another: those of branches
    side by side may be numbered in any order.

    Raises
    ------
    XpcnnError
        With a table of both sides, where a layer has no counterpart, or not one alone.
    """
    layers = grouped(there)
    kinds: dict[object, list[Place]] = defaultdict(list)
    for place in places:
        kinds[_kind(place)].append(place)
    fitting: dict[object, list[str]] = {kind: [] for kind in kinds}
    left: list[str] = []
    unclear: list[str] = []
    for layer, parts in layers.items():
        fits = [kind for kind, alike in kinds.items() if _fits(parts, there, alike[0])]
        if len(fits) == 1:
            fitting[fits[0]].append(layer)
        else:
            (unclear if fits else left).append(layer)
    pairs: Pairs = {}
    missing: list[Place] = []
    for kind, alike in kinds.items():
        found = sorted(fitting[kind], key=lambda layer: _key(_place_of(layer, layers, there)))
        if len(found) != len(alike):
            left, missing = left + found, missing + alike
            continue
        numbered = _is_ordered([_place_of(layer, layers, there) for layer in found])
        if not numbered or not all(in_sequence(a.path, b.path) for a, b in pairwise(alike)):
            unclear += found
        for place, layer in zip(alike, found, strict=True):
            pairs |= {place.arrays[part].path: name for part, name in layers[layer].items()}
    if left or missing or unclear:
        raise XpcnnError(_table(layers, there, left, missing, unclear))
    return pairs


def grouped(there: Iterable[str]) -> Layers:
    """Return the arrays by their layers' names."""
    layers: Layers = defaultdict(dict)
    for name in there:
        layer, part = _split(name)
        layers[layer][part] = name
    return layers


def _index(places: Sequence[Place]) -> dict[str, str]:
    """Return the path of each array by every spelling of it, its own last."""
    index: dict[str, str] = {}
    for place in places:
        index |= {_spelt(f"{place.path}/{part}"): wanted.path for part, wanted in place.arrays.items()}
    own = {_spelt(wanted.path): wanted.path for place in places for wanted in place.arrays.values()}
    return own | index


def _renamed(name: str, names: Names | None) -> str | None:
    """Return what a map makes of a name: that of the longest key which is its beginning, up to a dot or slash."""
    if names is None:
        return name
    if callable(names):
        target = names(name)
    else:
        key = max((key for key in names if _begins(name, key)), key=len, default=None)
        if key is None:
            return name
        target, rest = names[key], name[len(key) :]
        if isinstance(target, str):
            target = target + rest if target else rest[1:]
    if target is not None and not isinstance(target, str):
        raise XpcnnError(f"names must give a path or None, but gives {target!r} for {name}.")
    return target


def _needless(there: Iterable[str], names: Names | None) -> list[str]:
    """Return a sentence for each key of a map that begins no name."""
    if names is None or callable(names):
        return []
    return [f"names has {key!r}, which is not there" for key in names if not any(_begins(n, key) for n in there)]


def _begins(name: str, key: str) -> bool:
    """Whether a name is a key, or goes on after it with a part of its own."""
    return name == key or (name.startswith(key) and name[len(key)] in "./")


def _split(name: str) -> tuple[str, str]:
    """Return a name's layer and its last part."""
    cut = max(name.rfind("."), name.rfind("/"))
    return name[: max(cut, 0)], name[cut + 1 :]


def _spelt(path: str) -> str:
    """Return a path in one spelling."""
    return path.strip("/").replace("/", ".")


def _kind(place: Place) -> object:
    """Return what two layers must have in common to take each other's arrays."""
    return frozenset((part, frozenset(wanted.ways)) for part, wanted in place.arrays.items())


def _fits(parts: Mapping[str, str], there: Found, place: Place) -> bool:
    """Whether a layer's arrays are those of a place: the same parts, each in a shape that fits."""
    return parts.keys() == place.arrays.keys() and all(
        there[name].shape in place.arrays[part].ways for part, name in parts.items()
    )


def _place_of(layer: str, layers: Layers, there: Found) -> str:
    """Return what tells a layer's number."""
    return next((there[name].place for name in layers[layer].values() if there[name].place), layer)


def _key(name: str) -> list[tuple[int, str]]:
    """Cut a name into words and numbers; a layer without a number, as Keras' first of a kind, is number 0."""
    pieces: list[tuple[int, str]] = []
    for component in re.split(r"[./]", name):
        word, number = re.fullmatch(r"(.*?)(?:_(\d{1,18}))?", component, re.DOTALL).groups()  # type: ignore[union-attr]
        pieces += [(int(p), "") if p.isdecimal() else (-1, p) for p in re.findall(r"\d{1,18}|\D+", word)]
        pieces += [(-1, ""), (int(number or 0), "")]
    return pieces


def _is_ordered(names: Sequence[str]) -> bool:
    """Whether names in order differ first by a number, so that it is more than the alphabet's order."""
    for a, b in pairwise(map(_key, names)):
        first = next(((x, y) for x, y in zip(a, b, strict=False) if x != y), None)
        if first is None or first[0][0] < 0 or first[1][0] < 0:
            return False
    return True


def _table(layers: Layers, there: Found, left: list[str], missing: list[Place], unclear: list[str]) -> str:
    """Return the message: what is left over here and there, and what could be exchanged."""

    def of_there(layer: str) -> str:
        return _row(layer, {part: str(there[name].shape) for part, name in layers[layer].items()})

    def of_here(place: Place) -> str:
        return _row(place.path, {p: " or ".join(map(str, w.ways)) for p, w in place.arrays.items()})

    parts = [
        ("layers of the network that nothing fits", [of_here(place) for place in missing]),
        ("given, but fits nothing", [of_there(layer) for layer in left]),
        ("given, but its shapes and numbers do not say which of several layers it is", [*map(of_there, unclear)]),
    ]
    text = "the weights fit the network neither by their names nor by their shapes; say with names= what is what."
    for title, rows in parts:
        if rows:
            more = [f"  and {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else []
            text += "\n".join([f"\n{title}:", *rows[:MOST_ROWS], *more])
    return text


def _row(name: str, shapes: Mapping[str, str]) -> str:
    """Return a line of the table."""
    return f"  {name[:60]}: " + ", ".join(f"{part[:40]} {shape}" for part, shape in shapes.items())
