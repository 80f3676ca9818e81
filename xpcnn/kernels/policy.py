"""How precisely, and by which library, CUDA's kernels may compute: held for the length of a ``with``, in one thread.

Nothing here is global: a policy set in one thread, or in one asynchronous task, is not seen by another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from xpcnn.errors import XpcnnError

PRODUCTS = ("float32", "tf32")
CONVOLUTION = ("auto", "im2col", "cudnn")


@dataclass(frozen=True)
class Policy:
    """What CUDA's kernels may do.

    Attributes
    ----------
    products : {"float32", "tf32"}
        Whether factors of float32 products are rounded to TF32's 10 bits of mantissa, which tensor cores multiply.
    convolution : {"auto", "im2col", "cudnn"}
        By products of columns, by cuDNN (an error where it cannot), or by cuDNN where it is installed and can.
    tune : bool
        Whether cuDNN's first plans for a shape are timed and the fastest kept, instead of its own guess; another run
        may then choose another, whose results differ in their last bits.
    """

    products: str = "float32"
    convolution: str = "auto"
    tune: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("products", self.products, PRODUCTS),
            ("convolution", self.convolution, CONVOLUTION),
        ):
            if value not in allowed:
                raise XpcnnError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")


_current: ContextVar[Policy] = ContextVar("policy", default=Policy())  # noqa: B039  it is frozen


def current() -> Policy:
    """Return the policy that holds here."""
    return _current.get()


@contextmanager
def use(*, products: str | None = None, convolution: str | None = None, tune: bool | None = None) -> Iterator[Policy]:
    """Let another policy hold inside a ``with``; what is not given stays as it was.

    Parameters
    ----------
    products : {"float32", "tf32"}, optional
        See `Policy`.
    convolution : {"auto", "im2col", "cudnn"}, optional
        See `Policy`.
    tune : bool, optional
        See `Policy`.

    Raises
    ------
    XpcnnError
        When a value is none of these.
    """
    given = {"products": products, "convolution": convolution, "tune": tune}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    policy = replace(current(), **changes)
    token = _current.set(policy)
    try:
        yield policy
    finally:
        _current.reset(token)
