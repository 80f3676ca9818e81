"""Elementwise rules as single kernels of CUDA C++, generated from what the rule does to symbols.

Every thread reads a pack of 16 bytes of each array, computes it in registers and writes packs; what is left over, or
lies across packs, goes one by one. Arrays whose memory is in one order, whichever, are read in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Array, Namespace
from xpcnn.kernels import reference
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.cuda.trace import BOOL, NUMBER, Leaf, Symbol, Tape, UntraceableError

Arrays = tuple[Array, ...]
Order = tuple[int, ...]
TYPES = {**runtime.NAMES, "bool": "bool"}
PACK = 16  # bytes of the widest numbers that a thread reads at once


class Program(NamedTuple):
    """What a rule computes: lines of C++, what they take, and the dtypes of the results.

    Two calls of a rule with other numbers are equal programs.
    """

    once: tuple[str, ...]  # lines for all elements together
    each: tuple[str, ...]  # lines for one element
    inputs: tuple[tuple[int, str, bool], ...]  # an array's place, its C++ type, whether it has the shape ()
    numbers: tuple[Leaf, ...]
    outputs: tuple[str, ...]  # C++ types
    wide: bool

    @property
    def lanes(self) -> int:
        """How many elements a thread reads at once."""
        sizes = {"double": 8, "float": 4, "bf16": 2}
        types = {kind for _, kind, single in self.inputs if not single} | set(self.outputs)
        return PACK // max((sizes[kind] for kind in types if kind in sizes), default=4)


def elementwise(rule: Callable[..., Arrays], arrays: Sequence[Array], xp: Namespace) -> Arrays:
    """Return ``rule(xp, *arrays)``, where each result's element depends on the same element of the arrays alone.

    One kernel; a rule, or arrays, that none can be made of run as they are.
    """
    try:
        single, shape = _shapes(arrays)
        tape = Tape([array.dtype for array in arrays], single, shape)
        program, dtypes = compiled(tape, rule(tape.functions, *tape.arrays))
    except Exception:  # noqa: BLE001  whatever is wrong with symbols; what is wrong with arrays shows when it runs on them
        return rule(xp, *arrays)
    return _run(program, dtypes, tape.constants, arrays, shape)


def relu(x: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return max(x, 0), and where that is above 0."""
    y, active = _known(_relu, [x], xp) or reference.relu(x, xp)
    return y, active


def clip(x: Array, low: float, high: float, xp: Namespace, factor: float = 1.0, shift: float = 0.0) -> Array:
    """Return ``factor·x + shift`` held within bounds, either of which may be infinite."""
    return elementwise(lambda xp, x: (reference.clip(x, low, high, xp, factor, shift),), [x], xp)[0]


def hard_swish(x: Array, xp: Namespace) -> Array:
    """Return ``x · min(max(x + 3, 0), 6) / 6``."""
    return elementwise(lambda xp, x: (reference.hard_swish(x, xp),), [x], xp)[0]


def keep(x: Array, mask: Array, xp: Namespace, scale: float | None = None) -> Array:
    """Return x where the mask is true, times the scale if given, and 0 elsewhere."""
    if scale is not None:
        return elementwise(lambda xp, x, mask: (_keep(xp, x, mask)[0] * scale,), [x, mask], xp)[0]
    found = _known(_keep, [x, mask], xp)
    return reference.keep(x, mask, xp) if found is None else found[0]


def add(a: Array, b: Array, xp: Namespace) -> Array:
    """Return a + b, of one shape or of shapes that broadcast."""
    a, b = _stretched(a, b, xp)
    found = _known(_add, [a, b], xp)
    return a + b if found is None else found[0]


def multiply(a: Array, b: Array, xp: Namespace) -> Array:
    """Return a · b, of one shape or of shapes that broadcast."""
    a, b = _stretched(a, b, xp)
    found = _known(_multiply, [a, b], xp)
    return a * b if found is None else found[0]


