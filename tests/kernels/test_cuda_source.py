"""The CUDA kernels' sources compile for the GPUs that matter, in every type that they are asked for.

What they compute is tested by all other tests: on the backend ``numpy-as-cuda``, which compiles the same text for the
CPU (`emulator`), and on ``cupy`` where there is a GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import xpcnn.kernels
from xpcnn.kernels.cuda import runtime

FOLDER = Path(xpcnn.kernels.__file__).parent / "cuda"
FILES = sorted(path.name for path in FOLDER.glob("*.cu"))
TYPES = {"float": "float", "double": "double", "bf16": "float"}  # what is stored, what is computed in
CASES = [  # what is stored, what counts elements, for which GPUs
    ("float", "int", ("sm_80", "sm_90")),
    ("double", "count", ("sm_80",)),
    ("bf16", "count", ("sm_90",)),
]


@pytest.mark.parametrize(("real", "index", "targets"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("file", FILES)
def test_nvcc_compiles_them(file, real, index, targets, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    text = runtime.text(file, REAL=real, NUMBER=TYPES[real], INDEX=index, SOURCE="unsigned char", LOSS=real)
    compile_all(nvcc, text, tmp_path, targets)


@pytest.mark.parametrize("file", [*FILES, *(path.name for path in sorted(FOLDER.glob("*.cuh")))])
def test_they_can_be_written_in_any_encoding(file):
    assert (FOLDER / file).read_bytes().isascii()  # CuPy writes them to a file in the system's


def compile_all(nvcc, text, folder, targets):
    """Compile a source as NVRTC would, without CUDA's headers to lean on."""
    assert not re.search(r"^\s*#include", text, re.MULTILINE), "NVRTC has no headers"
    (folder / "kernels.cu").write_text(text, encoding="utf-8")
    for target in targets:
        command = [
            nvcc,
            f"-arch={target}",
            "-std=c++17",
            "-cubin",
            "-Werror=all-warnings",
            "-Wno-deprecated-gpu-targets",
        ]
        done = subprocess.run([*command, "-o", "out.cubin", "kernels.cu"], cwd=folder, capture_output=True, text=True)
        assert not done.returncode, done.stderr
