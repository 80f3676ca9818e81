"""Layers as a directed acyclic graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Generic, NamedTuple, TypeVar

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.layers.arithmetic import Join
from xpcnn.layers.base import Arrays, Cost, Layer, Placed, Shape, checked_shape
from xpcnn.layers.container import Container, Named, named, naming, place, split, under
from xpcnn.layers.fold import Step, steps
from xpcnn.layers.fused import fuse
from xpcnn.random import Key

Node = tuple[str, Layer, tuple[str, ...]]  # name, layer, the names of what it is given
T = TypeVar("T")
INPUT = "input"


class Placement(NamedTuple, Generic[T]):
    """One thing to run: which values it is given, and which nobody needs afterwards.

    Value 0 is the graph's input; each step makes the next one, and the last step the output.
    """

    step: T
    sources: tuple[int, ...]
    done: tuple[int, ...]


@dataclass(frozen=True, init=False)
class Graph(Container):
    """Layers each of which is given what earlier ones made; a parameter's path is its node's name and its own.

    Neighbours that nobody else looks between are computed together where `Sequential` would do so.

    Parameters
    ----------
    nodes : sequence of (name, Layer, inputs)
        In an order in which they can run. Inputs are the name of an earlier node, or several names for a `Join`;
        ``"input"`` is the graph's own.
    output : str, optional
        The node whose value is the graph's: the last one, since every node must be of use.
    input_shape : tuple of int, optional
        One example's shape (C, H, W); the outermost container of a network states it.

    Raises
    ------
    XpcnnError
        Naming the node that takes what no earlier one makes, that occurs twice or that the output does not need.
    """

    nodes: tuple[Node, ...]
    output: str
    input_shape: Shape | None

    kind = "graph"

    def __init__(
        self, nodes: Sequence[Any], output: str | None = None, input_shape: Sequence[int] | None = None
    ) -> None:
        if not isinstance(nodes, Sequence) or isinstance(nodes, str) or not nodes:
            raise XpcnnError(f"Graph takes a sequence of at least one node (name, layer, inputs), got {nodes!r}.")
        checked = tuple(map(_checked, nodes))
        output = checked[-1][0] if output is None else output
        _check(checked, output)
        object.__setattr__(self, "nodes", checked)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "input_shape", None if input_shape is None else checked_shape(input_shape))

    def children(self, input_shape: Shape) -> list[Placed]:
        """Return each node's layer with its shapes, of which a Join's input is several, or raise naming a misfit."""
        shapes = {INPUT: input_shape}
        rows: list[Placed] = []
        for name, layer, inputs in self.nodes:
            rows.append(place(name, layer, _given(inputs, shapes)))
            shapes[name] = rows[-1].output_shape
        return rows

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the last node's output shape."""
        return self.children(input_shape)[-1].output_shape

    def cost(self, input_shape: Shape) -> Cost:
        """Return the nodes' costs together, and how far the output sees."""
        rows, entries = self.children(input_shape), self.entries(input_shape)
        costs = [row.layer.cost(row.input_shape) for row in rows]
        seen = entries[-1].then(costs[-1])
        products, columns = sum(cost.multiply_adds for cost in costs), max(cost.columns for cost in costs)
        return Cost(products, columns, seen.span, seen.step)

    def entries(self, input_shape: Shape) -> list[Cost]:
        """Return how far the inputs of each node see."""
        seen = {INPUT: Cost()}
        found = []
        for row, (name, layer, inputs) in zip(self.children(input_shape), self.nodes, strict=True):
            found.append(reduce(Cost.beside, (seen[one] for one in inputs)))
            after = found[-1].then(layer.cost(row.input_shape))
            seen[name] = Cost(span=after.span, step=after.step)
        return found

    def forward(
        self, params: Arrays, state: Arrays, x: Array, *, train: bool = False, key: Key | None = None
    ) -> tuple[Array, Any, Arrays]:
        """Run the nodes in order."""
        params_of, state_of = split(params), split(state)
        values: list[Any] = [x]
        del x
        saved = []
        new_state: Arrays = {}
        for (name, layer), sources, done in self._steps:
            own = None if key is None else key.child(name)
            given = _given(sources, values)
            with naming(name):
                y, kept, changed = layer.forward(
                    params_of.get(name, {}), state_of.get(name, {}), given, train=train, key=own
                )
            values.append(y)
            saved.append(kept)
            new_state |= under(name, changed)
            for number in done:
                values[number] = None
        return values[-1], saved, new_state

    def predict(self, params: Arrays, state: Arrays, x: Array) -> Array:
        """Run the nodes in order, keeping each value for as long as a later node needs it."""
        params_of, state_of = split(params), split(state)
        values: list[Any] = [x]
        del x
        for step, sources, done in self._prediction:
            values.append(step.run(params_of, state_of, _given(sources, values)))
            for number in done:
                values[number] = None
        return values[-1]

    def backward(self, params: Arrays, dy: Array, saved: Any, *, need_dx: bool = True) -> tuple[Array | None, Arrays]:
        """Run the nodes' backward in reverse, but where no parameters lie before; add up what reaches a value."""
        params_of = split(params)
        wanted = [need_dx]  # of each value: whether its gradient is
        for (name, _), sources, _ in self._steps:
            wanted.append(name in params_of or any(wanted[number] for number in sources))
        reached: list[Any] = [None] * len(self._steps) + [dy]  # of each value: its gradient so far
        del dy
        grads: Arrays = {}
        for number, ((name, layer), sources, _) in reversed(list(enumerate(self._steps))):
            dy, reached[number + 1] = reached[number + 1], None
            if not wanted[number + 1]:
                continue
            dx, found = layer.backward(
                params_of.get(name, {}), dy, saved[number], need_dx=any(wanted[source] for source in sources)
            )
            grads |= under(name, found)
            for source, part in zip(sources, (dx,) if len(sources) == 1 else dx or (), strict=False):
                if wanted[source]:
                    reached[source] = part if reached[source] is None else _sum(reached[source], part)
        if missing := [path for path in params if path not in grads]:
            raise XpcnnError(f"backward gave no gradient of {', '.join(missing)}.")
        return reached[0], {path: grads[path] for path in params}

    def laid(self, steps_of: Callable[[Named], Sequence[T]]) -> list[Placement[T]]:
        """Return the steps that ``steps_of`` makes of each chain of nodes, with what each is given."""
        made: list[tuple[T, tuple[int, ...]]] = []
        places = {INPUT: 0}  # of the values that several steps or another chain's look at
        for chain in self.chains:
            sources = tuple(places[name] for name in chain[0][2])
            for step in steps_of(tuple((name, layer) for name, layer, _ in chain)):
                made.append((step, sources))
                sources = (len(made),)
            places[chain[-1][0]] = len(made)
        last = {source: number for number, (_, sources) in enumerate(made) for source in sources}
        ends: dict[int, list[int]] = {}
        for source, number in last.items():
            ends.setdefault(number, []).append(source)
        return [Placement(step, sources, tuple(ends.get(n, ()))) for n, (step, sources) in enumerate(made)]

    @cached_property
    def chains(self) -> list[list[Node]]:
        """The nodes as chains, each as long as can be, between whose nodes nobody else looks; in order."""
        uses = Counter(name for _, _, inputs in self.nodes for name in inputs)
        chains: list[list[Node]] = []
        ending: dict[str, list[Node]] = {}  # chains by their last node
        for node in self.nodes:
            name, _, inputs = node
            alone = len(inputs) == 1 and uses[inputs[0]] == 1
            chain = ending.pop(inputs[0], None) if alone else None
            if chain is None:
                chains.append(chain := [])
            chain.append(node)
            ending[name] = chain
        return chains

    @cached_property
    def _steps(self) -> list[Placement[tuple[str, Layer]]]:
        """The layers as they run: some neighbours are computed together."""
        return self.laid(fuse)

    @cached_property
    def _prediction(self) -> list[Placement[Step]]:
        """The layers as prediction runs them: normalisations are folded, too."""
        return self.laid(steps)


