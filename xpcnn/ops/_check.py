"""What every op checks before it computes: arrays of one namespace, one floating dtype, of the right rank."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, wraps
from numbers import Real
from typing import Any, TypeVar, cast

from array_api_compat import array_namespace, device, is_array_api_obj

from xpcnn.backend import Array, Namespace
from xpcnn.errors import ArrayTypeError, XpcnnError

FLOATS = ("float32", "float64")
NUMBERS = ("t", "targets", "dy")  # which are no images
HALVES = ("float16", "bfloat16")  # computed in float32, see xpcnn.ops.half: few backends' kernels take them
MOST_REMEMBERED = 1024  # results of one function

Function = TypeVar("Function", bound=Callable[..., Any])
_passed: dict[type[Any], dict[Any, Namespace]] = {}  # class -> dtype -> namespace, of arrays that passed every check


def namespace(xp: Namespace | None, maybe: dict[str, Array | None] | None = None, **arrays: Array) -> Namespace:
    """Return the one namespace of the arrays given, all of one floating dtype; those in ``maybe`` may be None.

    A namespace that the caller names must be that of the arrays' library.
    """
    given = arrays | {name: array for name, array in maybe.items() if array is not None} if maybe else arrays
    if xp is None and (passed := _seen(given.values())) is not None:
        return passed
    found = library(**given)
    if xp is not None and (isinstance(xp, str) or _library(xp) != _library(found)):
        raise ArrayTypeError(f"xp is {getattr(xp, '__name__', repr(xp))}, but the arrays are {_library(found)}'s.")
    one_dtype(given)
    first, array = next(iter(given.items()))
    if dtype_name(array) not in (*FLOATS, *HALVES):
        raise ArrayTypeError(f"{first} has dtype {dtype_name(array)}; supported are {', '.join((*HALVES, *FLOATS))}.")
    _passed.setdefault(type(array), {})[array.dtype] = found
    return found


def _seen(arrays: Iterable[Array]) -> Namespace | None:
    """Return the namespace of arrays of one class and dtype that passed before; None says no more than: look."""
    first, *others = arrays
    namespaces = _passed.get(type(first))
    if namespaces is None:
        return None
    kind, dtype = type(first), first.dtype
    alike = all(type(other) is kind and other.dtype is dtype for other in others)
    return namespaces.get(dtype) if alike else None


def library(**arrays: Array) -> Namespace:
    """Return the one namespace of arrays of any dtype."""
    for name, array in arrays.items():
        if not is_array_api_obj(array):
            raise ArrayTypeError(f"{name} must be an array, got {type(array).__name__} (backend.asarray makes one).")
    try:
        return array_namespace(*arrays.values())
    except TypeError:
        kinds = ", ".join(f"{name} is {type(array).__module__}'s" for name, array in arrays.items())
        raise ArrayTypeError(f"all arrays of one call must come from one library, but {kinds}.") from None


def one_dtype(arrays: dict[str, Array]) -> None:
    """Raise unless the arrays share one dtype and are no integers, naming each."""
    dtypes = {name: dtype_name(array) for name, array in arrays.items()}
    for name, dtype in dtypes.items():
        if dtype.startswith(("int", "uint", "bool")):
            advice = "normalise integer images to float32 or float64 first (such as x / 255)"
            raise ArrayTypeError(
                f"{name} has dtype {dtype}; {advice if name not in NUMBERS else 'it must be a floating one'}."
            )
        if not getattr(arrays[name].dtype, "isnative", True):
            raise ArrayTypeError(f"{name} has the other byte order; convert it with astype(dtype.newbyteorder('=')).")
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise ArrayTypeError(f"all arrays of one call must have one dtype, but {listed}; convert one with astype.")


def rank(name: str, array: Array, axes: str) -> None:
    """Raise unless an array has the axes named, such as ``"N, C, H, W"``."""
    if array.ndim != axes.count(",") + 1:
        raise XpcnnError(f"{name} must have the axes ({axes}), got shape {tuple(array.shape)}.")


def number(name: str, value: Any, low: float, high: float, *, closed: bool = False) -> float:
    """Return a plain number (a NumPy scalar would widen float32), or raise unless ``low <= value < high``."""
    right = isinstance(value, Real) and not isinstance(value, bool)
    if not right or not (low <= float(value) < high or (closed and value == high)):
        raise XpcnnError(
            f"{name} must be a number from {low:g} to {'' if closed else 'below '}{high:g}, not {value!r}."
        )
    return float(value)


def axes_of(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Return one or several axes as increasing numbers from 0, or raise."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    numbers = [v for v in values if hasattr(v, "__index__") and not isinstance(v, bool) and not getattr(v, "shape", ())]
    axes = sorted(operator.index(v) % ndim for v in numbers if -ndim <= v < ndim) if ndim else []
    if not axes or len(axes) != len(values) or len(set(axes)) != len(axes):
        raise XpcnnError(f"{name} must be different axes of an array with {ndim} of them, not {value!r}.")
    return tuple(axes)


def same_shape(name: str, array: Array, expected: tuple[int, ...], why: str) -> None:
    """Raise unless an array has the expected shape."""
    if tuple(array.shape) != tuple(expected):
        raise XpcnnError(f"{name} must have shape {tuple(expected)} ({why}), got {tuple(array.shape)}.")


def kin(x: Array, xp: Namespace) -> Array:
    """Return an empty array that shares x's library, dtype and device, and keeps nothing of x alive."""
    return xp.empty((0,), dtype=x.dtype, device=device(x))


def dtype_name(array: Array) -> str:
    """Return a dtype's plain name in any namespace, such as ``float32``."""
    return _name(array.dtype)


def remembered(function: Function) -> Function:
    """Keep the results of a pure function of options for as long as its arguments are plain numbers, words and tuples.

    Others are computed each time: True equals 1 and 1.0 too, but may be refused where 1 is not.
    """
    known = lru_cache(MOST_REMEMBERED, typed=True)(function)

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        plain = all(map(_is_plain, args)) and all(map(_is_plain, options.values()))
        return (known if plain else function)(*args, **options)

    return cast(Function, run)


def _is_plain(value: Any) -> bool:
    """Whether a value is None, a word, a bool, a whole number, or a tuple of whole numbers and such tuples."""
    if type(value) is tuple:
        return all(type(item) is int or (type(item) is tuple and _is_plain(item)) for item in value)
    return type(value) in (int, str, bool, type(None))


@lru_cache(64, typed=True)  # libraries warn when their dtypes are compared with others'
def _name(dtype: Any) -> str:
    """Return a dtype's plain name."""
    return str(getattr(dtype, "name", None) or dtype).rpartition(".")[2]  # torch's is torch.float32


def _library(xp: Namespace) -> str:
    """Return the name of the library behind a namespace: array_api_compat.numpy and numpy are both numpy."""
    return str(getattr(xp, "__name__", xp)).removeprefix("array_api_compat.").partition(".")[0]
