"""Products of matrices by cuBLAS, called directly: CuPy refuses to call it while a stream is captured.

Each device and stream has a handle and a workspace of its own. Under these conditions cuBLAS gives the same bits in
every run on the same kind of GPU with the same version of the library; and its work can be recorded in a CUDA graph,
since it needs no memory but what it was given.

cuBLAS counts in columns. A row-major matrix (R, C) is, read by columns, its own transpose; so out = a·b is asked for as
outᵀ = bᵀ·aᵀ, with b as the first factor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from itertools import product
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Array
from xpcnn.errors import ArrayTypeError, BackendError, XpcnnError
from xpcnn.kernels import policy
from xpcnn.kernels.cuda import runtime, stream

WORKSPACE = 32 << 20  # bytes: what NVIDIA advises for Hopper
MOST = (1 << 31) - 1  # sizes up to this go to the functions that count in 32 bits

DATA = {"float32": 0, "float64": 1, "bfloat16": 14}  # cudaDataType_t: CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF
FLOAT, DOUBLE, FAST_TF32 = 68, 70, 77  # cublasComputeType_t: CUBLAS_COMPUTE_32F, _64F, _32F_FAST_TF32
AS_IT_IS, TRANSPOSED = 0, 1  # cublasOperation_t: CUBLAS_OP_N, CUBLAS_OP_T
DEFAULT_ALGORITHM = -1  # cublasGemmAlgo_t: CUBLAS_GEMM_DEFAULT
DEFAULT_MATH = 0  # cublasMath_t: CUBLAS_DEFAULT_MATH

SCALARS: dict[int, Any] = {FLOAT: ctypes.c_float, FAST_TF32: ctypes.c_float, DOUBLE: ctypes.c_double}
ONE = {compute: kind(1) for compute, kind in SCALARS.items()}
ZERO = {compute: kind(0) for compute, kind in SCALARS.items()}


class Matrices(NamedTuple):
    """An array's shape, strides in bytes, and dtype."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any


class Factor(NamedTuple):
    """A matrix, or stack of them, as cuBLAS is told about it; strides count elements."""

    operation: int  # what makes (columns, rows) of the memory read by columns
    leading: int  # elements between columns in memory
    stack: tuple[int, ...]  # strides of the leading axes


class Many(NamedTuple):
    """One axis of a stack of products: its length, and the strides of a, b and out along it."""

    length: int
    strides: tuple[int, int, int]


class Recipe(NamedTuple):
    """What cuBLAS is called with, but for the addresses."""

    copied: tuple[bool, bool] = (False, False)  # whether a or b has neither rows nor columns that are contiguous
    swapped: bool = False  # whether outᵀ = bᵀ·aᵀ is computed as what it is: b and a change places
    zero: bool = False  # whether there is nothing to add up
    function: str = ""
    offsets: tuple[tuple[int, ...], ...] = ()  # in bytes from the first elements of a, b and out, for every call
    sizes: tuple[Any, ...] = ()
    matrices: tuple[tuple[int, ...], ...] = ()  # type, leading dimension and stride of a, b and out
    beta: Any = None
    end: tuple[int, ...] = ()


def matmul(a: Array, b: Array, out: Array) -> None:
    """Write a·b to out: matrices (M, K) and (K, N), or stacks of them whose leading axes broadcast.

    Parameters
    ----------
    a, b : array
        Of one dtype, float32, float64 or bfloat16. Plain or transposed views are taken as they are.
    out : array
        Of that dtype, or float32 for bfloat16 factors; its rows or its columns must be contiguous.

    Raises
    ------
    XpcnnError
        When shapes or dtypes do not fit together, or there is no cuBLAS.
    """
    recipe = _recipe(*(Matrices(x.shape, x.strides, x.dtype) for x in (a, b, out)), policy.current().products)
    if any(recipe.copied):
        a, b = (runtime.contiguous(x) if copied else x for x, copied in zip((a, b), recipe.copied, strict=True))
        matmul(a, b, out)
    elif recipe.zero:
        out[...] = 0
    elif recipe.offsets:
        first, second = (b, a) if recipe.swapped else (a, b)
        _handle(stream.place()).multiply(recipe, stream.address(first), stream.address(second), stream.address(out))


