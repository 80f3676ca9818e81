"""One fixture runs each test on every installed backend; the arrays it makes are checked in every respect."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace, device

from xpcnn.backend import Backend, cuda_devices, resolve_backend
from xpcnn.kernels import native

sys.path.insert(0, str(Path(__file__).parent))  # for `import oracles`

import browser
import emulator
import mpi

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest value, or absolute if all are below 1
GRAPHS = ("numpy-as-cuda", "cupy")  # the backends that can record work
ALWAYS = ("numpy", "numpy-readonly", "numpy-plain", "array_api_strict", "array_api_strict-device1")


@dataclass(frozen=True)
class Arrays:
    """Makes arrays of one backend and checks what comes back."""

    id: str
    backend: Backend

    @property
    def xp(self) -> Any:
        return self.backend.xp

    def __call__(self, host: Any, dtype: str | None = None) -> Any:
        """Make a device array from a host array, which the array does not share."""
        host = np.array(host, dtype=dtype)
        if self.id == "numpy-readonly":
            host.flags.writeable = False
        return self.backend.asarray(host)

    def check(self, actual: Any, expected: Any, like: Any, tolerance: float | None = None) -> None:
        """Assert an array's namespace, device, dtype and shape, and its values to a tolerance."""
        assert array_namespace(actual) is array_namespace(like)
        assert device(actual) == device(like)
        assert actual.dtype == like.dtype
        expected = np.asarray(expected)
        assert tuple(actual.shape) == expected.shape
        found = self.backend.to_numpy(actual)
        limit = TOLERANCE[found.dtype.name] if tolerance is None else tolerance
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit * scale)


def installed() -> list[str]:
    """Return the ids of the backends that can run here."""
    there = [name for name in ("torch", "jax") if importlib.util.find_spec(name) is not None]
    emulated = ["numpy-as-cuda"] if emulator.compiler() else []
    return [*ALWAYS, *emulated, *there, *(["cupy"] if cuda_devices()[0] else [])]


def make_arrays(name: str) -> Arrays:
    """Return the array maker of an id."""
    backend = resolve_backend(name.partition("-")[0])
    if name.endswith("device1"):
        backend = replace(backend, device=backend.xp.Device("device1"))
    return Arrays(name, backend)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require", action="append", default=[], help="fail unless this can run: a backend, chromium, mpi, ..."
    )
    parser.addoption("--only", action="append", default=[], help="run backend tests on these backends alone")


def pytest_configure(config: pytest.Config) -> None:
    there = [*installed(), *(["chromium"] if browser.executable() else []), *(["mpi"] if mpi.available() else [])]
    there += [name for name in ("onnxruntime", "keras", "sklearn") if importlib.util.find_spec(name) is not None]
    missing = [name for name in config.getoption("--require") if name not in there]
    if missing:
        raise pytest.UsageError(f"what is required cannot run here: {', '.join(missing)} ({cuda_devices()[1]})")


def pytest_report_header(config: pytest.Config) -> str:
    return f"backends: {', '.join(chosen(config))}"


def chosen(config: pytest.Config) -> list[str]:
    only = config.getoption("--only")
    return [name for name in installed() if not only or name in only]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "arrays" in metafunc.fixturenames:
        metafunc.parametrize("arrays", chosen(metafunc.config), indirect=True)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", ["float32", "float64"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what says nothing new.

    JAX compiles every operation anew for every shape and dtype; float64, which is held closer, has to do. Native
    kernels compute in float32 alone, so that NumPy's own are "numpy" in float64 and "numpy-plain" in float32.
    """
    needless = {("jax", "float32"), ("numpy-plain", "float64")}
    dropped = [item for item in items if (_params(item).get("arrays"), _params(item).get("dtype")) in needless]
    dropped += [item for item in items if "graphs" in item.fixturenames and _params(item)["arrays"] not in GRAPHS]
    config.hook.pytest_deselected(items=dropped)
    left_out = set(dropped)
    items[:] = [item for item in items if item not in left_out]


def _params(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.fixture
def arrays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    if request.param == "numpy-plain":
        monkeypatch.setattr(native, "library", lambda: None)
    if request.param == "numpy-as-cuda":
        emulator.install(monkeypatch)
    return make_arrays(request.param)


@pytest.fixture
def graphs(arrays: Arrays) -> Arrays:
    """Return a backend that can record work as a graph; tests that use this run on no other."""
    return arrays


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_240_607)
