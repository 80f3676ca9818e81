"""The errors a caller can act on: one sentence each, naming what was given and what is allowed."""

from __future__ import annotations

import operator


class XpcnnError(ValueError):
    """Base of every error raised for bad input; the command line prints it and exits with status 2."""


class ArrayTypeError(XpcnnError, TypeError):
    """An array has the wrong type, dtype or namespace."""


class BackendError(XpcnnError, RuntimeError):
    """The backend or device asked for is not there."""


class DataError(XpcnnError):
    """A file is missing, truncated, corrupt, of the wrong kind or too large."""


class NotFiniteError(XpcnnError):
    """Numbers of a training are no longer numbers."""


class OutOfMemoryError(XpcnnError, MemoryError):
    """A device's memory, or the machine's, is too small for what was asked."""


def whole(name: str, value: object, least: int) -> int:
    """Return a whole number (NumPy's included) as an int, or raise unless it is at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or getattr(value, "shape", None):
        raise XpcnnError(f"{name} must be a whole number of {least} or more, not {value!r}.")
    number = operator.index(value)
    if number < least:
        raise XpcnnError(f"{name} must be a whole number of {least} or more, not {value!r}.")
    return number