@lru_cache(4096)
def _recipe(a: Matrices, b: Matrices, out: Matrices, products: str) -> Recipe:
    """Work out how to call cuBLAS; see `matmul`."""
    (kind, result), compute = _types(a, b, out, products)
    _check_shapes(a, b, out)
    if 0 in out.shape or not a.shape[-1]:
        return Recipe(zero=0 not in out.shape)
    target, first, second = map(_factor, (out, a, b))
    if target is None:
        raise XpcnnError("a product can be written only to matrices with contiguous rows or columns.")
    if first is None or second is None:
        return Recipe(copied=(first is None, second is None))
    if target.operation != TRANSPOSED:
        return _plain((first, second, target), (a, b, out), (kind, kind, result), compute)
    flipped = second, first, target  # out's columns are contiguous
    views = tuple(map(_transposed, (b, a, out)))
    return _plain(tuple(map(_flipped, flipped)), views, (kind, kind, result), compute)._replace(swapped=True)


def _plain(factors: Sequence[Factor], arrays: Sequence[Matrices], kinds: Sequence[int], compute: int) -> Recipe:
    """Return the recipe for a, b and an out with contiguous rows."""
    (a, b, out), (first, second, to) = factors, arrays
    rows, inner = first.shape[-2:]
    columns = second.shape[-1]
    axes = _axes(a, b, out, to.shape)
    if len(axes) == 1 and _is_one_matrix(a, out, rows, axes[0]):
        rows, axes = rows * axes[0].length, []
    batch = max(axes, key=lambda axis: axis.length, default=None)
    name = "cublasGemmEx" if batch is None else "cublasGemmStridedBatchedEx"
    strides = [()] * 3 if batch is None else [(step,) for step in batch.strides]
    count = () if batch is None else (batch.length,)
    sizes = b.operation, a.operation, columns, rows, inner
    wide = max(*sizes, a.leading, b.leading, out.leading, *count) > MOST
    bytes_each = [x.dtype.itemsize for x in arrays]
    return Recipe(
        function=name + "_64" * wide,
        offsets=tuple(_offsets([axis for axis in axes if axis is not batch], bytes_each)),
        sizes=(*sizes, ctypes.byref(ONE[compute])),
        matrices=tuple((kind, x.leading, *step) for kind, x, step in zip(kinds, factors, strides, strict=True)),
        beta=ctypes.byref(ZERO[compute]),
        end=(*count, compute, DEFAULT_ALGORITHM),
    )


def _types(a: Matrices, b: Matrices, out: Matrices, products: str) -> tuple[tuple[int, int], int]:
    """Return cuBLAS's names for the dtypes of the factors and of out, and for what to compute in."""
    factor, result = str(a.dtype), str(out.dtype)
    fits = result == factor or (factor, result) == ("bfloat16", "float32")
    if factor not in DATA or str(b.dtype) != factor or not fits:
        raise ArrayTypeError(f"no product of {a.dtype} and {b.dtype} is written to {out.dtype}.")
    if factor == "float64":
        compute = DOUBLE
    else:
        compute = FAST_TF32 if factor == "float32" and products == "tf32" else FLOAT
    return (DATA[factor], DATA[result]), compute


def _check_shapes(a: Matrices, b: Matrices, out: Matrices) -> None:
    """Raise unless out has the shape of a·b: cuBLAS would write beside it."""
    if min(len(a.shape), len(b.shape)) > 1 and a.shape[-1] == b.shape[-2]:
        with suppress(ValueError):
            if (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]) == tuple(out.shape):
                return
    raise XpcnnError(f"{tuple(out.shape)} is not the shape of a product of {tuple(a.shape)} and {tuple(b.shape)}.")


