"""A network with its parameters on one device."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

import xpcnn
from xpcnn.backend import Array, Backend, resolve_backend
from xpcnn.errors import ArrayTypeError, DataError, XpcnnError, whole
from xpcnn.files import write_whole
from xpcnn.kernels import threads
from xpcnn.kernels.threads import single_threaded_blas
from xpcnn.layers import Layer, from_config, leaves, to_config
from xpcnn.layers.base import Arrays, Parameter, Shape, checked_shape
from xpcnn.layers.plan import Footprint, Plan, footprint, optimizer_bytes
from xpcnn.layers.summary import summarise
from xpcnn.optim import Optimizer
from xpcnn.random import Key

Host = np.ndarray[Any, Any]

FORMAT = 1
DTYPES = ("float32", "float64")
MOST_IMAGES, MOST_BYTES = 1000, 1 << 27  # of a batch in prediction, and of one layer's output
MOST_BYTES_CPU = 1 << 24  # the same with NumPy, where more memory is slower memory and launching costs nothing
STORED = ("F32", "F64")  # as safetensors names them


@dataclass(frozen=True)
class Normalise:
    """How uint8 pixels become a model's floats: ``(pixel / 255 - mean) / std``."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what would not give numbers, and keep plain ones: a NumPy scalar would widen float32 images."""
        object.__setattr__(self, "mean", float(self.mean))
        object.__setattr__(self, "std", float(self.std))
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise XpcnnError(f"normalise needs a finite mean and a std above 0, not {self.mean!r} and {self.std!r}.")

    def __call__(self, images: Array, dtype: str, xp: Any) -> Array:
        """Return normalised images of a dtype."""
        x = xp.astype(images, getattr(xp, dtype)) * (1.0 / (255.0 * self.std))
        return x - self.mean / self.std if self.mean else x


