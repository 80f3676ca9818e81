"""Backends: which array namespace computes, on which device. The one switch of the library.

This module and ``kernels.cuda`` are the only places that name CuPy, and they import it only when asked to.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from xpcnn.errors import ArrayTypeError, BackendError

Array = Any
Namespace = Any

NAMES = ("auto", "cpu", "cuda", "cuda:N", "numpy", "cupy", "torch", "jax", "array_api_strict")
_INSTALL_CUPY = "install it with pip install 'xpcnn[cuda13]' (or 'xpcnn[cuda12]' for a CUDA 12 driver)"


@dataclass(frozen=True, eq=False)
class Backend:
    """An array namespace on one device.

    With several GPUs, CuPy computes on the current one: call ops on arrays of another inside `context`.

    Attributes
    ----------
    name : str
        ``"numpy"``, ``"cupy"``, ``"torch"``, ``"jax"`` or ``"array_api_strict"``.
    xp : namespace
        The array-api-compat namespace whose functions compute.
    device : object
        The device in the namespace's own terms (``"cpu"`` for NumPy, ``cupy.cuda.Device(0)``, ...).
    reason : str
        One sentence that says how this backend came to be chosen.
    """

    name: str
    xp: Namespace
    device: Any
    reason: str = ""

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        """Return an array of this backend, on its device, from a host array or one of its own.

        Parameters
        ----------
        host : array_like or array of this backend
            NumPy arrays on CPU namespaces may be shared instead of copied.
        dtype : str, optional
            Name of the dtype to convert to, such as ``"float32"``.
        """
        if _is_foreign(host):
            if not _owned_by(host, self.xp):
                raise ArrayTypeError(
                    f"asarray got a {type(host).__module__}.{type(host).__name__}, but the backend is {self.name}; "
                    f"convert it to NumPy first (the backend it came from has to_numpy)."
                )
            array = _MOVERS.get(self.name, _move)(host, self)
        else:
            array = _UPLOADERS.get(self.name, _upload)(_native(np.asarray(host)), self)
        if dtype is not None and not hasattr(self.xp, dtype):
            raise ArrayTypeError(f"{self.name} has no dtype {dtype!r}.")
        if dtype is not None and array.dtype != getattr(self.xp, dtype):
            with self.context():
                array = self.xp.astype(array, getattr(self.xp, dtype))
        return array

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the array's values as a NumPy array on the host (waits for the device)."""
        if self.name == "cupy":
            return array.get() if hasattr(array, "get") else np.asarray(array)
        if self.name == "torch" and hasattr(array, "detach"):
            return array.detach().cpu().numpy()
        if self.name == "array_api_strict" and hasattr(array, "to_device"):
            array = array.to_device(self.xp.Device("CPU_DEVICE"))
        return np.asarray(array)

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        """Return the backend itself: it is one device, not data."""
        return self

    def synchronize(self) -> None:
        """Wait until everything queued on the device has run; a no-op where work is never queued."""
        if self.name == "cupy":
            self.device.synchronize()
        elif self.name == "jax":
            import jax

            jax.block_until_ready(jax.device_put(np.zeros(()), self.device) + 0)
        elif self.name == "torch" and str(self.device).startswith("cuda"):
            self.xp.cuda.synchronize(self.device)

    def ran_out(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""
        return isinstance(error, MemoryError) or type(error).__name__ in _OUT_OF_MEMORY.get(self.name, ())

    def free_memory(self) -> int | None:
        """Return how many bytes of the device's memory new arrays could take, None if that is not known.

        On a GPU, what CuPy's pool holds but nobody uses is given back first (waits for the device).
        """
        if self.name != "cupy":
            return _free_on_host()
        import cupy

        with self.context():
            cupy.get_default_memory_pool().free_all_blocks()
            return int(self.device.mem_info[0])

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which new arrays are made on this device (CuPy has no ``device=`` for it)."""
        if self.name != "cupy":
            return contextlib.nullcontext()
        import cupy

        return cupy.cuda.Device(self.device.id)

    @property
    def version(self) -> str:
        """The library's version."""
        return str(importlib.import_module(self.name).__version__)

    @property
    def label(self) -> str:
        """Short text for people: the backend's name and its device."""
        return f"{self.name} on {device_name(self)}"


def resolve_backend(name: str | Backend = "auto") -> Backend:
    """Return the backend a name asks for.

    Parameters
    ----------
    name : str or Backend
        ``auto`` (CuPy when it is installed and sees a device, else NumPy), ``cpu`` or ``numpy``, ``cuda`` or ``cupy``
        (the first device), ``cuda:N``, ``torch``, ``jax`` or ``array_api_strict`` (on the CPU). Asking for ``jax``
        switches on its 64-bit types, which the Array API standard requires.

    Raises
    ------
    BackendError
        When the name is unknown, or what it asks for is not installed or not there.
    """
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str):
        raise BackendError(f"device must be one of {', '.join(NAMES)}, not {name!r}.")
    wanted = name.strip().lower()
    if wanted == "auto":
        return _auto()
    if wanted in ("cpu", "numpy"):
        return Backend("numpy", _namespace("numpy"), "cpu", f"{wanted} was asked for")
    kind, _, index = wanted.partition(":")
    if kind in ("cuda", "cupy") and (index.isdecimal() or wanted == kind):
        return _cuda(int(index or 0), f"{wanted} was asked for")
    if wanted in _FRAMEWORKS:
        return _framework(wanted)
    raise BackendError(f"device must be one of {', '.join(NAMES)} (N counts from 0), not {name!r}.")


