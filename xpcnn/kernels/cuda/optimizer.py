"""An optimizer's step for many parameters in one launch, generated from the rule for a single number.

Each block finds its tensor among the kernel's parameters, which hold the addresses, and takes CHUNK elements of it. The
rule's numbers are arguments, or a row of a table on the device: then the launch can be recorded and replayed while the
learning rate changes. It is one kernel in both cases, whose results are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from xpcnn.backend import Array
from xpcnn.kernels.cuda import runtime
from xpcnn.kernels.cuda.fuse import Order, Program, compiled, laid, loops, new, order_of, source
from xpcnn.kernels.cuda.trace import Tape, UntraceableError

Rule = Callable[..., tuple[Array, ...]]  # (numbers, p, g, *moments) -> (p, *moments)
Moments = Sequence[Sequence[Array]]  # for each moment one array per parameter
Results = tuple[list[Array], list[list[Array]]]

CHUNK = 1024  # elements to a block
PARAMETER_BYTES = 4096  # of a kernel, on any GPU
MOST_SQUARED = 160  # tensors in one launch that adds up squares, with three parameters each


class Job(NamedTuple):
    """One parameter: its arrays (p, g, *moments) as they lie in memory, and those of its results."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]  # as they are returned
    written: tuple[Array, ...]  # the same memory, in its own order

    @property
    def dtypes(self) -> tuple[Any, ...]:
        """What tells the kernels apart."""
        return tuple(array.dtype for array in (*self.inputs, *self.outputs))


def update_all(
    rule: Rule,
    numbers: tuple[float, ...] | Array,
    params: Sequence[Array],
    grads: Sequence[Array],
    moments: Moments,
    *,
    step: Array | None = None,
    into: tuple[Sequence[Array], Moments] | None = None,
) -> Results:
    """Return the parameters and moments after a step: ``rule(numbers, p, g, *moments) -> (p, *moments)`` of each.

    Parameters
    ----------
    rule : callable
        Elementwise, and pure.
    numbers : tuple of float or array (steps, count) of float64
        The rule's numbers or, with ``step``, a table of them on the device.
    params, grads, moments : sequences of arrays
        Of one order; for each moment one sequence.
    step : array (1,) of int64, optional
        The row of the table to use, read on the device.
    into : (params, moments), optional
        Arrays to write to, which may be those read; without it the results are new arrays.

    Raises
    ------
    UntraceableError
        When no kernel can be made of the rule, or the arrays are of types or places in memory that it does not take;
        nothing has run then.
    """
    wanted = [*zip(into[0], *into[1], strict=True)] if into else [None] * len(params)
    given = zip(zip(params, grads, *moments, strict=True), wanted, strict=True)
    jobs = [_job(arrays, results) for arrays, results in given]
    count = len(numbers) if step is None else numbers.shape[1]  # type: ignore[union-attr]
    alike: dict[Any, list[Job]] = {}
    for job in jobs:
        alike.setdefault(job.dtypes, []).append(job)
    programs = [_program(rule, count, dtypes) for dtypes in alike]  # all, before anything runs
    for (program, constants), group in zip(programs, alike.values(), strict=True):
        most = _most_tensors(program)
        for start in range(0, len(group), most):
            _launch(program, constants, group[start : start + most], numbers, step)
    results = [job.outputs for job in jobs]
    return [one[0] for one in results], [[one[1 + i] for one in results] for i in range(len(moments))]


def update(
    rule: Rule, numbers: tuple[float, ...], params: Sequence[Array], grads: Sequence[Array], moments: Moments
) -> Results | None:
    """Return what `update_all` does, or None where no kernel can be made."""
    try:
        return update_all(rule, numbers, params, grads, moments)
    except UntraceableError:
        return None


