"""An explanation in words: the sizes, the closed form with its numbers, and a formula for every output element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xpcnn.report.explain import Explanation, Ints, Meeting

PAD = "pad"  # what stands for an element outside the input
AXES = {1: ("positions",), 2: ("rows", "columns"), 3: ("planes", "rows", "columns")}


def text_lines(told: Explanation) -> Iterator[str]:
    """Yield an explanation's lines.

    Parameters
    ----------
    told : Explanation
        From `explain_conv` or `explain_pool`.
    """
    yield from _heading(told)
    for output in told.outputs():
        yield from _pool_lines(told, output) if told.values is not None else _conv_lines(told, output)


def at(name: str, index: Sequence[int]) -> str:
    """Return an element as it is written: ``x[0,1]``."""
    return f"{name}[{','.join(map(str, index))}]"


def by(sizes: Sequence[object]) -> str:
    """Return sizes as they are written: ``5x5``."""
    return "x".join(map(str, sizes))


def name_of(told: Explanation) -> str:
    """Return what is explained."""
    if told.values is not None:
        return "max pooling" + (", windows read backwards" if told.mode == "convolution" else "")
    return told.mode + (" (the kernel is flipped)" if told.mode == "convolution" else "")


def options_of(told: Explanation) -> str:
    """Return stride, dilation and padding or center, as one types them."""
    if told.pairs is None:
        place = f"center {','.join(map(str, told.center or ()))}"
    else:
        place = "padding " + by([f"{b}:{a}" if a != b else b for b, a in told.pairs])
    return f"stride {by(told.win.stride)}, dilation {by(told.win.dilation)}, {place}"


def _heading(told: Explanation) -> Iterator[str]:
    """Yield the sizes, the closed form of the output's size and the rule of what meets."""
    win, pool, names = told.win, told.values is not None, AXES[len(told.win.size)]
    yield f"{name_of(told)}: input {by(win.size)}, kernel {by(win.kernel)}"
    yield options_of(told)
    yield ""
    yield f"output {by(win.out)}: {_closed_form(told)}"
    for axis, name in enumerate(names):
        yield f"  {name}: {_size(told, axis)}"
    yield "output element i and kernel element a meet input element"
    for axis, name in enumerate(names):
        yield f"  {name}: {_rule(told, axis)}"
    if pool:
        yield f"of equal elements the {'last' if told.mode == 'convolution' else 'first'} counts as the maximum"
    if win.is_padded:
        yield f"what lies outside the input ({PAD}) {'never wins' if pool else 'counts as zero'}"
    yield ""


def _closed_form(told: Explanation) -> str:
    """Return the formula of the output's size."""
    if told.pairs is None:
        return "min(n, floor((n - 1 + before) / stride) + 1), where the kernel reaches before its center"
    name = "ceil" if told.ceil_mode else "floor"
    return f"{name}((n + before + after - dilation*(kernel - 1) - 1) / stride) + 1"


def _size(told: Explanation, axis: int) -> str:
    """Return the formula with one axis's numbers, and its result."""
    win = told.win
    n, k, s, d, b, out = (
        values[axis] for values in (win.size, win.kernel, win.stride, win.dilation, win.before, win.out)
    )
    if told.pairs is None:
        whole = min(n, (n - 1 + b) // s + 1)
        missed = f"{whole}, but window {out} would lie around the input, not on it: " if whole != out else ""
        return f"min({n}, floor(({n} - 1 + {b}) / {s}) + 1) = {missed}{out}"
    after = told.pairs[axis][1]
    name = "ceil" if told.ceil_mode else "floor"
    room = n + b + after - d * (k - 1) - 1
    whole = (-(-room // s) if told.ceil_mode else room // s) + 1
    dropped = f"{whole}, but the last window would start after the input: " if whole != out else ""
    return f"{name}(({n} + {b} + {after} - {d}*({k} - 1) - 1) / {s}) + 1 = {dropped}{out}"


def _rule(told: Explanation, axis: int) -> str:
    """Return where output element i and kernel element a look, along one axis."""
    win = told.win
    k, s, d, b = (values[axis] for values in (win.kernel, win.stride, win.dilation, win.before))
    step = "i" if s == 1 else f"i*{s}"
    times = "" if d == 1 else f"*{d}"
    if told.center is not None:
        sign, c = "-" if told.mode == "convolution" else "+", told.center[axis]
        return f"{step} {sign} " + (f"(a - {c}){times}" if c else f"a{times}")
    element = f"({k - 1} - a){times}" if told.mode == "convolution" else f"a{times}"
    return f"{step} + {element}" + (f" - {b}" if b else "")


def _conv_lines(told: Explanation, output: Ints) -> Iterator[str]:
    """Yield an output element's sum of products, laid out as the image is."""
    terms = [f"{at('w', m.element)}*{at('x', m.place) if m.inside else PAD}" for m in told.meetings(output)]
    width = max(map(len, terms))
    start = f"{at('y', output)} = "
    for number, row in enumerate(_rows(terms, told.win.kernel[-1])):
        lead = start if number == 0 else "+ ".rjust(len(start))
        yield (lead + " + ".join(term.ljust(width) for term in row)).rstrip()


def _pool_lines(told: Explanation, output: Ints) -> Iterator[str]:
    """Yield an output element's window, laid out as the image is, with the maximum and its coordinates."""
    terms = [_valued(told, meeting) for meeting in told.meetings(output)]
    width = max(map(len, terms))
    start = f"{at('y', output)} = max of "
    for number, row in enumerate(_rows(terms, told.win.kernel[-1])):
        yield ((start if number == 0 else " " * len(start)) + "  ".join(term.ljust(width) for term in row)).rstrip()
    value, place = told.maximum(output)
    found = f"{value:g}, at {at('x', place)}" if place else "-inf: the window misses the input"
    yield f"{'= '.rjust(start.index('=') + 2)}{found}"


def _valued(told: Explanation, meeting: Meeting) -> str:
    """Return an input element with its value."""
    assert told.values is not None
    return f"{at('x', meeting.place)}={told.values[meeting.place]:g}" if meeting.inside else PAD


def _rows(terms: list[str], length: int) -> Iterator[list[str]]:
    """Cut terms into rows."""
    return (terms[start : start + length] for start in range(0, len(terms), length))
