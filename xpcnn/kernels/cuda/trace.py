"""Runs an elementwise rule once on symbols instead of arrays and notes what it computes, as lines of CUDA C++.

A rule is given the namespace `Functions`, whose arrays are `Symbol`. As in the Array API, Python numbers take the dtype
of the array they meet. They become arguments of the kernel, so that another learning rate is the same kernel.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpcnn.kernels.cuda.runtime import NotRecordedError

REAL, BOOL, NUMBER = "real", "bool", "number"  # what a symbol stands for; a number is a Python float
WIDER = ("bfloat16", "float32", "float64")
ARITHMETIC = {"add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "truediv": "{} / {}"}
COMPARISON = {"lt": "{} < {}", "le": "{} <= {}", "gt": "{} > {}", "ge": "{} >= {}", "eq": "{} == {}", "ne": "{} != {}"}
LOGIC = {"and": "{} && {}", "or": "{} || {}", "xor": "{} != {}"}
OF_ONE = {
    name: f"{name}{{f}}({{}})"
    for name in ("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh")
} | {
    "abs": "fabs{f}({})", "negative": "-{}", "square": "{0} * {0}", "reciprocal": "1 / {}", "sign": "sign_of({})",
    "floor": "floor{f}({})", "ceil": "ceil{f}({})", "trunc": "trunc{f}({})", "round": "rint{f}({})",
}  # fmt: skip
OF_TWO = {"maximum": "larger({}, {})", "minimum": "smaller({}, {})"}
TESTS = {"isnan": "{0} != {0}", "isfinite": "{0} - {0} == 0", "isinf": "{0} == {0} && {0} - {0} != 0"}
NAMED = {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv", "pow": "pow", "less": "lt",
    "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne",
    "logical_and": "and_", "logical_or": "or_", "logical_xor": "xor", "bitwise_and": "and_", "bitwise_or": "or_",
    "bitwise_xor": "xor",
}  # fmt: skip
CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf, "nan": math.nan, "newaxis": None}
DTYPES = ("bool", "float32", "float64", "bfloat16")


class UntraceableError(NotRecordedError):
    """A rule does what no kernel can be made of, nor recorded."""


class Node(NamedTuple):
    """One line of a kernel: a format of C++ for the values it takes."""

    code: str
    operands: tuple[int, ...]
    kind: str
    uniform: bool  # of one value for all elements


class Leaf(NamedTuple):
    """What a symbol without operands stands for: input number ``place``, or a number given or met."""

    of: str  # "a" an input, "n" a number given to the rule, "c" one met on the way
    place: int


class Tape:
    """What a rule computed so far; equal lines are the same line.

    Parameters
    ----------
    dtypes : sequence of dtype
        Of the rule's arrays: bool, or floating ones that are computed in one type.
    single : sequence of bool
        Which of the arrays have the shape (), one value for all elements of the others.
    shape : tuple of int, optional
        Of the others; without it the rule may not ask.
    numbers : int
        How many Python numbers the rule is given before its arrays.
    """

    def __init__(
        self, dtypes: Sequence[Any], single: Sequence[bool], shape: tuple[int, ...] | None, numbers: int = 0
    ) -> None:
        names = {dtype.name for dtype in dtypes} - {"bool"}
        if not names or not names <= set(WIDER) or ("float64" in names and len(names) > 1):
            raise UntraceableError(f"arrays of {', '.join(sorted(names)) or 'bool'}")
        self.wide = "float64" in names
        self.shape = shape
        self.nodes: list[Node] = []
        self.leaves: dict[int, Leaf] = {}
        self.constants: list[float] = []
        self._met: dict[
            int, tuple[Any, int]
        ] = {}  # by address, and kept there: which numbers were met, as what constant
        self._places: dict[Any, int] = {}
        self.functions = Functions(self)
        self.numbers = tuple(self._leaf("n", i, f"n{i}", NUMBER, True, None) for i in range(numbers))
        self.arrays = tuple(
            self._leaf("a", i, _read(i, dtype, one), BOOL if dtype.name == "bool" else REAL, one, dtype)
            for i, (dtype, one) in enumerate(zip(dtypes, single, strict=True))
        )

    def note(self, code: str, operands: Iterable[Symbol], kind: str, dtype: Any = None) -> Symbol:
        """Return the symbol of a line."""
        given = tuple(operands)
        places = tuple(symbol.place for symbol in given)
        key = code, places, kind
        if key not in self._places:
            self._places[key] = len(self.nodes)
            self.nodes.append(Node(code, places, kind, all(self.nodes[place].uniform for place in places)))
        return Symbol(self, self._places[key], kind, dtype, all(symbol.single for symbol in given))

    def lift(self, value: Any) -> Symbol:
        """Return the symbol of a Python number, or a symbol itself."""
        if type(value) is Symbol and value.tape is self:
            return value
        if type(value) not in (int, float):
            raise UntraceableError(f"a {type(value).__name__} among its symbols")
        if id(value) not in self._met:
            self._met[id(value)] = value, len(self.constants)
            self.constants.append(float(value))
        place = self._met[id(value)][1]
        return self._leaf("c", place, f"c{place}", NUMBER, True, None)

    def real(self, symbol: Symbol, dtype: Any) -> Symbol:
        """Return a symbol as a real number of a dtype."""
        return symbol if symbol.kind == REAL else self.note("(NUMBER){}", [symbol], REAL, dtype)

    def combine(self, code: str, values: Sequence[Any], kind: str = REAL) -> Symbol:
        """Return the symbol of a line about real numbers, of the widest dtype among them, or about Python numbers."""
        symbols = [self.lift(value) for value in values]
        dtypes = [symbol.dtype for symbol in symbols if symbol.kind == REAL]
        if not dtypes:
            if kind == REAL and all(symbol.kind == NUMBER for symbol in symbols):
                return self.note(code, symbols, NUMBER)
            raise UntraceableError("arithmetic without a floating array")
        dtype = max(dtypes, key=lambda one: WIDER.index(one.name))
        return self.note(code, [self.real(symbol, dtype) for symbol in symbols], kind, dtype if kind == REAL else None)

    def logic(self, code: str, values: Sequence[Any]) -> Symbol:
        """Return the symbol of a line about truth."""
        symbols = [self.lift(value) for value in values]
        if any(symbol.kind != BOOL for symbol in symbols):
            raise UntraceableError("logic on numbers")
        return self.note(code, symbols, BOOL)

    def _leaf(self, of: str, place: int, code: str, kind: str, uniform: bool, dtype: Any) -> Symbol:
        key = of, place
        if key not in self._places:
            self._places[key] = len(self.nodes)
            self.leaves[len(self.nodes)] = Leaf(of, place)
            self.nodes.append(Node(code, (), kind, uniform))
        return Symbol(self, self._places[key], kind, dtype, uniform)


class Symbol:
    """Stands for an array, or for a Python number that differs from call to call."""

    __slots__ = ("dtype", "kind", "place", "single", "tape")
    __array_ufunc__ = None  # NumPy's operators leave it to these
    __hash__ = None  # type: ignore[assignment]
    device = None

    def __init__(self, tape: Tape, place: int, kind: str, dtype: Any, single: bool) -> None:
        self.tape, self.place, self.kind, self.single = tape, place, kind, single
        self.dtype = np.dtype(np.bool_) if kind == BOOL else dtype

    def __array_namespace__(self, *, api_version: str | None = None) -> Functions:
        return self.tape.functions

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        if self.single:
            return ()
        if self.tape.shape is None:
            raise UntraceableError("the shape of an array")
        return self.tape.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __neg__(self) -> Symbol:
        return self.tape.combine("-{}", [self])

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return self.tape.combine(OF_ONE["abs"], [self])

    def __invert__(self) -> Symbol:
        return self.tape.logic("!{}", [self])

    def __pow__(self, power: Any) -> Symbol:
        if type(power) in (int, float) and power in (1, 2, 0.5):
            return self.tape.combine({1: "{}", 2: OF_ONE["square"], 0.5: OF_ONE["sqrt"]}[power], [self])
        return self.tape.combine("pow{f}({}, {})", [self, power])

    def __rpow__(self, base: Any) -> Symbol:
        return self.tape.combine("pow{f}({}, {})", [base, self])

    def __bool__(self) -> bool:
        raise UntraceableError("a branch on a value")


class Functions:
    """The functions of the Array API that work element by element, on symbols."""

    __name__ = "xpcnn.kernels.cuda.trace"

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def __getattr__(self, name: str) -> Any:
        combine = self._tape.combine
        if name in OF_ONE:
            return lambda x: combine(OF_ONE[name], [x])
        if name in OF_TWO:
            return lambda a, b: combine(OF_TWO[name], [a, b])
        if name in TESTS:
            return lambda x: combine(TESTS[name], [x], BOOL)
        if name in NAMED:
            return lambda a, b: getattr(operator, NAMED[name])(self._tape.lift(a), b)
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in DTYPES:
            return _dtype(name)
        raise UntraceableError(f"the function {name}")

    def clip(self, x: Any, min: Any = None, max: Any = None) -> Symbol:
        """Return x within bounds, of which NaN is one that x takes."""
        kept = self._tape.lift(x) if min is None else self._tape.combine("at_least({}, {})", [x, min])
        return kept if max is None else self._tape.combine("at_most({}, {})", [kept, max])

    def where(self, condition: Any, a: Any, b: Any) -> Symbol:
        """Return a where the condition holds and b elsewhere."""
        tape = self._tape
        condition, a, b = tape.lift(condition), tape.lift(a), tape.lift(b)
        kinds = {a.kind, b.kind}
        if condition.kind != BOOL or REAL not in kinds:
            if condition.kind == BOOL and kinds == {BOOL}:
                return tape.logic("{} ? {} : {}", [condition, a, b])
            raise UntraceableError("where without a condition or an array")
        dtype = max((one.dtype for one in (a, b) if one.kind == REAL), key=lambda one: WIDER.index(one.name))
        return tape.note("{} ? {} : {}", [condition, tape.real(a, dtype), tape.real(b, dtype)], REAL, dtype)

    def logical_not(self, x: Any) -> Symbol:
        """Return what is not so."""
        return self._tape.logic("!{}", [x])

    bitwise_invert = logical_not

    def positive(self, x: Any) -> Symbol:
        """Return x."""
        return self._tape.lift(x)

    def astype(self, x: Any, dtype: Any, *, copy: bool = True, device: Any = None) -> Symbol:
        """Return x as truth, as a real number, or in a dtype that holds all its values."""
        tape, target = self._tape, np.dtype(dtype)
        x = tape.lift(x)
        if target == x.dtype:
            return x
        if target.name == "bool" and x.kind == REAL:
            return tape.note("{} != 0", [x], BOOL)
        if target.name not in WIDER or (target.name == "float64") != tape.wide or x.kind == NUMBER:
            raise UntraceableError(f"astype {target}")
        if x.kind == BOOL:
            return tape.real(x, target)
        if target.name == "bfloat16":
            raise UntraceableError("rounding on the way")
        return tape.note("{}", [x], REAL, target)

    def full(self, shape: Any, value: Any, *, dtype: Any = None, device: Any = None) -> Symbol:
        """Return one value, of the arrays' shape or ()."""
        tape, target = self._tape, np.dtype(dtype)
        shape = (shape,) if type(shape) is int else tuple(shape)
        number = tape.lift(value)
        if dtype is None or target.name not in WIDER or (target.name == "float64") != tape.wide:
            raise UntraceableError("a new array of another dtype")
        if number.kind != NUMBER or (shape and shape != tape.shape):
            raise UntraceableError("a new array of another shape")
        filled = tape.real(number, target)
        return Symbol(tape, filled.place, REAL, target, not shape)

    def full_like(self, x: Symbol, value: Any, *, dtype: Any = None, device: Any = None) -> Symbol:
        """Return one value, of an array's shape."""
        filled = self.full((), value, dtype=x.dtype if dtype is None else dtype)
        return Symbol(self._tape, filled.place, REAL, filled.dtype, x.single)

    def zeros(self, shape: Any, *, dtype: Any = None, device: Any = None) -> Symbol:
        """Return zeros."""
        return self.full(shape, 0.0, dtype=dtype)

    def ones(self, shape: Any, *, dtype: Any = None, device: Any = None) -> Symbol:
        """Return ones."""
        return self.full(shape, 1.0, dtype=dtype)

    def zeros_like(self, x: Symbol, *, dtype: Any = None, device: Any = None) -> Symbol:
        """Return zeros of an array's shape."""
        return self.full_like(x, 0.0, dtype=dtype)

    def ones_like(self, x: Symbol, *, dtype: Any = None, device: Any = None) -> Symbol:
        """Return ones of an array's shape."""
        return self.full_like(x, 1.0, dtype=dtype)

    def asarray(self, value: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Symbol:
        """Return a symbol itself, or a number as an array of the shape ()."""
        if type(value) is Symbol and dtype in (None, value.dtype):
            return value
        return self.full((), value, dtype=dtype)


def _operator(method: str, code: str, kind: str, *, swapped: bool = False) -> Callable[[Symbol, Any], Any]:
    """Return an operator of two symbols, or of a symbol and a number."""

    def run(self: Symbol, other: Any) -> Symbol:
        values = (other, self) if swapped else (self, other)
        both_true = self.kind == BOOL and method in ("eq", "ne")
        return (self.tape.logic if both_true else self.tape.combine)(code, values, *(() if both_true else (kind,)))

    def run_logic(self: Symbol, other: Any) -> Symbol:
        return self.tape.logic(code, (other, self) if swapped else (self, other))

    return run_logic if method in LOGIC else run


for _table, _kind in ((ARITHMETIC, REAL), (COMPARISON, BOOL), (LOGIC, BOOL)):
    for _name, _code in _table.items():
        setattr(Symbol, f"__{_name}__", _operator(_name, _code, _kind))
        if _table is not COMPARISON:
            setattr(Symbol, f"__r{_name}__", _operator(_name, _code, _kind, swapped=True))


def _read(place: int, dtype: Any, single: bool) -> str:
    """Return the C++ for an input's value."""
    name = f"a{place}[0]" if single else f"a{place}"
    return name if dtype.name == "bool" else f"value({name})"


def _dtype(name: str) -> Any:
    """Return a dtype of NumPy's, or of ml_dtypes'."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)
