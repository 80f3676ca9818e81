"""cuBLAS as it is called: a stand-in multiplies from the raw arguments by BLAS's own, column-major definition."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from ctypes import POINTER, c_double, c_float, c_int, c_int64, c_longlong, c_size_t, c_void_p
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn import BackendError, XpcnnError
from xpcnn.kernels import cuda, policy, reference
from xpcnn.kernels.cuda import blas, runtime, stream

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}
STORED = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 14: np.dtype(ml_dtypes.bfloat16)}  # cudaDataType_t
HEADERS = [*(Path(p) / "nvidia" for p in sys.path), Path("/usr/local/cuda/include")]


def gemm_type(size, batched):
    """Return the C type of cublasGemmEx or cublasGemmStridedBatchedEx as cublas_api.h declares them."""
    stride = [c_longlong] if batched else []
    count = [size] if batched else []
    return ctypes.CFUNCTYPE(
        *(c_int, c_void_p, c_int, c_int, size, size, size, c_void_p),  # status; handle, transa, transb, m, n, k, alpha
        *(c_void_p, c_int, size, *stride),  # A, Atype, lda, strideA
        *(c_void_p, c_int, size, *stride),  # B, Btype, ldb, strideB
        *(c_void_p, c_void_p, c_int, size, *stride, *count),  # beta, C, Ctype, ldc, strideC, batchCount
        *(c_int, c_int),  # computeType, algo
    )


def column_major(address, kind, leading, rows, columns):
    """Return the elements of a matrix that lies in memory column by column, as (rows, columns), and write access."""
    if leading < max(1, rows):
        raise ValueError
    span = (columns - 1) * leading + rows
    raw = (ctypes.c_char * (span * STORED[kind].itemsize)).from_address(address)
    flat = np.frombuffer(raw, STORED[kind])
    return flat, np.arange(rows)[:, None] + np.arange(columns)[None, :] * leading


class Library:
    """cuBLAS's functions, as C functions of the header's types; what was called is noted."""

    def __init__(self):
        self.calls, self.streams, self.workspaces, self.created = [], [], [], 0
        self.stream = self.workspace = None
        self.status = 0
        for size, suffix in ((c_int, ""), (c_int64, "_64")):
            for name, batched in (("cublasGemmEx", False), ("cublasGemmStridedBatchedEx", True)):
                kind = gemm_type(size, batched)
                setattr(self, name + suffix, kind(self._gemm(name + suffix, batched)))
        self.cublasCreate_v2 = ctypes.CFUNCTYPE(c_int, POINTER(c_void_p))(self._create)
        self.cublasSetMathMode = ctypes.CFUNCTYPE(c_int, c_void_p, c_int)(lambda handle, mode: 0 if mode == 0 else 7)
        self.cublasSetStream_v2 = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)(self._set_stream)
        self.cublasSetWorkspace_v2 = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)(self._set_workspace)
        self._text = ctypes.create_string_buffer(b"CUBLAS_STATUS_EXECUTION_FAILED")
        self.cublasGetStatusString = ctypes.CFUNCTYPE(c_void_p, c_int)(lambda status: ctypes.addressof(self._text))

    def _create(self, handle):
        self.created += 1
        handle[0] = 4711
        return 0

    def _set_stream(self, handle, pointer):
        self.stream, self.workspace = pointer or 0, None  # the real one forgets its workspace
        return 0 if handle == 4711 else 1

    def _set_workspace(self, handle, pointer, size):
        self.workspace = pointer, size
        return 0 if handle == 4711 and pointer % 256 == 0 else 7

    def _gemm(self, name, batched):
        def run(handle, ta, tb, m, n, k, alpha, *rest):
            a, rest = rest[: 3 + batched], rest[3 + batched :]
            b, rest = rest[: 3 + batched], rest[3 + batched :]
            beta, *rest = rest
            c, rest = rest[: 3 + batched], rest[3 + batched :]
            count, (compute, algorithm) = (rest[0], rest[1:]) if batched else (1, rest)
            self.calls.append(SimpleNamespace(name=name, m=m, n=n, k=k, count=count, compute=compute, a=a, b=b, c=c))
            if self.status:
                return self.status
            scalar = c_double if compute == 70 else c_float
            one, zero = (ctypes.cast(p, POINTER(scalar))[0] for p in (alpha, beta))
            fits = handle == 4711 and algorithm == -1 and (one, zero) == (1, 0) and self.workspace
            fits = fits and {ta, tb} <= {0, 1} and min(m, n, k, count) > 0
            if not fits or a[1] != b[1] or (a[1] == 1) != (compute == 70) or compute not in (68, 70, 77):
                return 7
            try:
                for i in range(count):
                    at = [x[0] + i * (x[3] if batched else 0) * STORED[x[1]].itemsize for x in (a, b, c)]
                    self._one(ta, tb, m, n, k, [(p, x[1], x[2]) for p, x in zip(at, (a, b, c), strict=True)])
            except ValueError:
                return 7
            return 0

        return run

    @staticmethod
    def _one(ta, tb, m, n, k, matrices):
        """Do C = op(A)·op(B), all by columns."""
        (pa, ka, lda), (pb, kb, ldb), (pc, kc, ldc) = matrices
        a, at = column_major(pa, ka, lda, *((k, m) if ta else (m, k)))
        b, bt = column_major(pb, kb, ldb, *((n, k) if tb else (k, n)))
        c, ct = column_major(pc, kc, ldc, m, n)
        first, second = a[at.T if ta else at].astype(np.float64), b[bt.T if tb else bt].astype(np.float64)
        c[ct] = np.einsum("ik,kj->ij", first, second).astype(STORED[kc])


@pytest.fixture
def library(monkeypatch):
    """cuBLAS's stand-in."""
    yield stand_in(monkeypatch)
    blas._function.cache_clear()