def compiled(tape: Tape, results: Sequence[Any]) -> tuple[Program, tuple[Any, ...]]:
    """Return the program of a rule's results, and their dtypes."""
    all_single = all(symbol.single for symbol in tape.arrays)
    for symbol in results:
        if type(symbol) is not Symbol or symbol.kind == NUMBER or (symbol.single and not all_single):
            raise UntraceableError("a result that is no array of the arrays' shape")
    needed = {symbol.place for symbol in results}
    for place in range(len(tape.nodes) - 1, -1, -1):
        if place in needed:
            needed.update(tape.nodes[place].operands)
    once: list[str] = []
    each: list[str] = []
    for place in sorted(needed):
        (once if tape.nodes[place].uniform else each).append(_line(tape, place))
    each += [f"store(y{i}, v{symbol.place});" for i, symbol in enumerate(results)]
    leaves = [tape.leaves[place] for place in sorted(needed) if place in tape.leaves]
    inputs = [(leaf.place, tape.arrays[leaf.place]) for leaf in leaves if leaf.of == "a"]
    return Program(
        tuple(once),
        tuple(each),
        tuple((place, TYPES[symbol.dtype.name], symbol.single) for place, symbol in sorted(inputs, key=lambda i: i[0])),
        tuple(sorted(leaf for leaf in leaves if leaf.of != "a")),
        tuple(TYPES[symbol.dtype.name] for symbol in results),
        tape.wide,
    ), tuple(symbol.dtype for symbol in results)


def source(program: Program, kernel: str) -> str:
    """Return a kernel's text after all that it refers to."""
    types = {"NUMBER": "double" if program.wide else "float", "LANES": str(program.lanes)}
    return runtime.text("fuse.cuh", **types) + kernel


def loops(program: Program) -> str:
    """Return C++ that applies a program to elements ``first``, ``first + step``, ... below ``total``."""
    full = [(place, kind) for place, kind, single in program.inputs if not single]
    outputs = list(enumerate(program.outputs))
    taken = [*(f"{kind} a{place}" for place, kind in full), *(f"{kind}* y{i}" for i, kind in outputs)]
    packs = [*(f"in{place}.at[lane]" for place, _ in full), *(f"&out{i}.at[lane]" for i, _ in outputs)]
    ones = [*(f"a{place}[at]" for place, _ in full), *(f"y{i} + at" for i, _ in outputs)]
    read = [f"const Pack<{kind}> in{place} = ((const Pack<{kind}>*)a{place})[at];" for place, kind in full]
    made = [f"Pack<{kind}> out{i};" for i, kind in outputs]
    written = [f"((Pack<{kind}>*)y{i})[at] = out{i};" for i, kind in outputs]
    even = [f"aligned({name})" for name in (*(f"a{place}" for place, _ in full), *(f"y{i}" for i, _ in outputs))]
    return f"""\
    {_lines(program.once, 4)}
    const auto rule = [&]({", ".join(taken)}) {{
        {_lines(program.each, 8)}
    }};
    const count packs = {" && ".join(even)} ? total / LANES : 0;
    for (count at = first; at < packs; at += step) {{
        {_lines([*read, *made], 8)}
        for (int lane = 0; lane < LANES; lane++) rule({", ".join(packs)});
        {_lines(written, 8)}
    }}
    for (count at = packs * LANES + first; at < total; at += step) rule({", ".join(ones)});
"""


def order_of(x: Array) -> Order | None:
    """Return the axes in the order of x's memory, outermost first, where it has no gaps; None if that is C's order."""
    if x.flags.c_contiguous or x.ndim < 2:
        return None
    order = tuple(sorted(range(x.ndim), key=lambda axis: (-x.strides[axis], axis)))
    return order if x.transpose(order).flags.c_contiguous else None


def laid(x: Array, order: Order | None) -> Array:
    """Return x as memory in an order of axes: a view, or a copy where it lies otherwise."""
    return runtime.contiguous(x if order is None else x.transpose(order))


def new(shape: tuple[int, ...], dtype: Any, order: Order | None) -> Array:
    """Return a new array whose memory has an order of axes."""
    if order is None:
        return runtime.empty(shape, dtype)
    memory = runtime.empty(tuple(shape[axis] for axis in order), dtype)
    return memory.transpose(tuple(np.argsort(order).tolist()))