def clipped(grads: Sequence[Array], most: float) -> list[Array] | None:
    """Return gradients times ``min(1, most / norm)``, of the norm of all of them, or None where no kernel can be made.

    Three launches or a few more, and the host reads nothing: it can be recorded. A norm that is not finite scales by 1.
    """
    if any(str(g.dtype) not in runtime.NAMES for g in grads):
        return None
    alike: dict[str, list[Array]] = {}
    for g in grads:
        alike.setdefault(runtime.NAMES[str(g.dtype)], []).append(laid(g, order_of(g)))
    launches = [
        (kind, group[start : start + MOST_SQUARED])
        for kind, group in alike.items()
        for start in range(0, len(group), MOST_SQUARED)
    ]
    ends = [list(accumulate(-(-g.size // CHUNK) for g in group)) for _, group in launches]
    parts = runtime.empty((sum(own[-1] for own in ends),), "float64")
    first = 0
    for (kind, group), own in zip(launches, ends, strict=True):
        tensors = (one for g, end in zip(group, own, strict=True) for one in (g, g.size, end))
        runtime.launch(_squares(kind, len(group)), "squares", own[-1], *tensors, parts, first)
        first += own[-1]
    scale, row = runtime.empty((1, 1), "float64"), runtime.empty((1,), "int64")
    runtime.launch(runtime.text("clip.cu"), "factor", 1, parts, parts.size, float(most), scale, row)
    try:
        return update_all(_scaled, scale, grads, grads, [], step=row)[0]
    except UntraceableError:
        return None


def _job(arrays: tuple[Array, ...], wanted: tuple[Array, ...] | None) -> Job:
    """Return what a parameter's update reads and writes, or raise where that does not lie as it should."""
    p, _, *moments = arrays
    if any(array.shape != p.shape for array in arrays):
        raise UntraceableError("arrays of one parameter differ in shape")
    order = order_of(p)
    inputs = tuple(laid(array, order) for array in arrays)
    if wanted is None:
        outputs = tuple(new(p.shape, array.dtype, order) for array in (p, *moments))
    else:
        outputs = wanted
        if any(a.shape != p.shape or a.dtype != b.dtype for a, b in zip(outputs, (p, *moments), strict=True)):
            raise UntraceableError("results of another shape or dtype")
    return Job(inputs, outputs, tuple(_in_order(array, order) for array in outputs))


def _in_order(array: Array, order: Order | None) -> Array:
    """Return a view of the memory that results go to, or raise where it has gaps or another order."""
    seen = array if order is None else array.transpose(order)
    if not seen.flags.c_contiguous:
        raise UntraceableError("results that lie in memory otherwise than the parameters")
    return seen


def _most_tensors(program: Program) -> int:
    """Return how many tensors' addresses, sizes and last blocks fit a kernel's parameters."""
    others = 3 + len(program.numbers)
    return (PARAMETER_BYTES // 8 - others) // (len(program.inputs) + len(program.outputs) + 2)


def _launch(
    program: Program, constants: Sequence[float], jobs: Sequence[Job], numbers: Any, step: Array | None
) -> None:
    """Update some parameters."""
    sizes = [job.inputs[0].size for job in jobs]
    ends = list(accumulate(-(-size // CHUNK) for size in sizes))
    tensors = [
        [*(job.inputs[place] for place, *_ in program.inputs), *job.written, size, end]
        for job, size, end in zip(jobs, sizes, ends, strict=True)
    ]
    table = (None, None, 0) if step is None else (numbers, step, numbers.shape[1])
    values = [
        constants[leaf.place] if leaf.of == "c" else float(numbers[leaf.place]) if step is None else 0.0
        for leaf in program.numbers
    ]
    text = _kernel(program, len(jobs))
    runtime.launch(text, "update", ends[-1], *(one for row in tensors for one in row), *table, *values)


@lru_cache(256)
def _program(rule: Rule, count: int, dtypes: tuple[Any, ...]) -> tuple[Program, tuple[float, ...]]:
    """Return the program of a rule for arrays (p, g, *moments) and results (p, *moments), and the numbers it met."""
    arrays = dtypes[: len(dtypes) // 2 + 1]  # a result for each, but the gradient
    tape = Tape(arrays, [False] * len(arrays), None, count)
    try:
        program, found = compiled(tape, rule(tape.numbers, *tape.arrays))
    except Exception as error:  # whatever the rule does that symbols do not
        raise UntraceableError(str(error) or repr(error)) from error
    if found != dtypes[len(arrays) :]:
        raise UntraceableError("results of other dtypes than what they replace")
    return program, tuple(tape.constants)


@lru_cache(256)
def _kernel(program: Program, tensors: int) -> str:
    """Return the source of a kernel for so many tensors."""
    pointers = [
        *((f"const {kind}*", f"a{place}") for place, kind, _ in program.inputs),
        *((f"{kind}*", f"y{i}") for i, kind in enumerate(program.outputs)),
    ]
    parameters = [
        f"{kind} {name}_{t}" for t in range(tensors) for kind, name in (*pointers, ("count", "size"), ("count", "end"))
    ]
    parameters += ["const double* table", "const count* row", "count columns"]
    parameters += [f"double {'c' if leaf.of == 'c' else 'given'}{leaf.place}" for leaf in program.numbers]
    chosen = [
        f"const double n{leaf.place} = table ? table[*row * columns + {leaf.place}] : given{leaf.place};"
        for leaf in program.numbers
        if leaf.of == "n"
    ]
    names = [name for _, name in pointers]
    kernel = f"""\
extern "C" __global__ void update({", ".join(parameters)})
{{
    {"".join(f"{kind} {name}; " for kind, name in pointers)}
    count total, skipped;
    const count block = blockIdx.x;
{_choice(names, 0, tensors, "    ")}
    {" ".join(f"{name} += skipped;" for name in names)}
    total = total - skipped < {CHUNK} ? total - skipped : {CHUNK};
    const count first = threadIdx.x, step = blockDim.x;
    {" ".join(chosen)}
{loops(program)}}}
"""
    return source(program, kernel)


@lru_cache(64)
def _squares(kind: str, tensors: int) -> str:
    """Return the source of a kernel that adds up the squares of so many tensors, block by block."""
    parameters = [f"const {kind}* a_{t}, count size_{t}, count end_{t}" for t in range(tensors)]
    kernel = f"""\
extern "C" __global__ void squares({", ".join(parameters)}, double* parts, count offset)
{{
    const {kind}* a;
    count total, skipped;
    const count block = blockIdx.x;
{_choice(["a"], 0, tensors, "    ")}
    total = total - skipped < {CHUNK} ? total - skipped : {CHUNK};
    const double sum = block_squares(a + skipped, total);
    if (!threadIdx.x) parts[offset + block] = sum;
}}
"""
    return runtime.text("clip.cu") + kernel


def _scaled(numbers: tuple[float, ...], p: Array, g: Array) -> tuple[Array, ...]:
    """Scale a gradient, given twice: a rule."""
    return (numbers[0] * g,)


def _choice(names: Sequence[str], low: int, high: int, indent: str) -> str:
    """Return C++ that finds a block's tensor among those from ``low`` to below ``high``, by halves."""
    if high - low == 1:
        own = " ".join(f"{name} = {name}_{low};" for name in names)
        before = f"(block - end_{low - 1})" if low else "block"
        return f"{indent}{own} total = size_{low}; skipped = {before} * {CHUNK};"
    middle = (low + high) // 2
    below, above = (_choice(names, a, b, indent + "  ") for a, b in ((low, middle), (middle, high)))
    return f"{indent}if (block < end_{middle - 1}) {{\n{below}\n{indent}}} else {{\n{above}\n{indent}}}"