def _factor(x: Matrices) -> Factor | None:
    """Describe a matrix or stack of them with contiguous rows or columns, or return None."""
    size = x.dtype.itemsize
    if any(step % size for step in x.strides):
        return None
    *stack, down, across = (step // size for step in x.strides)
    rows, columns = x.shape[-2:]
    steps = tuple(0 if n == 1 else step for n, step in zip(x.shape, stack, strict=False))
    for operation, step, length, leading, others in (
        (AS_IT_IS, across, columns, down, rows),
        (TRANSPOSED, down, rows, across, columns),
    ):
        apart = leading if others > 1 else length
        if (step == 1 or length == 1) and apart >= length:
            return Factor(operation, apart, steps)
    return None


def _transposed(x: Matrices) -> Matrices:
    """Return what the transposed view of an array is."""
    return x._replace(shape=(*x.shape[:-2], x.shape[-1], x.shape[-2]))  # nobody asks for its strides


def _flipped(x: Factor) -> Factor:
    """Return what the transposed view of a factor is."""
    return x._replace(operation=TRANSPOSED - x.operation)


def _axes(a: Factor, b: Factor, out: Factor, shape: tuple[int, ...]) -> list[Many]:
    """Return the axes of the stack, as few as describe it: those of length 1 left out, neighbours made one."""
    missing = [(0,) * (len(out.stack) - len(x.stack)) for x in (a, b, out)]
    steps = zip(*(none + x.stack for none, x in zip(missing, (a, b, out), strict=True)), strict=True)
    axes: list[Many] = []
    for length, (sa, sb, so) in zip(shape, steps, strict=False):
        strides = sa, sb, so
        if length == 1:
            continue
        if axes and all(outer == inner * length for outer, inner in zip(axes[-1].strides, strides, strict=True)):
            length *= axes.pop().length
        axes.append(Many(length, strides))
    return axes


def _is_one_matrix(a: Factor, out: Factor, rows: int, axis: Many) -> bool:
    """Whether a stack times one matrix is a single product, of the stack's matrices on top of each other."""
    one_after_another = axis.strides == (rows * a.leading, 0, rows * out.leading)
    return one_after_another and a.operation == AS_IT_IS


def _offsets(axes: Sequence[Many], bytes_each: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield how many bytes from their first elements a, b and out start, for every product along some axes."""
    for place in product(*(range(axis.length) for axis in axes)):
        steps = (sum(i * axis.strides[x] for i, axis in zip(place, axes, strict=True)) for x in range(3))
        yield tuple(step * size for step, size in zip(steps, bytes_each, strict=True))


class Handle:
    """cuBLAS on one device and stream, with a workspace of its own."""

    def __init__(self, library: Any, here: stream.Place) -> None:
        stream.refuse_capture(here, "cuBLAS's handle")
        self._library, self._stream, self._lock = library, here[1], Lock()
        self._handle = ctypes.c_void_p()
        self._check("cublasCreate_v2", ctypes.byref(self._handle))
        self._check("cublasSetMathMode", self._handle, DEFAULT_MATH)
        self._workspace = stream.own_memory(WORKSPACE)  # recorded work uses it too: it is never let go of

    def multiply(self, recipe: Recipe, a: int, b: int, out: int) -> None:
        """Let cuBLAS do it on the stream, with arrays at these addresses."""
        of_a, of_b, of_out = recipe.matrices
        with self._lock:
            self._check("cublasSetStream_v2", self._handle, self._stream)  # forgets the workspace
            self._check("cublasSetWorkspace_v2", self._handle, self._workspace.ptr, WORKSPACE)
            for to_a, to_b, to_out in recipe.offsets:
                factors = b + to_b, *of_b, a + to_a, *of_a
                target = recipe.beta, out + to_out, *of_out
                self._check(recipe.function, self._handle, *recipe.sizes, *factors, *target, *recipe.end)

    def _check(self, name: str, *arguments: Any) -> None:
        """Call a function of cuBLAS and raise what it reports."""
        if status := _function(self._library, name)(*arguments):
            text = _function(self._library, "cublasGetStatusString")(status).decode()
            raise BackendError(f"{name} failed with {text}.")


class SIZE:
    """Stands for a count in `PROTOTYPES`: 32 bits, or 64 in the functions whose names say so."""


ENUM, POINTER, STRIDE = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
GEMM = [POINTER, ENUM, ENUM, SIZE, SIZE, SIZE, POINTER]  # handle, operations, m, n, k, alpha
MATRIX = [POINTER, ENUM, SIZE]  # address, type, leading dimension
PROTOTYPES: dict[str, list[Any]] = {
    "cublasCreate_v2": [POINTER],
    "cublasSetMathMode": [POINTER, ENUM],
    "cublasSetStream_v2": [POINTER, POINTER],
    "cublasSetWorkspace_v2": [POINTER, POINTER, ctypes.c_size_t],
    "cublasGetStatusString": [ENUM],
    "cublasGemmEx": [*GEMM, *MATRIX, *MATRIX, POINTER, *MATRIX, ENUM, ENUM],
    "cublasGemmStridedBatchedEx": [
        *(*GEMM, *MATRIX, STRIDE, *MATRIX, STRIDE, POINTER, *MATRIX, STRIDE, SIZE, ENUM, ENUM)
    ],
}


@cache
def _handle(here: stream.Place) -> Handle:
    """Return the handle of a device and stream, made when it is first asked for."""
    return Handle(_library(), here)


@cache
def _function(library: Any, name: str) -> Any:
    """Return a function of the library with its types."""
    function = getattr(library, name)
    size = ctypes.c_int64 if name.endswith("_64") else ctypes.c_int
    function.argtypes = [size if kind is SIZE else kind for kind in PROTOTYPES[name.removesuffix("_64")]]
    function.restype = ctypes.c_char_p if name == "cublasGetStatusString" else ctypes.c_int
    return function


@cache
def _library() -> Any:
    """Return the cuBLAS that CuPy uses."""
    (file,) = stream.load("cublas")
    return ctypes.CDLL(file)