@lru_cache(1024)
def _kernel(program: Program) -> str:
    """Return the source of a kernel for arrays of any length."""
    parameters = [
        *(f"const {kind}* a{place}" for place, kind, _ in program.inputs),
        *(f"{kind}* y{i}" for i, kind in enumerate(program.outputs)),
        "count total",
        *(f"double {leaf.of}{leaf.place}" for leaf in program.numbers),
    ]
    kernel = f"""\
extern "C" __global__ void fused({", ".join(parameters)})
{{
    const count first = first_of_thread(), step = all_threads();
{loops(program)}}}
"""
    return source(program, kernel)


def _run(
    program: Program, dtypes: Sequence[Any], constants: Sequence[float], arrays: Sequence[Array], shape: tuple[int, ...]
) -> Arrays:
    """Launch a program on arrays of one shape, or of ()."""
    order = next((order_of(array) for array in arrays if array.shape == shape), None)
    results = tuple(new(shape, dtype, order) for dtype in dtypes)
    size = results[0].size
    given = [arrays[place] if single else laid(arrays[place], order) for place, _, single in program.inputs]
    numbers = [constants[leaf.place] for leaf in program.numbers]
    blocks = runtime.blocks_for(-(-size // program.lanes))
    runtime.launch(_kernel(program), "fused", blocks, *given, *results, size, *numbers)
    return results


def _shapes(arrays: Sequence[Array]) -> tuple[list[bool], tuple[int, ...]]:
    """Return which arrays have the shape () among others, and the others' shape, or raise unless it is one."""
    shapes = {tuple(array.shape) for array in arrays}
    full = (shapes - {()}) or {()}
    if len(full) > 1:
        raise UntraceableError("arrays of several shapes")
    (shape,) = full
    return [not array.shape and bool(shape) for array in arrays], shape


def _known(rule: Callable[..., Any], arrays: Sequence[Array], xp: Namespace) -> Arrays | None:
    """Run a rule of this module's on arrays of one shape, or return None where they have several or are no numbers."""
    shape = arrays[0].shape
    program = _traced(rule, tuple(array.dtype for array in arrays))
    if program is None or any(array.shape != shape for array in arrays):
        return None
    return _run(*program, arrays, tuple(shape))


@lru_cache(256)
def _traced(
    rule: Callable[..., Any], dtypes: tuple[Any, ...]
) -> tuple[Program, tuple[Any, ...], tuple[float, ...]] | None:
    """Return the program of a rule that depends on nothing but its arrays, their dtypes, and its constants."""
    try:
        tape = Tape(dtypes, [False] * len(dtypes), None)
        return *compiled(tape, rule(tape.functions, *tape.arrays)), tuple(tape.constants)
    except UntraceableError:
        return None


def _relu(xp: Namespace, x: Any) -> tuple[Any, Any]:
    y = xp.maximum(x, 0.0)
    return y, y > 0.0


def _keep(xp: Namespace, x: Any, mask: Any) -> tuple[Any]:
    return (xp.where(mask, x, xp.zeros((), dtype=x.dtype)),)


def _add(xp: Namespace, a: Any, b: Any) -> tuple[Any]:
    return (a + b,)


def _multiply(xp: Namespace, a: Any, b: Any) -> tuple[Any]:
    return (a * b,)


def _stretched(a: Array, b: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return two arrays as views of one shape."""
    if a.shape == b.shape:
        return a, b
    shape = np.broadcast_shapes(a.shape, b.shape)
    return xp.broadcast_to(a, shape), xp.broadcast_to(b, shape)


def _line(tape: Tape, place: int) -> str:
    """Return the line that computes a symbol's value."""
    node = tape.nodes[place]
    wide = tape.wide or node.kind == NUMBER
    kind = {BOOL: "bool", NUMBER: "double"}.get(node.kind, "NUMBER")
    return f"const {kind} v{place} = {node.code.format(*(f'v{one}' for one in node.operands), f='' if wide else 'f')};"


def _lines(lines: Sequence[str], indent: int) -> str:
    return ("\n" + " " * indent).join(lines)