def cuda_devices() -> tuple[int, str]:
    """Return how many CUDA devices CuPy sees and, if none, the sentence that says what is missing."""
    if importlib.util.find_spec("cupy") is None:
        return 0, f"CuPy is not installed; {_INSTALL_CUPY}"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # noqa: BLE001  CuPy raises ImportError, RuntimeError or CUDARuntimeError
        return 0, f"CuPy is installed but finds no usable NVIDIA driver or device ({_one_line(error)})"
    return count, "" if count else "CuPy is installed but the driver reports no CUDA device"


def device_name(backend: Backend) -> str:
    """Return the device's name for people, such as ``NVIDIA H200 (cuda:0)`` or ``cpu``."""
    if backend.name == "cupy":
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(backend.device.id)
        return f"{properties['name'].decode()} (cuda:{backend.device.id})"
    return str(backend.device)


def upload_like(host: np.ndarray[Any, Any], like: Array) -> Array:
    """Return a host array as one of another array's library, on its device."""
    xp = array_namespace(like)
    if is_cupy(xp):
        with like.device:
            return xp.asarray(host)
    return xp.asarray(host, device=device(like))


def is_numpy(xp: Namespace) -> bool:
    """Whether the namespace is NumPy's (itself or through array-api-compat)."""
    return xp.__name__ in ("numpy", "array_api_compat.numpy")


def is_cupy(xp: Namespace) -> bool:
    """Whether the namespace is CuPy's (itself or through array-api-compat)."""
    return xp.__name__ in ("cupy", "array_api_compat.cupy")


def _auto() -> Backend:
    """Choose CUDA if it works, else NumPy, and say why."""
    count, missing = cuda_devices()
    if count:
        backend = _cuda(0, f"auto chose CUDA: CuPy sees {count} device{'s' if count > 1 else ''}")
        try:
            with backend.context():  # a missing part of CUDA shows only when something is computed
                backend.to_numpy(backend.xp.ones(1) + 1)
        except Exception as error:  # noqa: BLE001  CuPy raises ImportError, RuntimeError or CompileException
            missing = f"CuPy sees a device but cannot compute on it ({_one_line(error)})"
        else:
            return backend
    return Backend("numpy", _namespace("numpy"), "cpu", f"auto chose the CPU: {missing}")


def _cuda(index: int, reason: str) -> Backend:
    """Return CuPy on one device, or raise saying what is missing or which indices exist."""
    count, missing = cuda_devices()
    if not count:
        raise BackendError(f"CUDA was asked for, but {missing}; --device cpu runs without a GPU.")
    if index >= count:
        valid = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise BackendError(f"cuda:{index} was asked for, but CuPy sees {count} device(s): {valid}.")
    import cupy

    return Backend("cupy", _namespace("cupy"), cupy.cuda.Device(index), reason)


