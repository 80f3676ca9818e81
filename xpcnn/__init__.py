"""Convolutional networks written once against the Python Array API: NumPy on a laptop, CuPy on an NVIDIA GPU."""

__version__ = "0.1.0"

from xpcnn import backend, data, layers, models, ops, optim
from xpcnn.backend import Backend, resolve_backend
from xpcnn.data import Dataset, load_dataset
from xpcnn.errors import ArrayTypeError, BackendError, DataError, XpcnnError
from xpcnn.model import Model, Normalise
from xpcnn.training import History, Trainer, evaluate
from xpcnn.verify.gradients import GradientReport, gradcheck

__all__ = [
    "ArrayTypeError",
    "Backend",
    "BackendError",
    "DataError",
    "Dataset",
    "GradientReport",
    "History",
    "Model",
    "Normalise",
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
    "ops",
    "optim",
    "resolve_backend",
]
