"""The errors a caller can act on: one sentence each, naming what was given and what is allowed."""

from __future__ import annotations


class XpcnnError(ValueError):
    """Base of every error raised for bad input; the command line prints it and exits with status 2."""


class ArrayTypeError(XpcnnError, TypeError):
    """An array has the wrong type, dtype or namespace."""


class BackendError(XpcnnError, RuntimeError):
    """The backend or device asked for is not there."""


class DataError(XpcnnError):
    """A file is missing, truncated, corrupt, of the wrong kind or too large."""