class Model:
    """A network's parameters and state on one device, with prediction, saving and loading.

    Parameters
    ----------
    net : Layer
        The description, from `xpcnn.models` or written with `xpcnn.layers`.
    device : str or Backend
        As in `xpcnn.resolve_backend`.
    seed : int
        Of the initial parameters, which are the same on every device.
    dtype : {"float32", "float64"}
        Of parameters and computation.
    input_shape : (C, H, W), optional
        One example's shape, if the description does not state it.
    normalise : Normalise
        Applied to uint8 images; floats are taken as they are.
    classes : sequence of str
        The classes' names, for people.
    dataset : str
        Name of the data set it is for, which says how pictures are prepared for it.
    values : mapping, optional
        Parameters and state by path to start with, instead of drawn ones.

    Raises
    ------
    XpcnnError
        When the network's shapes do not fit together, or an argument is wrong.
    """

    def __init__(
        self,
        net: Layer,
        device: str | Backend = "auto",
        seed: int = 0,
        *,
        dtype: str = "float32",
        input_shape: Sequence[int] | None = None,
        normalise: Normalise | None = None,
        classes: Sequence[str] = (),
        dataset: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> None:
        shape = input_shape or getattr(net, "input_shape", None)
        if not isinstance(net, Layer) or shape is None:
            raise XpcnnError("Model needs a network (a Layer) that states its input_shape, or input_shape=(C, H, W).")
        if dtype not in DTYPES:
            raise XpcnnError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
        self.net = net
        self.backend = resolve_backend(device)
        if threads.VARIABLE in os.environ:
            threads.thread_count()  # which checks it, and gives BLAS as many
        self.seed = whole("seed", seed, 0)
        self.dtype = dtype
        self.input_shape: Shape = checked_shape(shape)
        self.output_shape = net.output_shape(self.input_shape)
        self.normalise = normalise or Normalise()
        self.classes = tuple(classes)
        self.dataset = dataset
        if not all(isinstance(text, str) for text in (dataset, *self.classes)):
            raise XpcnnError(f"dataset and classes must be names, not {dataset!r} and {classes!r}.")
        self._params: Arrays = {}
        self._state: Arrays = {}
        if values is None:
            values = net.initial_parameters(Key(self.seed), self.input_shape)
            values |= net.initial_state(Key(self.seed), self.input_shape)
        self.load_parameters(values)

    def parameters(self) -> Arrays:
        """Return the trained arrays by path (``conv1/weight``), in the order of the layers, on the device."""
        return dict(self._params)

    def state(self) -> Arrays:
        """Return the arrays that are kept but not trained, such as running means, by path."""
        return dict(self._state)

    def load_parameters(self, values: Mapping[str, Any]) -> None:
        """Replace parameters by host or device arrays; every path must be there with its shape.

        State, such as running means, may be among them; what is not given stays as it is.

        Raises
        ------
        XpcnnError
            Naming the paths that are missing, unknown or of another shape; nothing is changed then.
        """
        params, state = self.net.parameters(self.input_shape), self.net.state(self.input_shape)
        if not isinstance(values, Mapping):
            raise XpcnnError(f"parameters must be a mapping from path to array, not {type(values).__name__}.")
        values = {path: value if hasattr(value, "shape") else np.asarray(value) for path, value in values.items()}
        expected = params | {path: described for path, described in state.items() if path in values}
        _check_shapes(expected, {path: tuple(value.shape) for path, value in values.items()})
        if complex_ones := [path for path, value in values.items() if "complex" in str(value.dtype)]:
            raise XpcnnError(f"parameters must be real numbers, but {', '.join(complex_ones)} are complex.")
        xp, own = self.backend.xp, self.backend.asarray
        with self.backend.context():  # copied, so that writing to what was given changes no model
            uploaded = {path: xp.asarray(own(value, self.dtype), copy=True) for path, value in values.items()}
        self._params = {path: uploaded[path] for path in params}
        self._state |= {path: uploaded[path] for path in state if path in uploaded}

    def replace_arrays(self, params: Arrays, state: Arrays) -> None:
        """Take over new device arrays of the same paths and shapes, as a training step makes them."""
        self._params, self._state = params, state

    def as_input(self, x: Any) -> Array:
        """Return a batch on the model's device in its dtype: uint8 is normalised, floats are only converted.

        Raises
        ------
        XpcnnError
            When the shape is not (N, *input_shape), or the values are neither uint8 nor floats.
        """
        x = self.backend.asarray(x)
        if tuple(x.shape[1:]) != self.input_shape:
            hint = " (a single image needs a batch axis: x[None])" if tuple(x.shape) == self.input_shape else ""
            raise XpcnnError(f"the model takes batches (N, {_listed(self.input_shape)}), got {tuple(x.shape)}{hint}.")
        xp = self.backend.xp
        if x.dtype == getattr(xp, self.dtype):
            return x
        if x.dtype == xp.uint8:
            return self.normalise(x, self.dtype, xp)
        if not xp.isdtype(x.dtype, "real floating"):
            raise ArrayTypeError(f"images must be uint8 or floats (normalised as in training), got {x.dtype}.")
        return xp.astype(x, getattr(xp, self.dtype), copy=False)

    def predict(self, x: Any, batch_size: int | None = None) -> Any:
        """Return the network's outputs (logits) for images, computed in batches so that memory stays bounded.

        Parameters
        ----------
        x : array (N, C, H, W)
            uint8 images, or floats normalised as in training; a NumPy array gives a NumPy array back, an array of the
            device stays there.
        batch_size : int, optional
            Images at a time; `images_at_once` by default.

        Returns
        -------
        array (N, classes)
        """
        batch_size = self.images_at_once if batch_size is None else whole("batch_size", batch_size, 1)
        on_device = is_array_api_obj(x) and not isinstance(x, np.ndarray)
        x = x if on_device else np.asarray(x)
        xp = self.backend.xp
        quiet = single_threaded_blas() if x.shape[:1] > (1,) else nullcontext()  # one image wakes no threads anyway
        with self.backend.context(), quiet:
            pieces = [self._forward(x[rows, ...]) for rows in batches(x.shape[0], batch_size)]
            if on_device or self.backend.name == "numpy":
                y = xp.concat(pieces, axis=0) if len(pieces) > 1 else pieces[0]
                aliased = not on_device and np.may_share_memory(y, x)  # a network that only passes its input on
                return y.copy() if aliased else y
            return np.concatenate([self.backend.to_numpy(piece) for piece in pieces])

    @cached_property
    def images_at_once(self) -> int:
        """How many images to predict at a time: no layer's output takes more than 128 MiB, or 16 MiB with NumPy."""
        most = MOST_BYTES_CPU if self.backend.name == "numpy" else MOST_BYTES
        largest = max(prod(placed.output_shape) for placed in leaves(self.net, self.input_shape))
        return max(1, min(MOST_IMAGES, most // (largest * (8 if self.dtype == "float64" else 4))))

    def save(self, path: str | Path) -> None:
        """Write parameters, state and description to a safetensors file, whole or not at all."""
        from safetensors.numpy import save

        description = {
            "format": FORMAT,
            "xpcnn": xpcnn.__version__,
            "network": to_config(self.net),
            "input_shape": list(self.input_shape),
            "dtype": self.dtype,
            "normalise": asdict(self.normalise),
            "classes": list(self.classes),
            "dataset": self.dataset,
        }
        arrays = self._params | self._state
        host = {path: np.ascontiguousarray(self.backend.to_numpy(array)) for path, array in arrays.items()}
        text = json.dumps(description)
        write_whole(path, save(host, metadata={"xpcnn": text, "blake2b": _digest(text)}))

    @classmethod
    def load(cls, path: str | Path, device: str | Backend = "auto", *, custom: Iterable[type[Layer]] = ()) -> Model:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : path
            The safetensors file.
        device : str or Backend
            Where the model shall live.
        custom : iterable of Layer classes
            The caller's own layers, if the network has any.

        Raises
        ------
        DataError
            When the file is missing, truncated, corrupt or not an xpcnn model. Shapes are compared before any array
            is read.
        """
        custom = tuple(custom)
        if not all(isinstance(cls, type) and issubclass(cls, Layer) for cls in custom):
            raise XpcnnError(f"custom must list layer classes, not {custom!r}.")
        description, shapes, read = _open(Path(path))
        backend = resolve_backend(device)
        try:
            net, shape = from_config(description["network"], custom), tuple(description["input_shape"])
            if not isinstance(net, Layer) or not all(isinstance(n, int) and n > 0 for n in shape):
                raise XpcnnError("its network or input shape is none.")
            _check_shapes(net.parameters(shape) | net.state(shape), shapes)
            return cls(
                net,
                backend,
                dtype=description["dtype"],
                input_shape=shape,
                normalise=Normalise(**description["normalise"]),
                classes=description["classes"],
                dataset=description["dataset"],
                values=read(),
            )
        except (
            XpcnnError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise DataError(f"{path} is not a whole xpcnn model: {_reason(error)}") from None

    def summary(self, batch_size: int = 100) -> str:
        """Return a table: layer, output shape, parameters, multiply-adds, receptive field, a batch's im2col memory."""
        whole("batch_size", batch_size, 1)
        return summarise(self.net, self.input_shape, batch_size, 8 if self.dtype == "float64" else 4)

    def plan(self, batch_size: int, max_memory: int | str | None = None, *, optimizer: Optimizer | None = None) -> Plan:
        """Predict the memory of a training step, and how many images at a time fit a limit.

        Parameters
        ----------
        batch_size : int
            Images in a step.
        max_memory : int or str, optional
            The most that a step may take on top of the process, the data set and the batch itself: bytes, or a text
            such as ``"300MB"`` or ``"2GiB"``.
        optimizer : Optimizer, optional
            Whose state counts too.

        Returns
        -------
        Plan
            With the fewest tiles that fit.

        Raises
        ------
        XpcnnError
            When the limit is too small, saying what would be enough: for one image at a time or, where a layer such
            as batch norm needs the whole batch at once, for the batch.
        """
        state = 0 if optimizer is None else optimizer_bytes(optimizer, self._params)
        return self.footprint(state).plan(batch_size, max_memory)

    def footprint(self, optimizer: int = 0) -> Footprint:
        """Return what a step takes by image and in any case, with the bytes of an optimizer's state."""
        xp = self.backend.xp
        with self.backend.context():
            example = xp.zeros((3, *self.input_shape), dtype=getattr(xp, self.dtype), device=self.backend.device)
            return footprint(self.net, self._params, self._state, optimizer, example, xp)

    def _forward(self, x: Any) -> Array:
        """Run a batch through the network without training."""
        return self.net.predict(self._params, self._state, self.as_input(x))


def _check_shapes(expected: Mapping[str, Parameter], shapes: Mapping[str, Shape]) -> None:
    """Raise unless paths and shapes are exactly the network's."""
    faults = [f"{path} is missing" for path in expected if path not in shapes]
    faults += [f"{path} is unknown" for path in shapes if path not in expected]
    faults += [
        f"{path} has shape {shapes[path]} instead of {parameter.shape}"
        for path, parameter in expected.items()
        if path in shapes and shapes[path] != parameter.shape
    ]
    if faults:
        raise XpcnnError(f"the parameters do not fit the network: {'; '.join(faults)}.")


def batches(rows: int, size: int) -> list[slice]:
    """Cut rows into batches, the last one short; no rows are one empty batch."""
    return [slice(start, min(start + size, rows)) for start in range(0, max(1, rows), size)]


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Shape], Any]:
    """Return a model file's description, its arrays' shapes, and a function that reads the arrays."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"{path} {'is a directory' if path.is_dir() else 'does not exist'}.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            text = metadata.get("xpcnn")
            if text is None:
                raise DataError(f"{path} is a safetensors file, but not one that xpcnn wrote.")
            if metadata.get("blake2b", _digest(text)) != _digest(text):
                raise DataError(f"{path} is damaged: its description is not what was written.")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            wrong = [
                f"{name} is {piece.get_dtype()}" for name, piece in slices.items() if piece.get_dtype() not in STORED
            ]
            if wrong:
                raise DataError(f"{path} must hold float32 or float64 arrays, but {', '.join(wrong)}.")
        description = json.loads(text)
    except (SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a whole safetensors file ({error}).") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise DataError(f"{path} has another format than this xpcnn reads ({FORMAT}).")

    def read() -> dict[str, Host]:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in shapes}

    return description, shapes, read


def _digest(text: str) -> str:
    """Return a description's checksum: a flipped bit may still make sense."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _reason(error: Exception) -> str:
    """Return an error's text as the end of a sentence."""
    return str(error) if isinstance(error, XpcnnError) else f"its description is wrong ({error!r})."


def _listed(shape: Shape) -> str:
    return ", ".join(map(str, shape))
