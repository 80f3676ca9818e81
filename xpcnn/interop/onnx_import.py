"""Networks from ONNX files: nodes become layers, initializers their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from xpcnn.data.normalise import Normalise
from xpcnn.errors import DataError, XpcnnError
from xpcnn.interop.onnx_call import Call, Known, Unseen, stand_in
from xpcnn.interop.onnx_file import Input, Node, Source, read_file
from xpcnn.interop.onnx_fold import FOLDED, Room, Unsupported, evaluate
from xpcnn.interop.onnx_nodes import CONVERTERS
from xpcnn.interop.onnx_patterns import Patterns
from xpcnn.interop.onnx_sketch import UNKNOWN, Sketch, Tensor, check_size
from xpcnn.interop.onnx_wire import Host
from xpcnn.layers import Layer
from xpcnn.layers.base import Shape, checked_shape
from xpcnn.layers.graph import INPUT

MOST_SCALE = 1e30  # that pixels are multiplied by, or divided
MOST_ROWS, MOST_LABELS, MOST_NAME, MOST_WHY = 20, 10, 60, 200  # of what is listed, as far as anybody reads it
FLOATS = ("float32", "float64", "float16", "bfloat16")


class Imported(NamedTuple):
    """What a file holds, as `xpcnn.Model` takes it."""

    net: Layer
    values: dict[str, Host]
    input_shape: Shape
    dtype: str
    normalise: Normalise | None
    classes: tuple[str, ...]
    dataset: str


def read(path: str | Path, *, input_shape: Sequence[int] | None = None, output: str | None = None) -> Imported:
    """Read an ONNX file as a network.

    Parameters
    ----------
    path : path
        The file, with its weights inside.
    input_shape : (C, H, W), optional
        One image's shape; needed where the file leaves sizes open.
    output : str, optional
        The tensor to end at, by default the graph's only output; what it does not need is left out.

    Returns
    -------
    Imported
        A `Sequential` for a chain of layers, else a `Graph`; layers are called as the nodes, "/" written ".".

    Raises
    ------
    DataError
        When the file is damaged or no ONNX file; nothing is allocated beyond what it holds.
    XpcnnError
        When it lacks what is asked for, or listing every node that has no counterpart here.
    """
    path = Path(path)
    try:
        return _Reading(read_file(path), output).imported(input_shape)
    except XpcnnError as error:
        fault = "cannot be read as an ONNX file" if isinstance(error, DataError) else "cannot be imported"
        raise type(error)(f"{path} {fault}: {_printable(str(error))}") from None


class _Reading:
    """A file on its way to a network."""

    def __init__(self, source: Source, output: str | None) -> None:
        self.room = Room(source.size)
        self.output = _chosen(source, output)
        self.source = replace(source, nodes=_needed(source.nodes, self.output), constants=dict(source.constants))
        self.constants = self.source.constants
        self.faults: dict[tuple[str, str], list[str]] = {}
        self._fold()
        self.normalise: Normalise | None = None
        self.input = self._one_input()

    def imported(self, input_shape: Sequence[int] | None) -> Imported:
        """Return the network, or raise with all that is wrong."""
        described = self.source.inputs[self.input]
        dtype, start = described.dtype, self.input
        nodes = self.source.nodes
        if dtype == "uint8":
            nodes, start, dtype = self._pixels()
        if dtype not in FLOATS:
            raise XpcnnError(f"its input {self.input} takes {described.dtype}, not floats or uint8 images.")
        shape = self._input_shape(described, input_shape)
        nodes = Patterns(nodes, self.constants, self.output).simplified()
        sketch = Sketch(shape)
        batch = described.sizes[0] if described.sizes else None
        found = self._walk(nodes, start, sketch, batch)
        if not isinstance(found, Tensor) or self.faults:
            raise XpcnnError(self._listed(len(nodes)))
        sketch.finish(found.name)
        own = "float64" if dtype == "float64" else "float32"
        values = {path: array.astype(own, copy=False) for path, array in sketch.values().items()}
        net = sketch.network()
        classes = self.source.classes if net.output_shape(shape) == (len(self.source.classes),) else ()
        return Imported(net, values, shape, own, self.normalise, classes, self.source.dataset)

    def _fold(self) -> None:
        """Compute what depends on constants alone; what cannot be is left for the walk to say."""
        aliases: dict[str, str] = {}
        left = []
        for node in self.source.nodes:
            node = node._replace(inputs=tuple(aliases.get(name, name) for name in node.inputs))
            given = [name for name in node.inputs if name]
            if node.op == "Identity" and len(given) == 1 and given[0] not in self.constants:
                aliases[node.outputs[0]] = given[0]
                continue
            if node.op in FOLDED and all(name in self.constants for name in given):
                arrays = [self.constants[name] if name else None for name in node.inputs]
                with suppress(Unsupported):
                    self.constants[node.outputs[0]] = evaluate(node, arrays, self.source.opset, self.room)
                    continue
            left.append(node)
        self.output = aliases.get(self.output, self.output)
        self.source = replace(self.source, nodes=left)

    def _one_input(self) -> str:
        """Return the only input that the output depends on."""
        used = {name for node in self.source.nodes for name in node.inputs} | {self.output}
        names = [name for name in self.source.inputs if name in used] or list(self.source.inputs)
        if len(names) != 1:
            listed = f"takes {', '.join(names)}" if names else "takes none"
            raise XpcnnError(f"its output {self.output} {listed}, and a network here has one input.")
        return names[0]

    def _pixels(self) -> tuple[list[Node], str, str]:
        """Take a conversion of uint8 images to floats, and their normalisation, off the graph's beginning."""
        nodes = self.source.nodes
        takers = [node for node in nodes if self.input in node.inputs]
        if len(takers) != 1 or takers[0].op != "Cast" or takers[0].attributes.get("to") not in (1, 10, 11, 16):
            raise XpcnnError(
                f"its input {self.input} takes uint8 images, but they are not converted to floats at once."
            )
        dtype = "float64" if takers[0].attributes["to"] == 11 else "float32"
        start, scale, shift = takers[0].outputs[0], 1.0, 0.0
        taken = {takers[0].outputs: "Cast"}
        patterns = Patterns(nodes, self.constants, self.output)
        for node, factor, offset in patterns.following(start):
            kind = "product" if node.op in ("Mul", "Div") else "sum"
            if not MOST_SCALE > scale * factor > 1 / MOST_SCALE or kind in taken.values():
                break
            start, scale, shift = node.outputs[0], scale * factor, shift * factor + offset
            taken[node.outputs] = kind
        std = 1 / (255 * scale)
        self.normalise = Normalise(-shift * std, std)
        return [node for node in nodes if node.outputs not in taken], start, dtype

    def _input_shape(self, described: Input, given: Sequence[int] | None) -> Shape:
        """Return one image's shape, from the file and from what is asked for."""
        sizes = None if described.sizes is None else described.sizes[1:]
        listed = "any shape" if sizes is None else f"(N, {', '.join('?' if n is None else str(n) for n in sizes)})"
        stated = f"its input {self.input} takes {listed}"
        if sizes == ():
            raise XpcnnError(f"its input {self.input} has no axes but the batch's.")
        if given is None:
            if sizes is None or None in sizes:
                raise XpcnnError(f"{stated}, so that sizes are open: give input_shape=(C, H, W).")
            given = tuple(n or 0 for n in sizes)
        shape = checked_shape(given)
        fits = sizes is None or len(sizes) == len(shape)
        if not fits or any(n not in (None, m) for n, m in zip(sizes or (), shape, strict=False)):
            raise XpcnnError(f"{stated}, not the input_shape {shape}.")
        try:
            check_size(shape)
        except Unsupported as error:
            raise XpcnnError(f"its input {self.input} {error}.") from None
        return shape

    def _walk(self, nodes: Sequence[Node], start: str, sketch: Sketch, batch: int | None) -> Tensor | Known:
        """Make layers of nodes in order, and return the value of the output."""
        values: dict[str, Tensor | Known] = {name: Known((array,) * 2) for name, array in self.constants.items()}
        values[start] = Tensor(INPUT, sketch.input_shape)
        for node in nodes:
            given = [values.get(name, UNKNOWN) if name else None for name in node.inputs]
            for name in node.outputs:
                values[name] = UNKNOWN
            try:
                values[node.outputs[0]] = self._convert(node, given, sketch, batch)
            except Unseen:
                continue
            except (Unsupported, XpcnnError) as error:
                self._fault(node, str(error).rstrip("."))
                values[node.outputs[0]] = stand_in(node, given)
        taken = {name for node in nodes for name in node.inputs if name} | {self.output}
        for node in nodes:
            if taken.intersection(node.outputs[1:]):
                self._fault(node, f"has more outputs than are understood ({', '.join(node.outputs[1:])})")
        return values.get(self.output, UNKNOWN)

    def _convert(
        self, node: Node, given: Sequence[Tensor | Known | None], sketch: Sketch, batch: int | None
    ) -> Tensor | Known:
        """Return what a node makes: a layer's value, or numbers computed of shapes."""
        if not any(isinstance(value, Tensor) for value in given):
            known = [value for value in given if isinstance(value, Known)]
            rounds = range(len(known[0].values) if known else 1)
            arrays = [[v.values[r] if isinstance(v, Known) else None for v in given] for r in rounds]
            return Known(tuple(evaluate(node, row, self.source.opset, self.room) for row in arrays))
        if node.op not in CONVERTERS:
            raise Unsupported("has no counterpart")
        converter = CONVERTERS[node.op]
        if others := [name for name in node.attributes if name not in converter.attributes]:
            raise Unsupported(f"has the attribute {', '.join(others)}, which is not understood")
        made: Tensor | Known = converter.run(Call(node, given, self.source.opset, sketch, batch))
        return made

    def _fault(self, node: Node, why: str) -> None:
        """Take note of a node without a counterpart."""
        self.faults.setdefault((node.op, why), []).append(node.label)

    def _listed(self, count: int) -> str:
        """Return all nodes without a counterpart as one sentence."""
        if not self.faults:
            return f"its output {self.output} does not depend on the images."
        rows = [f"{op[:MOST_NAME]} {_some_of(labels)} ({why[:MOST_WHY]})" for (op, why), labels in self.faults.items()]
        rows = [*rows[:MOST_ROWS], *([f"and {len(rows) - MOST_ROWS} more kinds"] if len(rows) > MOST_ROWS else [])]
        number = min(count, sum(map(len, self.faults.values())))
        verb = "has" if number == 1 else "have"
        return f"{number} of its {count} nodes {verb} no counterpart: {'; '.join(rows)}."


def _some_of(labels: Sequence[str]) -> str:
    """Return names in a row, as far as anybody reads them."""
    shown = [label[:MOST_NAME] for label in labels[:MOST_LABELS]]
    return ", ".join([*shown, *([f"and {len(labels) - MOST_LABELS} more"] if len(labels) > MOST_LABELS else [])])


def _printable(message: str) -> str:
    """Return a message in one line, whatever names a file has put into it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def _chosen(source: Source, output: str | None) -> str:
    """Return the tensor to end at."""
    made = {name for node in source.nodes for name in node.outputs if name} | source.inputs.keys()
    if output is not None:
        if output not in made:
            raise XpcnnError(f"no node makes the output {output!r}; its own outputs are {', '.join(source.outputs)}.")
        return output
    if len(source.outputs) != 1:
        listed = ", ".join(source.outputs) or "none"
        raise XpcnnError(f"it has {len(source.outputs)} outputs ({listed}): choose the tensor to end at with output=.")
    return source.outputs[0]


def _needed(nodes: Sequence[Node], output: str) -> list[Node]:
    """Return the nodes that an output depends on."""
    wanted, found = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.outputs)):
            wanted.update(node.inputs)
            found.append(node)
    return found[::-1]
