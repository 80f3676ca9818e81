"""A network as a table: what each layer makes of its input, what it costs, and how far it sees."""

from __future__ import annotations

import math
from collections.abc import Iterator

from xpcnn.layers.base import Cost, Layer, Placed, Shape
from xpcnn.layers.graph import Graph
from xpcnn.layers.sequential import Sequential

HEADINGS = ("layer", "type", "output shape", "parameters", "multiply-adds", "receptive field", "im2col memory")
LEFT = 3  # the first columns are words, the others numbers
Row = tuple[str, ...]


def summarise(net: Layer, input_shape: Shape, batch_size: int, itemsize: int) -> str:
    """Return a table of a network's layers, one a line; those inside others are indented.

    Multiply-adds are of one example. A layer's receptive field is the patch of the input that one of its outputs
    depends on, but for the statistics of normalisations. Its im2col memory is what the columns of a batch take
    together; they are made a block at a time.
    """
    whole = Placed("net", net, input_shape, net.output_shape(input_shape))
    scale = batch_size * itemsize
    rows: list[Row] = [HEADINGS, ("input", "", str(input_shape), "", "", "", "")]
    for child, entry in _entries(net, input_shape, Cost()) or [(whole, Cost())]:
        rows += _lines(child, 0, entry, input_shape, scale)
    cost = net.cost(input_shape)
    rows.append(
        ("total", "", "", f"{net.parameter_count(input_shape):,}", f"{cost.multiply_adds:,}", "", _bytes(cost, scale))
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _lines(placed: Placed, depth: int, entry: Cost, image: Shape, scale: int) -> Iterator[Row]:
    """Yield a layer's line and those of the layers inside it; ``entry`` says how far its inputs see."""
    path, layer, before, after = placed
    cost = layer.cost(before)
    yield (
        "  " * depth + path,
        type(layer).__name__,
        str(after),
        f"{layer.parameter_count(before):,}",
        f"{cost.multiply_adds:,}",
        _field(entry.then(cost), image),
        _bytes(cost, scale),
    )
    for child, inner in _entries(layer, before, entry):
        yield from _lines(child, depth + 1, inner, image, scale)


def _entries(layer: Layer, input_shape: Shape, entry: Cost) -> list[tuple[Placed, Cost]]:
    """Return the layers inside one, each with how far its inputs see: along a chain that grows."""
    if isinstance(layer, Graph):
        own = zip(layer.children(input_shape), layer.entries(input_shape), strict=True)
        return [(child, entry.then(before)) for child, before in own]
    pairs = []
    for child in layer.children(input_shape):
        pairs.append((child, entry))
        if isinstance(layer, Sequential):
            entry = entry.then(child.layer.cost(child.input_shape))
    return pairs


def _field(cost: Cost, image: Shape) -> str:
    """Return a receptive field such as ``5×5``, no larger than the image."""
    if cost.span is None:
        return "all"
    spans = cost.span or (1,) * (len(image) - 1)
    return "×".join(str(min(math.ceil(span), size)) for span, size in zip(spans, image[1:], strict=True))


def _bytes(cost: Cost, scale: int) -> str:
    """Return the columns' memory in MB."""
    return f"{cost.columns * scale / 1e6:,.1f} MB" if cost.columns else ""


def _line(row: Row, widths: list[int]) -> str:
    """Return a row's cells, words to the left and numbers to the right."""
    cells = [f"{c:<{w}}" if n < LEFT else f"{c:>{w}}" for n, (c, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()