def stand_in(monkeypatch):
    """Put it in cuBLAS's place, on NumPy arrays, on a stream numbered 99 of device 0."""
    made = Library()
    made.place, made.capturing = (0, 99, 0), False
    buffers = []

    def own_memory(size):
        buffers.append(np.empty(size + 256, np.uint8))
        return SimpleNamespace(ptr=-(-buffers[-1].ctypes.data // 256) * 256)

    monkeypatch.setattr(blas, "_library", lambda: made)
    monkeypatch.setattr(stream, "place", lambda: made.place)
    monkeypatch.setattr(stream, "is_capturing", lambda here: made.capturing)
    monkeypatch.setattr(stream, "address", lambda x: x.__array_interface__["data"][0])
    monkeypatch.setattr(stream, "own_memory", own_memory)
    monkeypatch.setattr(runtime, "contiguous", np.ascontiguousarray)
    monkeypatch.setattr(runtime, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
    blas._handle.cache_clear()
    blas._function.cache_clear()
    return made


def numbers(shape, dtype, seed=0):
    """Return whole numbers, so that every product is exact in any dtype."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(DTYPES[dtype])


def by_definition(a, b):
    """Return the products, by sums of products of elements."""
    return np.einsum("...ik,...kj->...ij", a.astype(np.float64), b.astype(np.float64))


VIEWS = {
    "plain": lambda x: x,
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "rows apart": lambda x: np.concatenate([x, x[..., :1] * 0 + 9], axis=-1)[..., : x.shape[-1]],
    "columns apart": lambda x: np.ascontiguousarray(
        np.concatenate([x, x[..., :1, :] * 0 + 9], axis=-2).swapaxes(-1, -2)
    ).swapaxes(-1, -2)[..., : x.shape[-2], :],
    "every other": lambda x: np.repeat(np.repeat(x, 2, -1), 2, -2)[..., ::2, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :],
    "one row": lambda x: np.broadcast_to(x[..., :1, :], x.shape),
}
COPIED = {"every other", "backwards", "one row"}


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize(("first", "second"), list(product(VIEWS, repeat=2)))
@pytest.mark.parametrize("stack", [(), (3,)])
def test_every_order_of_memory(library, monkeypatch, first, second, stack, stored):
    copies = []
    monkeypatch.setattr(runtime, "contiguous", lambda x: copies.append(x) or np.ascontiguousarray(x))
    a, b = VIEWS[first](numbers((*stack, 4, 5), stored)), VIEWS[second](numbers((*stack, 5, 6), stored, 1))
    out = np.full((*stack, 4, 6), np.nan, a.dtype)
    blas.matmul(a, b, out)
    np.testing.assert_array_equal(out.astype(np.float64), by_definition(a, b))
    assert len(copies) == (first in COPIED) + (second in COPIED)
    assert len(library.calls) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.sampled_from([((), ()), ((4,), (4,)), ((4,), ()), ((), (4,)), ((1,), (1,)), ((4,), (1,)), ((1,), (4,)),
                     ((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((2, 3), (2, 1)),
                     ((1, 3), (2, 3)), ((2, 3, 2), (3, 1)), ((1, 1), (1,))]),
    st.sampled_from(list(VIEWS)), st.sampled_from(list(VIEWS)),
    st.sampled_from(["plain", "transposed", "rows apart", "columns apart"]),
)  # fmt: skip
def test_all_shapes_that_broadcast(sizes, stacks, first, second, target):
    (m, k, n), (over, under) = sizes, stacks
    with pytest.MonkeyPatch.context() as patch:
        library = stand_in(patch)
        a, b = VIEWS[first](numbers((*over, m, k), "float64")), VIEWS[second](numbers((*under, k, n), "float64", 1))
        expected = by_definition(a, b)
        out = VIEWS[target](np.full(expected.shape, np.nan))
        blas.matmul(a, b, out)
        np.testing.assert_array_equal(out, expected)
        assert len(library.calls) <= 6


def test_what_is_beside_a_view_stays(library):
    whole = np.full((4, 9), 7.0)
    blas.matmul(numbers((4, 3), "float64"), numbers((3, 5), "float64"), whole[:, 2:7])
    assert (whole[:, [0, 1, 7, 8]] == 7).all()


def test_a_stack_times_one_matrix_is_one_product(library):
    a, b, out = numbers((6, 4, 5), "float32"), numbers((5, 3), "float32"), np.empty((6, 4, 3), np.float32)
    blas.matmul(a, b, out)
    assert [(call.name, call.n, call.count) for call in library.calls] == [("cublasGemmEx", 24, 1)]
    blas.matmul(numbers((4, 5), "float32"), a.mT.copy(), np.empty((6, 4, 4), np.float32))
    assert (library.calls[1].name, library.calls[1].count) == ("cublasGemmStridedBatchedEx", 6)
    assert library.calls[1].b[3] == 0  # the one matrix stays where it is


def test_groups_within_a_batch_take_a_call_for_each_of_the_fewer(library):
    a, b = numbers((2, 3, 4), "float32"), numbers((5, 2, 4, 6), "float32", 1)
    out = np.empty((5, 2, 3, 6), np.float32)
    blas.matmul(a, b, out)
    np.testing.assert_array_equal(out, by_definition(a, b))
    assert [call.count for call in library.calls] == [5, 5]


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("stack", [(), (2,), (0,)])
def test_nothing_to_multiply(library, m, k, n, stack):
    out = np.full((*stack, m, n), np.nan)
    blas.matmul(np.empty((*stack, m, k)), np.empty((*stack, k, n)), out)
    assert (out == 0).all()
    assert bool(library.calls) == bool(out.size and k)


@pytest.mark.parametrize(
    ("stored", "result", "products", "compute"),
    [
        *(("float32", "float32", "float32", 68), ("float32", "float32", "tf32", 77)),
        *(("float64", "float64", "float32", 70), ("float64", "float64", "tf32", 70)),
        *(("bfloat16", "bfloat16", "tf32", 68), ("bfloat16", "float32", "float32", 68)),
    ],
)
def test_what_is_computed_in(library, stored, result, products, compute):
    a, b, out = numbers((2, 3), stored), numbers((3, 4), stored), np.empty((2, 4), DTYPES[result])
    with policy.use(products=products):
        blas.matmul(a, b, out)
    assert library.calls[0].compute == compute
    np.testing.assert_array_equal(out.astype(np.float64), by_definition(a, b))


@pytest.mark.parametrize(("a", "b", "out"), [("float32", "float64", "float64"), ("float32", "float32", "float64"),
                                             ("bfloat16", "bfloat16", "float64"), ("bfloat16", "float32", "float32")])  # fmt: skip
def test_dtypes_that_do_not_go_together(library, a, b, out):
    with pytest.raises(XpcnnError, match="no product of"):
        blas.matmul(numbers((2, 2), a), numbers((2, 2), b), numbers((2, 2), out))
    with pytest.raises(XpcnnError, match="no product of int64"):
        blas.matmul(*[np.ones((2, 2), np.int64)] * 3)


@pytest.mark.parametrize(
    ("a", "b", "out"),
    [
        *(((2, 3), (4, 5), (2, 5)), ((2, 3), (3, 5), (5, 2)), ((2, 3), (3, 5), (1, 2, 5)), ((3,), (3, 5), (5,))),
        *(((2, 2, 3), (3, 3, 5), (2, 2, 5)), ((2, 3), (3, 5), (4, 2, 5)), ((1, 2, 3), (1, 3, 5), (4, 2, 5))),
    ],
)
def test_shapes_that_do_not_go_together(library, a, b, out):
    with pytest.raises(XpcnnError, match="not the shape of a product"):
        blas.matmul(np.ones(a), np.ones(b), np.ones(out))
    assert not library.calls


def test_a_target_that_cannot_be_written(library):
    with pytest.raises(XpcnnError, match="contiguous rows or columns"):
        blas.matmul(np.ones((2, 2)), np.ones((2, 2)), np.ones((4, 4))[::2, ::2])


def test_a_handle_for_each_device_and_stream_and_its_workspace_at_every_call(library):
    for place in ((0, 99, 0), (0, 98, 0), (1, 99, 0), (0, 99, 0), (0, 2, 11), (0, 2, 12)):
        library.place = place
        blas.matmul(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))
        assert library.stream == place[1]
        assert library.workspace[1] == 32 << 20
    assert library.created == 5


def test_no_handle_is_made_while_work_is_recorded(library):
    library.capturing = True
    with pytest.raises(BackendError, match="run it once before"):
        blas.matmul(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))
    library.capturing = False
    blas.matmul(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))
    library.capturing = True
    blas.matmul(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))
    assert len(library.calls) == 2


def test_a_failure_is_named(library):
    library.status = 13
    with pytest.raises(BackendError, match="cublasGemmEx failed with CUBLAS_STATUS_EXECUTION_FAILED"):
        blas.matmul(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))


def test_sizes_of_more_than_32_bits_go_to_the_functions_that_count_in_64(library):
    library.status = 13  # nothing is touched
    a = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (2, 3), (4 << 31, 4))
    with pytest.raises(BackendError, match="cublasGemmEx_64 failed"):
        blas.matmul(a, np.ones((3, 4), np.float32), np.ones((2, 4), np.float32))
    assert library.calls[0].b[2] == 1 << 31


def test_the_types_are_the_headers():
    for name, batched in (("cublasGemmEx", False), ("cublasGemmStridedBatchedEx", True)):
        for size, suffix in ((c_int, ""), (c_int64, "_64")):
            found = blas._function(Library(), name + suffix)
            assert list(found.argtypes) == list(gemm_type(size, batched)._argtypes_)
            assert found.restype is c_int


def test_the_constants_are_the_headers():
    found = [path for folder in HEADERS for path in folder.glob("**/cublas_api.h")]
    if not found:
        pytest.skip("cuBLAS's headers are not installed")
    text = found[0].read_text(encoding="utf-8", errors="replace")
    text += (found[0].parent / "library_types.h").read_text(encoding="utf-8", errors="replace")
    values = {name: int(value) for name, value in re.findall(r"(\w+)\s*=\s*(-?\d+)", text)}
    assert {
        "float32": values["CUDA_R_32F"],
        "float64": values["CUDA_R_64F"],
        "bfloat16": values["CUDA_R_16BF"],
    } == blas.DATA
    computes = (values[f"CUBLAS_COMPUTE_{name}"] for name in ("32F", "64F", "32F_FAST_TF32"))
    assert tuple(computes) == (blas.FLOAT, blas.DOUBLE, blas.FAST_TF32)
    assert (values["CUBLAS_OP_N"], values["CUBLAS_OP_T"]) == (blas.AS_IT_IS, blas.TRANSPOSED)
    assert (values["CUBLAS_GEMM_DEFAULT"], values["CUBLAS_DEFAULT_MATH"]) == (blas.DEFAULT_ALGORITHM, blas.DEFAULT_MATH)
    kinds = {"cublasHandle_t": c_void_p, "const void*": c_void_p, "void*": c_void_p, "int": c_int, "int64_t": c_int64,
             "long long int": c_longlong, "size_t": c_size_t, "cudaStream_t": c_void_p, "cublasHandle_t*": c_void_p}  # fmt: skip
    for name in (*blas.PROTOTYPES, "cublasGemmEx_64", "cublasGemmStridedBatchedEx_64"):
        declared = re.search(rf"CUBLASWINAPI {name}\(([^)]*)\)", text)[1].split(",")
        expected = [kinds.get(" ".join(part.split()[:-1]), c_int) for part in declared]  # the others are enumerations
        assert list(blas._function(Library(), name).argtypes) == expected


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cuda_the_library_is_said_to_be_missing():
    blas._library.cache_clear()
    with pytest.raises(BackendError, match="cublas cannot be loaded"):
        blas._library()


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((1, 2, 3), (1, 3, 4)), ((2, 2, 3), (5, 2, 3, 4))]
)
@pytest.mark.parametrize("stored", DTYPES)
def test_the_seams_products_go_to_cublas(library, a, b, stored):
    x, y = numbers(a, stored), numbers(b, stored, 1)
    found = cuda.matmul(x, y, np)
    np.testing.assert_array_equal(found.astype(np.float64), by_definition(x, y))
    assert found.dtype == x.dtype
    assert library.calls


def test_other_products_of_the_seam_are_the_references(library):
    a, b = np.arange(6).reshape(2, 3), np.arange(3)
    np.testing.assert_array_equal(cuda.matmul(a, b, np), reference.matmul(a, b, np))
    assert not library.calls
