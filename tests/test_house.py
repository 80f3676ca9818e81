"""The layers of the house: imports point only downward, and importing the library is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xpcnn

PACKAGE = Path(xpcnn.__file__).parent
STOREYS = [  # from the ground up; a module may import what stands below it, and its own package
    {"errors", "files"},
    {"backend"},
    {"kernels", "random"},
    {"ops", "optim", "parallel"},
    {"layers", "data", "metrics"},
    {"interop", "model_file"},
    {"models", "model"},
    {"training", "verify"},
    {"report", "classifier"},
    {"serve"},
    {"cli"},
]
LEVEL = {name: number for number, storey in enumerate(STOREYS) for name in storey}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    *("cupy", "torch", "jax", "matplotlib", "onnx", "PIL", "click", "rich", "safetensors", "threadpoolctl"),
    *("pooch", "requests", "mpi4py", "onnxruntime", "h5py", "sklearn"),
}


def storey_of(path):
    """Return the name of the package or module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Yield the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_only_downward(path):
    own = storey_of(path)
    if own in ("__init__", "__main__"):
        return
    for module in imported(path):
        parts = module.split(".")
        if parts[0] == "xpcnn" and len(parts) > 1 and parts[1] in LEVEL:
            assert parts[1] == own or LEVEL[parts[1]] < LEVEL[own], f"{own} imports {module}"


def test_every_module_has_its_storey():
    assert {storey_of(path) for path in FILES} - {"__init__", "__main__"} == set(LEVEL)


def test_only_the_backend_and_the_cuda_kernels_name_cupy():
    users = {str(path.relative_to(PACKAGE)) for path in FILES if any(m.split(".")[0] == "cupy" for m in imported(path))}
    assert all(user == "backend.py" or user.startswith("kernels/cuda/") for user in users)


def test_modules_stay_small():
    long = {str(path): len(path.read_text().splitlines()) for path in FILES if len(path.read_text().splitlines()) > 400}
    assert not long


def test_importing_it_is_light():
    code = f"import xpcnn, sys; print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_what_compat_copies_is_still_all_there():
    program = (
        "import xpcnn; xpcnn.resolve_backend('cpu'); import array_api_compat.numpy as a, numpy as np;"
        "assert a.random is np.random and a.testing is np.testing and not hasattr(a, 'nonsense');"
        "assert xpcnn.training.Trainer is xpcnn.Trainer and xpcnn.report and xpcnn.verify"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
