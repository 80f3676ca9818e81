"""The CUDA kernels' arithmetic, run on the CPU: the same source, compiled as C++ with one thread.

This proves the index arithmetic where there is no GPU. Where there is one, every other test runs the kernels on it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import xpcnn.kernels
from xpcnn.kernels import Window, reference

SOURCE = Path(xpcnn.kernels.__file__).parent / "cuda" / "windows.cu"
SHIM = """
#define __global__
#define __device__
struct Dim { int x; };
static const Dim gridDim{1}, blockDim{1}, blockIdx{0}, threadIdx{0};
"""
WINDOWS = [
    Window((7, 6), (2, 3), (3, 1), (1, 2), (0, 1), (2, 4)),
    Window((4, 5), (3, 3), (1, 1), (1, 1), (2, 1), (6, 5)),
    Window((9, 9), (2, 2), (2, 2), (1, 1), (0, 0), (2, 3)),
    Window((9,), (3,), (2,), (2,), (1,), (4,)),
    Window((3, 4, 5), (2, 2, 3), (1, 2, 1), (1, 1, 1), (0, 1, 1), (2, 3, 5)),
]


@pytest.fixture(scope="module", params=["float", "double"])
def compiled(request, tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "windows.cpp").write_text(SHIM + SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-DREAL={request.param}"]
    subprocess.run([compiler, *flags, "-o", "windows.so", "windows.cpp"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "windows.so")), np.dtype({"float": "float32", "double": "float64"}[request.param])


@pytest.mark.parametrize("win", WINDOWS, ids=lambda win: f"{len(win.size)}d-{win.stride}-{win.dilation}")
def test_the_kernels_do_what_the_reference_does(compiled, win, rng):
    library, real = compiled
    x = rng.standard_normal((2, 3, *win.size)).astype(real)
    expected = reference.im2col(x, win, np)
    cols = np.full(expected.shape, np.nan, real)
    _call(library.im2col, x, cols, win)
    np.testing.assert_array_equal(cols, expected)
    back = np.full(x.shape, np.nan, real)
    _call(library.col2im, cols, back, win)
    np.testing.assert_allclose(back, reference.col2im(cols, 2, 3, win, np), rtol=1e-5)


@pytest.mark.parametrize("real", ["float", "double"])
def test_nvcc_compiles_them(real, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    for target in ("sm_80", "sm_90"):
        command = [
            nvcc,
            f"-arch={target}",
            "-cubin",
            "-Werror=all-warnings",
            f"-DREAL={real}",
            "-o",
            "out.cubin",
            str(SOURCE),
        ]
        subprocess.run(command, cwd=tmp_path, check=True)


def _call(kernel, source, target, win):
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (source, target)]
    kernel(*pointers, ctypes.c_longlong(target.size), ctypes.c_int(2), ctypes.c_int(3), *win.as_three_axes())
