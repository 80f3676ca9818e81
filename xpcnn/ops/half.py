"""Half precision: an op given float16 or bfloat16 computes in float32 and gives back what came, as its backward does.

Sums of products in half precision lose too much, and NumPy has no fast ones; the ops themselves know two dtypes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from array_api_compat import array_namespace, is_array_api_obj

from xpcnn.backend import Array
from xpcnn.errors import ArrayTypeError
from xpcnn.ops import _check

Op = TypeVar("Op", bound=Callable[..., Any])


@dataclass(frozen=True)
class HalfSaved:
    """What an op saved in float32 when it was given half-precision arrays; its attributes are the op's own."""

    saved: Any
    dtype: Any  # of what was given

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.saved, name)


def forward(op: Op) -> Op:
    """Let ``op(...) -> (y, saved, ...)`` take half-precision arrays, all of one dtype."""
    signature = inspect.signature(op)

    @wraps(op)
    def run(*args: Any, **options: Any) -> Any:
        if args and not is_half(args[0]):  # then none is: the op itself refuses mixed dtypes
            return op(*args, **options)
        bound = signature.bind(*args, **options)
        if not any(map(is_half, bound.arguments.values())):
            return op(*args, **options)
        floats = {name: value for name, value in bound.arguments.items() if _is_float(value)}
        _check.one_dtype(floats)
        dtype = next(iter(floats.values())).dtype
        bound.arguments.update({name: _widened(value) for name, value in floats.items()})
        y, saved, *more = op(*bound.args, **bound.kwargs)
        return (_narrowed(y, dtype), HalfSaved(saved, dtype), *(_narrowed(part, dtype) for part in more))

    return cast(Op, run)


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
        return _narrowed(results, dtype)

    return cast(Op, run)


def is_half(value: Any) -> bool:
    """Whether a value is an array of float16 or bfloat16."""
    dtype = getattr(value, "dtype", None)  # its size is known faster than its name
    return dtype is not None and getattr(dtype, "itemsize", 2) == 2 and str(dtype).endswith("float16")


def _is_float(value: Any) -> bool:
    """Whether a value is an array of floating-point numbers."""
    return is_array_api_obj(value) and _check.dtype_name(value) in (*_check.FLOATS, *_check.HALVES)


def _widened(value: Any) -> Any:
    """Return a half-precision array as float32, a saved one as the op saved it, anything else as it is."""
    if isinstance(value, HalfSaved):
        return value.saved
    if not is_half(value):
        return value
    xp = array_namespace(value)
    return xp.astype(value, xp.float32)


def _narrowed(value: Array | tuple[Array | None, ...] | None, dtype: Any) -> Any:
    """Return an array, or a tuple of them, in a dtype."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_narrowed(part, dtype) for part in value)
    return array_namespace(value).astype(value, dtype)