def _framework(name: str) -> Backend:
    """Return torch, jax or array_api_strict on the CPU."""
    if importlib.util.find_spec(name) is None:
        raise BackendError(f"{name} was asked for, but it is not installed: pip install {name.replace('_', '-')}.")
    xp = _namespace(name)
    return Backend(name, xp, _FRAMEWORKS[name](xp), f"{name} was asked for")


def _jax_device(xp: Namespace) -> Any:
    """Switch on 64-bit types and return the first CPU device."""
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax.devices("cpu")[0]


_FRAMEWORKS: dict[str, Callable[[Namespace], Any]] = {
    "torch": lambda xp: xp.device("cpu"),
    "jax": _jax_device,
    "array_api_strict": lambda xp: xp.Device("CPU_DEVICE"),
}


@lru_cache
def _namespace(name: str) -> Namespace:
    """Return the array-api-compat namespace of a library, or the library where it complies by itself."""
    if name == "jax":
        return importlib.import_module("jax.numpy")
    if name == "array_api_strict":
        return importlib.import_module(name)
    if name == "numpy":
        with _without_submodules(np):
            module = importlib.import_module("array_api_compat.numpy")
        vars(module).setdefault("__getattr__", _of_numpy)  # others may look for what was left out
        return module
    return importlib.import_module(f"array_api_compat.{name}")


def _of_numpy(name: str) -> Any:
    """Return a public name of NumPy's, or raise AttributeError."""
    if name.startswith("_"):
        raise AttributeError(f"module 'array_api_compat.numpy' has no attribute {name!r}")
    return getattr(np, name)


@contextlib.contextmanager
def _without_submodules(library: Any) -> Iterator[None]:
    """Show only the names that are there: compat copies all, which would load numpy.f2py and more for 0.1 s."""
    names, listing = library.__all__, library.__dir__
    there = [name for name in names if name in vars(library)]
    library.__all__, library.__dir__ = there, lambda: there
    try:
        yield
    finally:
        library.__all__, library.__dir__ = names, listing


def _is_foreign(value: Any) -> bool:
    """Whether a value is another library's array, which NumPy must not be asked to convert by itself."""
    return type(value).__module__.partition(".")[0] in ("cupy", "torch", "jax", "jaxlib", "array_api_strict")


def _owned_by(value: Any, xp: Namespace) -> bool:
    """Whether an array belongs to a namespace."""
    library = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    return type(value).__module__.partition(".")[0].replace("jaxlib", "jax") == library


def _native(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a numeric host array in the machine's byte order."""
    if host.dtype.kind not in "fiubc":
        raise ArrayTypeError(f"asarray needs numbers, got an array of dtype {host.dtype}.")
    return host if host.dtype.isnative else host.astype(host.dtype.newbyteorder("="))


def _upload(host: np.ndarray[Any, Any], backend: Backend) -> Array:
    return backend.xp.asarray(host, device=backend.device)


def _upload_torch(host: np.ndarray[Any, Any], backend: Backend) -> Array:
    if not host.flags.writeable or any(stride < 0 for stride in host.strides):
        host = host.copy()  # torch can only share memory that is writable and runs forwards
    return backend.xp.asarray(host, device=backend.device)


def _upload_cupy(host: np.ndarray[Any, Any], backend: Backend) -> Array:
    with backend.context():
        return backend.xp.asarray(host)


def _upload_jax(host: np.ndarray[Any, Any], backend: Backend) -> Array:
    import jax

    return jax.device_put(host, backend.device)


def _move(array: Array, backend: Backend) -> Array:
    return array if array.device == backend.device else array.to_device(backend.device)


def _move_torch(array: Array, backend: Backend) -> Array:
    return array.to(backend.device)


def _move_cupy(array: Array, backend: Backend) -> Array:
    if array.device.id == backend.device.id:
        return array
    with backend.context():
        return array.copy()  # copying under a device context brings the data to that device


_OUT_OF_MEMORY = {"cupy": ("OutOfMemoryError",), "torch": ("OutOfMemoryError",)}  # by their names: not all are loaded
_UPLOADERS = {"torch": _upload_torch, "cupy": _upload_cupy, "jax": _upload_jax}
_MOVERS = {"torch": _move_torch, "cupy": _move_cupy, "jax": _upload_jax}


def _free_on_host() -> int | None:
    """Return how much memory the system says is available, less what this process may not have."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _one_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
