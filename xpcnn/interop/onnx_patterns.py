"""Several nodes that stand for one: activations written out, biases added afterwards, padding of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import isclose, pi, sqrt
from typing import NamedTuple

import numpy as np

from xpcnn.interop.onnx_file import Node
from xpcnn.interop.onnx_wire import Host

CLOSE = 1e-5  # relative: how exactly a written-out 1/6 or √2 is stored
DEEPEST = 12  # nodes that a product or a line is followed through

Group = Sequence[Node]


class Line(NamedTuple):
    """A tensor as ``scale·x + shift``, with the nodes that compute it."""

    x: str
    scale: float
    shift: float
    nodes: Group


class Product(NamedTuple):
    """A tensor as a number times other tensors, with the nodes that compute it."""

    scale: float
    tensors: Sequence[str]
    nodes: Group


class Patterns:
    """A graph's nodes, of which groups are replaced by single ones."""

    def __init__(self, nodes: Sequence[Node], constants: dict[str, Host], output: str) -> None:
        self.constants = constants
        self.makers = {name: node for node in nodes for name in node.outputs if name}
        self.order = {node.outputs: number for number, node in enumerate(nodes)}
        self.left = {node.outputs: node for node in nodes}
        self.uses = Counter(name for node in nodes for name in node.inputs)
        self.uses[output] += 1

    def simplified(self) -> list[Node]:
        """Return the nodes after all replacements, in order."""
        for key in self.order:
            while found := self._match(self.left[key]):
                self._replace(*found)
        return list(self.left.values())

    def _match(self, node: Node) -> tuple[Node, Group] | None:
        """Return what replaces a node and those before it, and which they are."""
        matchers = {
            "Mul": (self._product,), "Div": (self._product,), "Add": (self._bias,), "Conv": (self._padded,),
            "Transpose": (self._layer_norm,),
        }  # fmt: skip
        known = matchers.get(node.op, ()) if len(node.outputs) == 1 else ()
        return next(filter(None, (matcher(node) for matcher in known)), None)

    def _replace(self, node: Node, group: Group) -> None:
        """Put a node in a group's place; without a name of its own it is called as the first of them."""
        first = min(group, key=lambda gone: self.order[gone.outputs])
        for gone in group:
            self.uses.subtract(gone.inputs)
            if gone.outputs != node.outputs:
                del self.left[gone.outputs]
        self.uses.update(node.inputs)
        self.left[node.outputs] = self.makers[node.outputs[0]] = node._replace(name=node.name or first.name)

    def only(self, name: str, op: str) -> Node | None:
        """Return a tensor's node if it is of a kind and nothing else takes the tensor."""
        node = self.makers.get(name)
        fits = node is not None and node.op == op and self.uses[name] == 1 and len(node.outputs) == 1
        return node if fits else None

    def scalar(self, name: str) -> float | None:
        """Return a constant that is a single number."""
        array = self.constants.get(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim < 2 else None

    def _product(self, node: Node) -> tuple[Node, Group] | None:
        """Find SiLU, hard swish, hard sigmoid and GELU, however their factors are ordered."""
        scale, tensors, nodes = self.product(node.outputs[0])
        found = None
        if len(tensors) == 1:
            found = self._hard_sigmoid(tensors[0], scale)
        if len(tensors) == 2:
            pairs = (tensors, tensors[::-1])
            matchers = self._silu, self._hard_swish, self._gelu
            found = next(filter(None, (match(x, gate, scale) for x, gate in pairs for match in matchers)), None)
        if found is None:
            return None
        made, more = found
        return made._replace(outputs=node.outputs), [*nodes, *more]

    def _hard_sigmoid(self, gate: str, scale: float) -> tuple[Node, Group] | None:
        """``clip(x + 3, 0, 6) / 6``."""
        clipped = self._clipped(gate)
        if clipped is None or not _near(scale, 1 / 6):
            return None
        return Node("", "HardSigmoid", (clipped.x,), (), {"alpha": 1 / 6, "beta": 0.5}), clipped.nodes

    def _silu(self, x: str, gate: str, scale: float) -> tuple[Node, Group] | None:
        """``x · σ(x)``."""
        sigmoid = self.only(gate, "Sigmoid")
        if sigmoid is None:
            return None
        inner = self.line(sigmoid.inputs[0], (x,))
        if (inner.x, inner.scale, inner.shift, scale) != (x, 1.0, 0.0, 1.0):
            return None
        return Node("", "Swish", (x,), (), {}), [sigmoid, *inner.nodes]

    def _hard_swish(self, x: str, gate: str, scale: float) -> tuple[Node, Group] | None:
        """``x · clip(x + 3, 0, 6) / 6``, or x times its hard sigmoid."""
        made = Node("", "HardSwish", (x,), (), {})
        clipped = self._clipped(gate)
        if clipped is not None and clipped.x == x and _near(scale, 1 / 6):
            return made, clipped.nodes
        sigmoid = self.only(gate, "HardSigmoid")
        if sigmoid is None or sigmoid.inputs != (x,) or scale != 1.0:
            return None
        usual = _near(sigmoid.attributes.get("alpha", 0.2), 1 / 6) and sigmoid.attributes.get("beta", 0.5) == 0.5
        return (made, [sigmoid]) if usual else None

    def _clipped(self, name: str) -> Line | None:
        """Return ``x + 3`` if a tensor is that, clipped to 0 and 6."""
        clip = self.only(name, "Clip")
        if clip is None or self.bounds(clip) != (0.0, 6.0):
            return None
        inner = self.line(clip.inputs[0])
        return inner._replace(nodes=[clip, *inner.nodes]) if (inner.scale, inner.shift) == (1.0, 3.0) else None

    def _gelu(self, x: str, gate: str, scale: float) -> tuple[Node, Group] | None:
        """``x/2 · (1 + erf(x/√2))``, or with ``tanh(√(2/π)·(x + 0.044715·x³))``."""
        outer = self.line(gate)
        if not outer.nodes or not (_near(scale * outer.scale, 0.5) and _near(scale * outer.shift, 0.5)):
            return None
        if erf := self.only(outer.x, "Erf"):
            inner = self.line(erf.inputs[0], (x,))
            fits = inner.x == x and _near(inner.scale, sqrt(0.5)) and inner.shift == 0
            return (Node("", "Gelu", (x,), (), {}), [*outer.nodes, erf, *inner.nodes]) if fits else None
        if tanh := self.only(outer.x, "Tanh"):
            inner = self.line(tanh.inputs[0])
            cubic = self._cubic(x, inner.x) if _near(inner.scale, sqrt(2 / pi)) and inner.shift == 0 else None
            made = Node("", "Gelu", (x,), (), {"approximate": "tanh"})
            return (made, [*outer.nodes, tanh, *inner.nodes, *cubic]) if cubic else None
        return None

    def _cubic(self, x: str, name: str) -> Group | None:
        """Return the nodes of ``x + 0.044715·x³``."""
        add = self.only(name, "Add")
        if add is None or x not in add.inputs:
            return None
        other = add.inputs[1 - add.inputs.index(x)]
        scale, tensors, nodes = self.product(other)
        return [add, *nodes] if tensors == [x] * 3 and _near(scale, 0.044715) and self.uses[other] == 1 else None

    def _bias(self, node: Node) -> tuple[Node, Group] | None:
        """Find a constant per channel that is added to a convolution or product without a bias."""
        for name, other in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():
            linear = self.only(name, "Conv") or self.only(name, "ConvTranspose") or self.only(name, "MatMul")
            constant = self.constants.get(other)
            if linear is None or constant is None or len(linear.inputs) != 2:
                continue
            channels = self._channels(linear)
            axes = self.constants[linear.inputs[1]].ndim - 2 if channels else 0
            wanted = (channels, *(1,) * axes)
            if channels and constant.shape in (wanted, (1, *wanted)):
                self.constants[f"{other} of {node.outputs[0]}"] = constant.reshape(-1)
                inputs = (*linear.inputs, f"{other} of {node.outputs[0]}")
                return linear._replace(inputs=inputs, outputs=node.outputs), [node, linear]
        return None

    def _channels(self, linear: Node) -> int:
        """Return how many channels a convolution or product by a constant makes, 0 if it is none."""
        weight = self.constants.get(linear.inputs[1])
        if weight is None or weight.ndim < 2:
            return 0
        if linear.op == "Conv":
            return weight.shape[0]
        if linear.op == "ConvTranspose":
            groups = linear.attributes.get("group", 1)
            return weight.shape[1] * groups if isinstance(groups, int) else 0
        return weight.shape[1] if weight.ndim == 2 else 0

    def _padded(self, node: Node) -> tuple[Node, Group] | None:
        """Find a convolution of an image that was padded with zeros before."""
        pad = self.only(node.inputs[0], "Pad") if node.inputs else None
        if pad is None or node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
            return None
        pads, before = self._zeros(pad), node.attributes.get("pads")
        if pads is None or len(pads) % 2 or min(pads, default=0) < 0:
            return None
        half = len(pads) // 2
        own = [*pads[2:half], *pads[half + 2 :]]
        before = [0] * len(own) if before is None else before
        if half < 3 or any(pads[:2] + pads[half : half + 2]) or not isinstance(before, list) or len(before) != len(own):
            return None
        pads = [a + b for a, b in zip(own, before, strict=True)]
        made = node._replace(inputs=(pad.inputs[0], *node.inputs[1:]), attributes={**node.attributes, "pads": pads})
        return made, [node, pad]

    def _zeros(self, pad: Node) -> list[int] | None:
        """Return how many zeros a Pad puts where, if that is known and all it does."""
        pads, value = pad.attributes.get("pads"), pad.attributes.get("value", 0.0)
        if len(pad.inputs) > 1:
            constant = self.constants.get(pad.inputs[1])
            pads = None if constant is None else [int(n) for n in constant.reshape(-1)[: 1 << 6]]
        if len(pad.inputs) > 2 and pad.inputs[2]:
            value = self.scalar(pad.inputs[2])
        plain = pad.attributes.get("mode", "constant") == "constant" and len(pad.inputs) < 4
        return pads if plain and value == 0 and isinstance(pads, list) else None

    def _layer_norm(self, node: Node) -> tuple[Node, Group] | None:
        """Find a layer normalisation between a transposition and its inverse: one over other axes than the last."""
        norm = self.only(node.inputs[0], "LayerNormalization") if node.inputs else None
        before = self.only(norm.inputs[0], "Transpose") if norm else None
        perm, back = (t.attributes.get("perm") if t else None for t in (before, node))
        if norm is None or before is None or not isinstance(perm, list) or not isinstance(back, list):
            return None
        count = -norm.attributes.get("axis", -1) if isinstance(norm.attributes.get("axis", -1), int) else 0
        inverse = sorted(perm) == list(range(len(perm))) and [perm[n] for n in back if 0 <= n < len(perm)] == sorted(
            perm
        )
        if not inverse or not 0 < count < len(perm) or perm[0] != 0:
            return None
        attributes = {**norm.attributes, "axes": perm[-count:]}
        made = norm._replace(inputs=(before.inputs[0], *norm.inputs[1:]), outputs=node.outputs, attributes=attributes)
        return made, [node, norm, before]

    def bounds(self, clip: Node) -> tuple[float | None, float | None]:
        """Return what a Clip clips to, None for no bound or one that is not known."""
        if len(clip.inputs) > 1:
            low, high = (self.scalar(name) for name in (*clip.inputs[1:3], "", "")[:2])
            return low, high
        low, high = (clip.attributes.get(name) for name in ("min", "max"))
        return low, high

    def line(self, name: str, stop: Sequence[str] = ()) -> Line:
        """Return a tensor as a line of another, followed through nodes that nothing else needs."""
        scale, shift = 1.0, 0.0
        nodes: list[Node] = []
        for node in self._chain(name, stop):
            own = self.step(node)
            if own is None:
                break
            name, factor, offset = own
            shift += scale * offset
            scale *= factor
            nodes.append(node)
            if name in stop:
                break
        return Line(name, scale, shift, nodes)

    def following(self, name: str) -> Iterator[tuple[Node, float, float]]:
        """Yield what multiplies by or adds a single number next, as long as nothing else takes the tensor."""
        takers: dict[str, list[Node]] = {}
        for node in self.left.values():
            for taken in node.inputs:
                takers.setdefault(taken, []).append(node)
        while self.uses[name] == 1 and len(takers.get(name, ())) == 1 and len(takers[name][0].inputs) == 2:
            step = self.step(takers[name][0])
            if step is None:
                return
            yield takers[name][0], step[1], step[2]
            name = takers[name][0].outputs[0]

    def _chain(self, name: str, stop: Sequence[str]) -> Iterator[Node]:
        """Yield a tensor's node, that of its first input which is no constant, and so on."""
        for _ in range(DEEPEST):
            node = self.makers.get(name)
            if node is None or name in stop or self.uses[name] != 1 or len(node.inputs) != 2:
                return
            yield node
            name = node.inputs[1 if node.inputs[0] in self.constants else 0]

    def step(self, node: Node) -> tuple[str, float, float] | None:
        """Return ``(x, scale, shift)`` of a node that adds or multiplies a single number."""
        first, second = (self.scalar(name) for name in node.inputs)
        if second is not None:
            x, c = node.inputs[0], second
            return {
                "Add": (x, 1.0, c), "Sub": (x, 1.0, -c), "Mul": (x, c, 0.0), "Div": (x, 1 / c if c else 0.0, 0.0),
            }.get(node.op)  # fmt: skip
        if first is not None:
            x, c = node.inputs[1], first
            return {"Add": (x, 1.0, c), "Sub": (x, -1.0, c), "Mul": (x, c, 0.0)}.get(node.op)
        return None

    def product(self, name: str) -> Product:
        """Return a tensor as a product, its factors taken apart where nothing else needs them."""
        scale = 1.0
        tensors: list[str] = []
        nodes: list[Node] = []
        left = [name]
        while left:
            current = left.pop(0)
            node = self.makers.get(current)
            inner = node is not None and (current == name or self.uses[current] == 1) and len(nodes) < DEEPEST
            own = self.step(node) if node and inner and node.op in ("Mul", "Div") and len(node.inputs) == 2 else None
            if node and own:
                left.append(own[0])
                scale *= own[1]
                nodes.append(node)
            elif node and inner and (factors := self._factors(node)):
                left += factors
                nodes.append(node)
            else:
                tensors.append(current)
        return Product(scale, tensors, nodes)

    def _factors(self, node: Node) -> Sequence[str]:
        """Return the tensors that a node multiplies."""
        if node.op == "Mul" and len(node.inputs) == 2:
            return node.inputs
        if node.op == "Pow" and len(node.inputs) == 2 and (power := self.scalar(node.inputs[1])) in (2.0, 3.0):
            return [node.inputs[0]] * int(power or 0)
        return ()


def _near(number: float, exact: float) -> bool:
    """Whether a stored number means an exact one."""
    return isinstance(number, float) and bool(np.isfinite(number)) and isclose(number, exact, rel_tol=CLOSE)
