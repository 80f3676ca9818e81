"""What every op checks before it computes: arrays of one namespace, one floating dtype, of the right rank."""

from __future__ import annotations

from array_api_compat import array_namespace, is_array_api_obj

from xpcnn.backend import Array, Namespace
from xpcnn.errors import ArrayTypeError, XpcnnError

FLOATS = ("float32", "float64")


def namespace(xp: Namespace | None, **arrays: Array | None) -> Namespace:
    """Return the one namespace of the arrays given, all float32 or all float64; None is passed over.

    A namespace that the caller names must be that of the arrays' library.
    """
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        if not is_array_api_obj(array):
            raise ArrayTypeError(f"{name} must be an array, got {type(array).__name__} (backend.asarray makes one).")
    try:
        found = array_namespace(*given.values())
    except TypeError:
        kinds = ", ".join(f"{name} is {type(array).__module__}'s" for name, array in given.items())
        raise ArrayTypeError(f"all arrays of one call must come from one library, but {kinds}.") from None
    if xp is not None and _library(xp) != _library(found):
        raise ArrayTypeError(f"xp is {xp.__name__}, but the arrays are {_library(found)}'s.")
    dtypes = {name: dtype_name(array) for name, array in given.items()}
    for name, dtype in dtypes.items():
        if dtype.startswith(("int", "uint", "bool")):
            raise ArrayTypeError(
                f"{name} has dtype {dtype}; normalise integer images to float32 or float64 first (such as x / 255)."
            )
        if dtype not in FLOATS:
            raise ArrayTypeError(f"{name} has dtype {dtype}; supported are {' and '.join(FLOATS)}.")
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise ArrayTypeError(f"all arrays of one call must have one dtype, but {listed}; convert one with astype.")
    return found


def rank(name: str, array: Array, axes: str) -> None:
    """Raise unless an array has the axes named, such as ``"N, C, H, W"``."""
    if array.ndim != axes.count(",") + 1:
        raise XpcnnError(f"{name} must have the axes ({axes}), got shape {tuple(array.shape)}.")


def same_shape(name: str, array: Array, expected: tuple[int, ...], why: str) -> None:
    """Raise unless an array has the expected shape."""
    if tuple(array.shape) != tuple(expected):
        raise XpcnnError(f"{name} must have shape {tuple(expected)} ({why}), got {tuple(array.shape)}.")


def dtype_name(array: Array) -> str:
    """Return a dtype's plain name in any namespace, such as ``float32``."""
    return str(getattr(array.dtype, "name", None) or array.dtype).rpartition(".")[2]  # torch's is torch.float32


def _library(xp: Namespace) -> str:
    """Return the name of the library behind a namespace: array_api_compat.numpy and numpy are both numpy."""
    return str(xp.__name__).removeprefix("array_api_compat.").partition(".")[0]
