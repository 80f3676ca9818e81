"""How precisely a network computes: float32, products of TF32, or bfloat16 beside float32 parameters and sums.

In bfloat16 the parameters are rounded once for each step, and activations and their gradients are kept in it; products
add up in float32. The parameters that are trained, those of normalisations, statistics, the loss and the gradients
that the optimizer is given are float32 (P. Micikevicius et al., "Mixed precision training", 2018; D. Kalamkar et al.,
"A study of bfloat16 for deep learning training", 2019: with bfloat16's range the loss needs no scaling).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from xpcnn import kernels
from xpcnn.backend import Array, Backend, Namespace, device_name
from xpcnn.errors import BackendError, XpcnnError
from xpcnn.kernels import policy
from xpcnn.layers.base import Arrays, Layer, Shape
from xpcnn.layers.plan import Footprint, bytes_of, footprint

PRECISIONS = ("float32", "tf32", "bf16")
CONV_ENGINES = policy.CONVOLUTION
LEAST = 80  # compute capability, times 10, of GPUs that multiply TF32 and bfloat16


@dataclass(frozen=True)
class Computation:
    """How a network computes on a backend, and the casts that takes; in float32 and TF32 nothing is cast.

    Attributes
    ----------
    net : Layer
    input_shape : tuple of int
    backend : Backend
    dtype, precision, conv_engine : str
        As `Model` takes them.

    Raises
    ------
    XpcnnError
        When the backend cannot do what is asked for.
    """

    net: Layer
    input_shape: Shape
    backend: Backend
    dtype: str
    precision: str
    conv_engine: str

    def __post_init__(self) -> None:
        """Refuse what the backend cannot do."""
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("conv_engine", self.conv_engine, CONV_ENGINES)
        if self.precision != "float32" and self.dtype != "float32":
            raise XpcnnError(f"precision {self.precision} is for models of dtype float32, not of {self.dtype}.")
        if self.precision == "bf16" and self._half is None:
            raise BackendError(_without_half(self.backend))
        if self.precision == "tf32" and self._capability is None:
            raise BackendError(
                "precision tf32 needs CUDA and a GPU of compute capability 8.0 or higher, but the device is "
                f"{self.backend.label}."
            )
        if self.precision != "float32" and self._capability is not None and self._capability < LEAST:
            raise BackendError(
                f"precision {self.precision} needs a GPU of compute capability 8.0 or higher, but "
                f"{device_name(self.backend)} has {self._capability / 10:.1f}."
            )
        if self.conv_engine == "cudnn" and self._capability is None:
            raise BackendError(f"conv_engine cudnn needs CUDA, but the device is {self.backend.label}.")
        if self.conv_engine == "cudnn":
            if self.precision == "float32":
                raise BackendError("conv_engine cudnn convolves at precision tf32 or bf16, not at float32.")
            if reason := kernels.of(self.backend.xp).without_cudnn():
                raise BackendError(f"cuDNN was asked for, but {reason}.")

    def running(self) -> AbstractContextManager[Any]:
        """Return a context in which the backend computes like this."""
        return self.backend.context() if self._capability is None else self._held()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold CUDA's kernels to a precision and an engine."""
        products = "tf32" if self.precision == "tf32" else "float32"
        with self.backend.context(), policy.use(products=products, convolution=self.conv_engine):
            yield

    def parameters(self, params: Arrays) -> Arrays:
        """Return parameters as the layers take them: rounded to bfloat16, if that is the precision, but for norms'."""
        if self.precision != "bf16":
            return params
        names = [path for path in params if path not in self._wide]
        return params | dict(zip(names, self._cast([params[path] for path in names], self._half), strict=True))

    def gradients(self, grads: Arrays) -> Arrays:
        """Return gradients as an optimizer takes them."""
        if self.precision != "bf16":
            return grads
        return dict(zip(grads, self._cast(list(grads.values()), self.backend.xp.float32), strict=True))

    def narrow(self, x: Array) -> Array:
        """Return images, or a loss's gradient, as the layers take them."""
        return self._cast([x], self._half)[0] if self.precision == "bf16" else x

    def is_narrow(self, x: Array) -> bool:
        """Whether images are in bfloat16 already, and the layers take it."""
        return self.precision == "bf16" and bool(x.dtype == self._half)

    def widen(self, y: Array) -> Array:
        """Return a network's outputs as losses and callers take them."""
        return self._cast([y], self.backend.xp.float32)[0] if self.precision == "bf16" else y

    def footprint(self, params: Arrays, state: Arrays, optimizer: int, example: Array) -> Footprint:
        """Return what a training step takes in memory; ``example`` is three images."""
        xp = self.backend.xp
        given = self.parameters(params)
        found = footprint(self.net, given, state, optimizer, self.narrow(example), xp)
        if self.precision != "bf16":
            return found
        return replace(
            found,
            parameters=sum(map(bytes_of, (*params.values(), *state.values()))),
            gradients=sum(map(bytes_of, params.values())) + sum(map(bytes_of, given.values())),
            fixed=found.fixed + sum(map(bytes_of, given.values())),
            temporaries=2 * found.temporaries,  # as if all of them were widened
            blocks=tuple(2 * block for block in found.blocks),
        )

    def _cast(self, arrays: list[Array], dtype: Any) -> list[Array]:
        """Return arrays of a dtype."""
        xp: Namespace = self.backend.xp
        found: list[Array] = kernels.of(xp).cast(arrays, dtype, xp)
        return found

    @property
    def image_dtype(self) -> Any:
        """The dtype that the layers take images in."""
        return self._half if self.precision == "bf16" else getattr(self.backend.xp, self.dtype)

    @cached_property
    def _half(self) -> Any:
        """Bfloat16's dtype, or None."""
        return kernels.of(self.backend.xp).half_dtype(self.backend.xp)

    @cached_property
    def _capability(self) -> int | None:
        """The GPU's compute capability times 10, or None where there is no GPU of ours."""
        found: int | None = kernels.of(self.backend.xp).capability(self.backend.device)
        return found

    @cached_property
    def _wide(self) -> frozenset[str]:
        """The paths of the parameters that stay in float32."""
        return frozenset(_wide_paths(self.net, self.input_shape, ""))


def _wide_paths(layer: Layer, input_shape: Shape, prefix: str) -> Iterator[str]:
    """Yield the paths of the parameters that layers want in float32."""
    if layer.wide_parameters:
        yield from (prefix + path for path in layer.parameters(input_shape))
    for child in layer.children(input_shape):
        yield from _wide_paths(child.layer, child.input_shape, f"{prefix}{child.path}/")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise unless a value is one of those allowed."""
    if value not in allowed:
        raise XpcnnError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")


def _without_half(backend: Backend) -> str:
    """Return the sentence that says why a backend has no bfloat16."""
    if backend.name == "cupy":
        return "precision bf16 needs ml_dtypes and NumPy 2.1.2 or newer beside CuPy: pip install -U ml_dtypes numpy."
    return f"precision bf16 needs a GPU (or --device torch, on the CPU), but the device is {backend.label}."