def _given(names: Sequence[Any], values: Any) -> Any:
    """Return the one value named, or a tuple of several."""
    return values[names[0]] if len(names) == 1 else tuple(values[name] for name in names)


def _sum(a: Array, b: Array) -> Array:
    """Add two gradients of a value."""
    xp = array_namespace(a)
    return kernels.of(xp).add(a, b, xp)


def _checked(node: Any) -> Node:
    """Return a node with its inputs as a tuple, or raise saying what is wrong with it."""
    if not isinstance(node, tuple | list) or len(node) != 3:
        raise XpcnnError(f"a Graph's node must be (name, layer, inputs), got {node!r}.")
    ((name, layer),) = named([(node[0], node[1])], "Graph")
    inputs = (node[2],) if isinstance(node[2], str) else node[2]
    if not isinstance(inputs, tuple | list) or not inputs or not all(isinstance(one, str) for one in inputs):
        raise XpcnnError(f"the inputs of node {name} must be a name or several, got {node[2]!r}.")
    if name == INPUT:
        raise XpcnnError("a node cannot be called 'input', which is the graph's own.")
    if isinstance(layer, Join) != (len(inputs) > 1):
        takes = "several inputs" if isinstance(layer, Join) else "one input"
        raise XpcnnError(f"node {name} ({type(layer).__name__}) takes {takes}, got {', '.join(inputs)}.")
    return name, layer, tuple(inputs)


def _check(nodes: tuple[Node, ...], output: str) -> None:
    """Raise unless every node takes earlier ones, occurs once and is needed."""
    earlier = {INPUT}
    for name, _, inputs in nodes:
        if name in earlier:
            raise XpcnnError(f"a Graph's nodes must have different names, but {name} occurs more than once.")
        for one in inputs:
            if one not in earlier:
                raise XpcnnError(f"node {name} takes {one}, which is no earlier node (nor 'input').")
        earlier.add(name)
    if not isinstance(output, str) or output == INPUT or output not in earlier:
        raise XpcnnError(f"output must be the name of a node, not {output!r}.")
    needed = {output}
    for name, _, inputs in reversed(nodes):
        needed.update(inputs if name in needed else ())
    if unused := [name for name, _, _ in nodes if name not in needed]:
        raise XpcnnError(f"the output {output} does not need {', '.join(unused)}: leave out such nodes.")
