"""A network with its parameters on one device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from xpcnn import model_file
from xpcnn.backend import Array, Backend, resolve_backend
from xpcnn.data.normalise import Normalise
from xpcnn.errors import ArrayTypeError, XpcnnError, whole
from xpcnn.kernels import threads
from xpcnn.kernels.threads import single_threaded_blas
from xpcnn.layers import Layer, leaves
from xpcnn.layers.base import Arrays, Shape, checked_shape
from xpcnn.layers.plan import Footprint, Plan, optimizer_bytes
from xpcnn.layers.precision import Computation
from xpcnn.layers.stored import check_shapes
from xpcnn.layers.summary import summarise
from xpcnn.optim import Optimizer
from xpcnn.random import Key

DTYPES = ("float32", "float64")
MOST_IMAGES, MOST_BYTES = 1000, 1 << 27  # of a batch in prediction, and of one layer's output
MOST_BYTES_CPU = 1 << 24  # the same with NumPy, where more memory is slower memory and launching costs nothing


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
    precision : {"float32", "tf32", "bf16"}
        What steps and predictions compute in; see `xpcnn.layers.precision`. Parameters, statistics, losses and outputs
        are float32 in any case. tf32 needs CUDA, bf16 CUDA or a library that has bfloat16, such as torch.
    conv_engine : {"auto", "im2col", "cudnn"}
        What convolves on CUDA: own kernels, cuDNN, or cuDNN at tf32 and bf16 where it is installed.

    Raises
    ------
    XpcnnError
        When shapes do not fit together, an argument is wrong, or the device cannot compute like this.
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
        precision: str = "float32",
        conv_engine: str = "auto",
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
        self.computation = Computation(net, self.input_shape, self.backend, dtype, precision, conv_engine)
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

    @property
    def precision(self) -> str:
        """What steps and predictions compute in."""
        return self.computation.precision

    @property
    def conv_engine(self) -> str:
        """What convolves on CUDA."""
        return self.computation.conv_engine

    def parameters(self) -> Arrays:
        """Return the trained arrays by path (``conv1/weight``), in the order of the layers, on the device."""
        return dict(self._params)

    def state(self) -> Arrays:
        """Return the arrays that are kept but not trained, such as running means, by path."""
        return dict(self._state)

    def load_parameters(
        self,
        values: Mapping[str, Any] | str | Path,
        *,
        layout: str | None = None,
        names: Mapping[str, str] | Callable[[str], str | None] | None = None,
    ) -> None:
        """Replace parameters by host or device arrays, or a file's; every path must be there with its shape.

        State, such as running means, may be among them; what is not given stays as it is.

        Parameters
        ----------
        values : mapping, or path
            Arrays by path; or a file of weights: ``.safetensors`` or Keras' ``.weights.h5``.
        layout : {"xpcnn", "pytorch", "keras"}, optional
            How the arrays lie; see `xpcnn.interop.weights.fitted`. By default what the file's kind or names say.
        names : mapping or function, optional
            The path here of a name there, where they differ by more than their spelling; None leaves an array out.

        Raises
        ------
        XpcnnError
            Naming the paths that are missing, unknown or of another shape; nothing is changed then.
        """
        if isinstance(values, str | Path) or layout is not None or names is not None:
            from xpcnn.interop.weights import fitted

            values = fitted(values, self.net, self.input_shape, layout=layout, names=names)
        params, state = self.net.parameters(self.input_shape), self.net.state(self.input_shape)
        if not isinstance(values, Mapping):
            raise XpcnnError(f"parameters must be a mapping from path to array, not {type(values).__name__}.")
        values = {path: value if hasattr(value, "shape") else np.asarray(value) for path, value in values.items()}
        expected = params | {path: described for path, described in state.items() if path in values}
        check_shapes(expected, {path: tuple(value.shape) for path, value in values.items()})
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
            raise XpcnnError(
                f"the model takes batches (N, {', '.join(map(str, self.input_shape))}), got {tuple(x.shape)}{hint}."
            )
        xp = self.backend.xp
        if x.dtype == getattr(xp, self.dtype) or self.computation.is_narrow(x):
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
        with self.computing(), quiet:
            params = self.computation.parameters(self._params)
            pieces = [self._forward(params, x[rows, ...]) for rows in batches(x.shape[0], batch_size)]
            if on_device or self.backend.name == "numpy":
                y = xp.concat(pieces, axis=0) if len(pieces) > 1 else pieces[0]
                aliased = not on_device and np.may_share_memory(y, x)  # a network that only passes its input on
                return y.copy() if aliased else y
            return np.concatenate([self.backend.to_numpy(piece) for piece in pieces])

    def computing(self) -> AbstractContextManager[Any]:
        """Return a context in which the device computes as precisely as the model is to, and with its engine."""
        return self.computation.running()

    @cached_property
    def images_at_once(self) -> int:
        """How many images to predict at a time: no layer's output takes more than 128 MiB, or 16 MiB with NumPy."""
        most = MOST_BYTES_CPU if self.backend.name == "numpy" else MOST_BYTES
        largest = max(prod(placed.output_shape) for placed in leaves(self.net, self.input_shape))
        return max(1, min(MOST_IMAGES, most // (largest * (8 if self.dtype == "float64" else 4))))

    def save(self, path: str | Path) -> None:
        """Write parameters, state and description to a safetensors file, whole or not at all."""
        arrays = {name: self.backend.to_numpy(array) for name, array in (self._params | self._state).items()}
        prepared = asdict(self.normalise)
        model_file.save(path, self.net, self.input_shape, self.dtype, prepared, self.classes, self.dataset, arrays)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | Backend = "auto",
        *,
        custom: Iterable[type[Layer]] = (),
        precision: str = "float32",
        conv_engine: str = "auto",
    ) -> Model:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : path
            The safetensors file.
        device : str or Backend
            Where the model shall live.
        custom : iterable of Layer classes
            The caller's own layers, if the network has any.
        precision, conv_engine : str
            As in `Model`: how it computes is not part of what is saved.

        Raises
        ------
        DataError
            When the file is missing, truncated, corrupt or not an xpcnn model. Shapes are compared before any array
            is read.
        """
        backend = resolve_backend(device)
        with model_file.opened(path, custom) as (net, options):
            model = cls(net, backend, **options | {"normalise": Normalise(**options["normalise"])})
        model.computation = replace(model.computation, precision=precision, conv_engine=conv_engine)
        return model

    def to_onnx(
        self, path: str | Path, *, opset: int | None = None, normalise: bool = False, check: bool = True
    ) -> dict[str, Any]:
        """Write the network to an ONNX file, checked before it is there, and return what the checks found.

        Parameters
        ----------
        path : path
            Of the file; what was measured is written beside it, to ``<path>.json``.
        opset : int, optional
            Version of the operators; by default the lowest that the network needs, 17 or more.
        normalise : bool
            Let the file take uint8 images and normalise them as the model does.
        check : bool
            Compare ONNX's reference evaluator and, where installed, onnxruntime with `predict` (in full precision).

        Raises
        ------
        XpcnnError
            When a layer has no counterpart, a checker complains or the outputs differ; nothing is written then.
        """
        from xpcnn.interop.onnx_export import export

        arrays = {name: self.backend.to_numpy(array) for name, array in (self._params | self._state).items()}
        prepared, exact = self.normalise if normalise else None, copy(self)
        exact.computation = replace(self.computation, precision="float32", conv_engine="auto")
        return export(
            path, self.net, self.input_shape, arrays, exact.predict if check else None, opset=opset, normalise=prepared,
            dtype=self.dtype, classes=self.classes, dataset=self.dataset,
        )  # fmt: skip

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        device: str | Backend = "auto",
        *,
        input_shape: Sequence[int] | None = None,
        output: str | None = None,
        precision: str = "float32",
    ) -> Model:
        """Make a trainable model of an ONNX file.

        Parameters
        ----------
        path : path
            The file.
        device : str or Backend
            Where the model shall live.
        input_shape : (C, H, W), optional
            One example's shape, where the file leaves it open.
        output : str, optional
            The tensor to end at, such as a backbone's; by default the graph's only output.
        precision : str
            As in `Model`.

        Raises
        ------
        XpcnnError
            When the file is damaged or no ONNX file; or listing every node that has no counterpart here.
        """
        from xpcnn.interop.onnx_import import read

        found = read(path, input_shape=input_shape, output=output)
        return cls(
            found.net, device, dtype=found.dtype, input_shape=found.input_shape, normalise=found.normalise,
            classes=found.classes, dataset=found.dataset, values=found.values, precision=precision,
        )  # fmt: skip

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
        with self.computing():
            example = xp.zeros((3, *self.input_shape), dtype=getattr(xp, self.dtype), device=self.backend.device)
            return self.computation.footprint(self._params, self._state, optimizer, example)

    def _forward(self, params: Arrays, x: Any) -> Array:
        """Run a batch through the network without training."""
        compute = self.computation
        return compute.widen(self.net.predict(params, self._state, compute.narrow(self.as_input(x))))


def batches(rows: int, size: int) -> list[slice]:
    """Cut rows into batches, the last one short; no rows are one empty batch."""
    return [slice(start, min(start + size, rows)) for start in range(0, max(1, rows), size)]
