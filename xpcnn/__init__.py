"""Convolutional networks written once against the Python Array API: NumPy on a laptop, CuPy on an NVIDIA GPU."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from xpcnn import backend, data, layers, models, ops, optim
    from xpcnn.backend import Backend, resolve_backend
    from xpcnn.classifier import Classifier
    from xpcnn.data import Augment, Dataset, Loader, Source, load_dataset
    from xpcnn.data.normalise import Normalise
    from xpcnn.errors import ArrayTypeError, BackendError, DataError, OutOfMemoryError, XpcnnError
    from xpcnn.kernels.threads import set_num_threads
    from xpcnn.kernels.threads import thread_count as num_threads
    from xpcnn.layers.plan import Plan
    from xpcnn.model import Model
    from xpcnn.training import History, Trainer, evaluate
    from xpcnn.verify.gradients import GradientReport, gradcheck

_MODULES = ("backend", "data", "errors", "kernels", "layers", "metrics", "model", "models", "ops", "optim", "parallel",
            "random", "report", "serve", "training", "verify")  # fmt: skip
_HOMES = {  # where a name is imported from when it is first used: a prediction should not wait for the trainer
    "ArrayTypeError": "errors",
    "Augment": "data",
    "Backend": "backend",
    "BackendError": "errors",
    "Classifier": "classifier",
    "DataError": "errors",
    "Dataset": "data",
    "GradientReport": "verify.gradients",
    "History": "training",
    "Loader": "data",
    "Model": "model",
    "Normalise": "data.normalise",
    "OutOfMemoryError": "errors",
    "Plan": "layers.plan",
    "Source": "data",
    "Trainer": "training",
    "XpcnnError": "errors",
    "evaluate": "training",
    "gradcheck": "verify.gradients",
    "load_dataset": "data",
    "num_threads": "kernels.threads",
    "resolve_backend": "backend",
    "set_num_threads": "kernels.threads",
}

__all__ = [
    "ArrayTypeError",
    "Augment",
    "Backend",
    "BackendError",
    "Classifier",
    "DataError",
    "Dataset",
    "GradientReport",
    "History",
    "Loader",
    "Model",
    "Normalise",
    "OutOfMemoryError",
    "Plan",
    "Source",
    "Trainer",
    "XpcnnError",
    "__version__",
    "backend",
    "data",
    "evaluate",
    "gradcheck",
    "layers",
    "load_dataset",
    "models",
    "num_threads",
    "ops",
    "optim",
    "resolve_backend",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _MODULES:
        return import_module(f"xpcnn.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'xpcnn' has no attribute {name!r}")
    value = getattr(import_module(f"xpcnn.{_HOMES[name]}"), "thread_count" if name == "num_threads" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})
