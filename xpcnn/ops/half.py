"""Half precision: an op given float16 or bfloat16 computes in float32 and gives back what came, as its backward does.

Sums of products in half precision lose too much, and NumPy has no fast ones; most ops themselves know two dtypes. Where
a backend's kernels read and write bfloat16 themselves, and compute in float32, the arrays go to them as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from array_api_compat import array_namespace, is_array_api_obj

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.errors import ArrayTypeError
from xpcnn.ops import _check

Op = TypeVar("Op", bound=Callable[..., Any])
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class HalfSaved:
    """What an op saved in float32 when it was given half-precision arrays; its attributes are the op's own."""

    saved: Any
    dtype: Any  # of what was given
    mixed: bool = False  # whether the parameters were float32 all the same, and so their gradients are

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.saved, name)


def forward(op: Op) -> Op:
    """Let ``op(...) -> (y, saved, ...)`` take half-precision arrays, all of one dtype."""
    return forward_beside()(op)


def forward_beside(*wide: str, taken: Callable[[Arguments], bool] | None = None) -> Callable[[Op], Op]:
    """Do the same for an op whose arguments named ``wide`` may, all together, be float32 beside a half-precision x.

    Then whatever the op returns after saved is float32, too, and so are the gradients after dx. ``taken`` says of a
    call's arguments whether the kernels that take half precision, where there are any, serve it.
    """

    def decorate(op: Op) -> Op:
        signature = inspect.signature(op)

        @wraps(op)
        def run(*args: Any, **options: Any) -> Any:
            if args and not is_half(args[0]):  # then none is: the op itself refuses mixed dtypes
                return op(*args, **options)
            given = signature.bind(*args, **options)
            if not any(map(is_half, given.arguments.values())):
                return op(*args, **options)
            floats = {name: value for name, value in given.arguments.items() if _is_float(value)}
            x = next(iter(floats.values()))
            mixed = is_half(x) and _are_float32([value for name, value in floats.items() if name in wide])
            _check.one_dtype({name: value for name, value in floats.items() if not (mixed and name in wide)})
            k = kernels.of(array_namespace(x))
            if (mixed or not wide) and (taken is None or taken(given.arguments)) and k.takes_half(op.__name__, x):
                return op(*args, **options)
            given.arguments.update({name: _widened(value) for name, value in floats.items()})
            y, saved, *more = op(*given.args, **given.kwargs)
            rest = more if mixed else [_narrowed(part, x.dtype) for part in more]
            return (_narrowed(y, x.dtype), HalfSaved(saved, x.dtype, mixed), *rest)

        return cast(Op, run)

    return decorate


def backward(op: Op) -> Op:
    """Let a backward take what a half-precision forward saved."""

    @wraps(op)
    def run(*args: Any, **options: Any) -> Any:
        halves = [value for value in (*args, *options.values()) if type(value) is HalfSaved]
        if not halves:
            return op(*args, **options)
        dtype = halves[0].dtype
        for value in filter(_is_float, (*args, *options.values())):
            if value.dtype != dtype:
                raise ArrayTypeError(f"dy is {value.dtype}, but the forward call's arrays were {dtype}.")
        results = op(*map(_widened, args), **{name: _widened(value) for name, value in options.items()})
        if halves[0].mixed:
            return (_narrowed(results[0], dtype), *results[1:])
        return _narrowed(results, dtype)

    return cast(Op, run)


def is_half(value: Any) -> bool:
    """Whether a value is an array of float16 or bfloat16."""
    dtype = getattr(value, "dtype", None)  # its size is known faster than its name
    return dtype is not None and getattr(dtype, "itemsize", 2) == 2 and str(dtype).endswith("float16")


def _is_float(value: Any) -> bool:
    """Whether a value is an array of floating-point numbers."""
    return is_array_api_obj(value) and _check.dtype_name(value) in (*_check.FLOATS, *_check.HALVES)


def _are_float32(arrays: list[Array]) -> bool:
    """Whether there are arrays, and all of them are of float32."""
    return bool(arrays) and all(_check.dtype_name(array) == "float32" for array in arrays)


def _widened(value: Any) -> Any:
    """Return a half-precision array as float32, a saved one as the op saved it, anything else as it is."""
    if isinstance(value, HalfSaved):
        return value.saved
    if not is_half(value):
        return value
    xp = array_namespace(value)
    return kernels.of(xp).cast([value], xp.float32, xp)[0]


def _narrowed(value: Array | tuple[Array | None, ...] | None, dtype: Any) -> Any:
    """Return an array, or a tuple of them, in a dtype."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_narrowed(part, dtype) for part in value)
    xp = array_namespace(value)
    return kernels.of(xp).cast([value], dtype, xp)[0]
