"""The switch: which backend a name gives, and what is said when it is not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpcnn as xc
from xpcnn.backend import cuda_devices

CUPY = importlib.util.find_spec("cupy") is not None
GPU = cuda_devices()[0] > 0


@pytest.mark.parametrize("name", ["cpu", "numpy", " CPU "])
def test_cpu_is_numpy(name):
    backend = xc.resolve_backend(name)
    assert (backend.name, backend.device, backend.xp.__name__) == ("numpy", "cpu", "array_api_compat.numpy")
    assert xc.resolve_backend(backend) is backend


@pytest.mark.skipif(GPU, reason="there is a GPU here, which auto takes")
def test_auto_falls_back_to_the_cpu_and_says_why():
    backend = xc.resolve_backend("auto")
    assert backend.name == "numpy"
    assert "auto chose the CPU: CuPy is" in backend.reason


@pytest.mark.parametrize(
    "name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:1.0", "cpu:0", "numpy2", "cuda:²", None, 3]
)
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(xc.BackendError, match="auto, cpu, cuda, cuda:N, numpy, cupy, torch, jax, array_api_strict"):
        xc.resolve_backend(name)


@pytest.mark.skipif(CUPY, reason="CuPy is installed")
@pytest.mark.parametrize("name", ["cuda", "cupy", "cuda:0", "cuda:7"])
def test_cuda_without_cupy_says_what_to_install(name):
    with pytest.raises(xc.BackendError, match=r"CuPy is not installed; install it with pip install 'xpcnn\[cuda13\]'"):
        xc.resolve_backend(name)


FAKE = """
class Device:
    def __init__(self, index): self.id = index
class runtime:
    @staticmethod
    def getDeviceCount(): {body}
    @staticmethod
    def getDeviceProperties(index): return {{"name": b"Pretend"}}
class cuda:
    runtime = runtime
    Device = Device
"""


@pytest.mark.parametrize(
    ("body", "name", "says"),
    [
        ("raise RuntimeError('cudaErrorNoDevice: no CUDA-capable device is detected')", "cuda", "no usable NVIDIA driver or device (cudaErrorNoDevice"),
        ("return 0", "cuda", "the driver reports no CUDA device"),
        ("return 1", "cuda:1", "cuda:1 was asked for, but CuPy sees 1 device(s): cuda:0."),
        ("return 4", "cuda:9", "cuda:0 to cuda:3"),
        ("raise RuntimeError('driver too old')", "auto", "auto chose the CPU: CuPy is installed but finds no usable"),
    ],
)  # fmt: skip
def test_what_cupy_reports_becomes_one_sentence(tmp_path, body, name, says):
    """A stand-in CuPy that only counts devices; nothing is computed with it."""
    (tmp_path / "cupy.py").write_text(FAKE.format(body=body))
    code = f"""
import xpcnn
try:
    print(xpcnn.resolve_backend({name!r}).reason)
except xpcnn.BackendError as error:
    print(error)
"""
    assert says in _python(code, PYTHONPATH=f"{tmp_path}{os.pathsep}{_root()}")


def test_the_cpu_never_imports_cupy(tmp_path):
    """Not for training, prediction or saving: a CuPy that cannot be imported stands in the way."""
    (tmp_path / "cupy.py").write_text("raise SystemExit('cupy was imported')")
    code = """
import sys, numpy as np, xpcnn as xc
model = xc.Model(xc.models.lenet5(), device="cpu")
trainer = xc.Trainer(model, xc.optim.adam(0.001))
x, t = np.zeros((8, 1, 28, 28), np.uint8), np.arange(8)
trainer.fit((x, t), (x, t), epochs=1, batch_size=4)
model.save("m.safetensors")
xc.Model.load("m.safetensors", device="cpu").predict(x)
from xpcnn.cli import main
assert main(["predict", "--help"]) == 0
assert "cupy" not in sys.modules
print("never")
"""
    assert _python(code, cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{_root()}").endswith("never\n")


def test_arrays_go_there_and_back(arrays):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = arrays.backend.asarray(host)
    arrays.check(there, host, arrays(host), 0.0)
    again = arrays.backend.asarray(there)
    arrays.check(again, host, there, 0.0)
    back = arrays.backend.to_numpy(there)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, host)
    arrays.backend.synchronize()
    arrays.check(arrays.backend.asarray(host, "float64"), host, arrays(host, "float64"), 0.0)


@pytest.mark.parametrize(
    "kind", ["read-only", "reversed", "transposed", "big-endian", "scalar", "empty", "list", "uint8"]
)
def test_any_host_array_is_taken(arrays, kind):
    plain = np.arange(6, dtype=np.float64).reshape(2, 3)
    host = {
        "read-only": np.frombuffer(plain.tobytes()).reshape(2, 3), "reversed": plain[::-1, ::-1], "transposed": plain.T,
        "big-endian": plain.astype(">f8"), "scalar": np.float64(3.0), "empty": plain[:0], "list": [1.0, 2.0],
        "uint8": plain.astype(np.uint8),
    }[kind]  # fmt: skip
    there = arrays.backend.asarray(host)
    np.testing.assert_array_equal(arrays.backend.to_numpy(there), host)


def test_what_is_no_array_of_numbers_is_refused(arrays):
    with pytest.raises(TypeError, match="needs numbers"):
        arrays.backend.asarray(["seven"])


def test_another_librarys_array_is_refused():
    other = xc.resolve_backend("array_api_strict").asarray([1.0])
    with pytest.raises(TypeError, match=r"array_api_strict.*backend is numpy"):
        xc.resolve_backend("numpy").asarray(other)


def test_results_stay_on_a_device_that_is_not_the_default():
    from array_api_strict import Device

    backend = xc.backend.Backend("array_api_strict", xc.resolve_backend("array_api_strict").xp, Device("device1"))
    model = xc.Model(xc.models.lenet5((1, 12, 12), 3), backend)
    trainer = xc.Trainer(model, xc.optim.adam(0.001))
    loss = trainer.step(np.zeros((2, 1, 12, 12), np.float32), np.array([0, 2]))
    assert loss.device == Device("device1")
    assert all(array.device == Device("device1") for array in model.parameters().values())


def _python(code, cwd=None, **environment):
    """Run code in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = os.environ | environment
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _root():
    return Path(xc.__file__).parents[1]
