"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from xpcnn import kernels, ops
from xpcnn.backend import Array
from xpcnn.data import Dataset
from xpcnn.errors import ArrayTypeError, XpcnnError, whole
from xpcnn.kernels import memory
from xpcnn.kernels.threads import single_threaded_blas
from xpcnn.layers.base import Arrays
from xpcnn.layers.plan import Footprint, Plan, arrays_in, bytes_of, memory_size
from xpcnn.model import Model, batches
from xpcnn.optim import Optimizer
from xpcnn.random import Key
from xpcnn.training.capture import Recorded, UnrecordableError
from xpcnn.training.memory import of_evaluation, of_step, told
from xpcnn.training.tiling import Loss, tiles_of_a_mean, tiles_of_any, whole_batch

LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": (ops.softmax_cross_entropy, ops.softmax_cross_entropy_backward),
    "binary_cross_entropy_with_logits": (
        ops.binary_cross_entropy_with_logits,
        ops.binary_cross_entropy_with_logits_backward,
    ),
    "mean_squared_error": (ops.mean_squared_error, ops.mean_squared_error_backward),
    "half_squared_error": (ops.half_squared_error, ops.half_squared_error_backward),
}
CAPTURE = ("auto", "off")


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; epoch 0 is the state before training, with no loss."""

    epoch: int
    loss: float | None  # mean over the epoch's updates
    train_accuracy: float  # fraction of the whole training set, after the epoch
    test_accuracy: float | None
    seconds: float  # training and evaluation
    images_per_second: float | None  # of training alone

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


@dataclass
class History:
    """The loss of every update and the record of every epoch."""

    losses: list[float] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)


class Trainer:
    """Trains a model: one `step` per batch, or `fit` for whole epochs.

    Parameters
    ----------
    model : Model
        Its parameters are replaced by each step.
    optimizer : Optimizer
        From `xpcnn.optim`.
    loss : str or (forward, backward)
        ``"softmax_cross_entropy"``, ``"binary_cross_entropy_with_logits"``, ``"mean_squared_error"``,
        ``"half_squared_error"``, or a pair ``forward(y, t) -> (loss, saved)``, ``backward(saved) -> dy``.
    max_memory : int or str, optional
        The most that a step may take on top of the process, the data set and the batch itself: bytes, or a text such
        as ``"300MB"``; `Trainer.plan` predicts it. A batch that takes more is computed in tiles, whose gradients are
        added up: the same result up to the order of summation, and the same masks of dropout. A network with batch
        norm needs its batch whole; a layer of one's own that mixes the images of a batch says so by having a state or
        by ``couples_batch = True``, and draws random numbers with `Key.uniform`. A loss that is a pair of functions is
        given the outputs of the whole batch, for which each tile's forward runs twice.
    capture : {"auto", "off"}
        Whether `fit` records its steps as CUDA graphs, where the backend can. The result is the same to the last bit.
        A step that cannot be recorded runs as ever; ``capture_note`` then says why, in half a sentence.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        loss: str | Loss = "softmax_cross_entropy",
        *,
        max_memory: int | str | None = None,
        capture: str = "auto",
    ) -> None:
        if capture not in CAPTURE:
            raise XpcnnError(f"capture must be {' or '.join(CAPTURE)}, not {capture!r}.")
        if isinstance(loss, str) and loss not in LOSSES:
            raise XpcnnError(f"loss must be one of {', '.join(LOSSES)} or a pair of functions, not {loss!r}.")
        self.model = model
        self.optimizer = optimizer
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        if not isinstance(self.loss, tuple | list) or len(self.loss) != 2 or not all(map(callable, self.loss)):
            raise XpcnnError(f"loss must be one of {', '.join(LOSSES)} or a pair of functions, not {loss!r}.")
        self.max_memory = memory_size(max_memory)
        self.capture = capture
        self.capture_note = ""
        self.steps = 0  # updates made so far
        self._tiles: dict[int, int] = {}  # by the images of a batch, how many of them are computed at a time
        self._tile = tiles_of_a_mean if isinstance(loss, str) else tiles_of_any
        with model.backend.context():
            self.opt_state = optimizer.init(model.parameters())

    def step(self, x: Any, t: Any) -> Array:
        """Make one update from a batch and return its loss, which stays on the device.

        Parameters
        ----------
        x : array (N, C, H, W)
            uint8 images or normalised floats, on the host or the device.
        t : array (N,) or (N, K)
            Labels or probabilities.
        """
        model = self.model
        count = len(x) if hasattr(x, "__len__") else 1
        with model.computing(), single_threaded_blas(), self._told(count):
            loss, grads, state = self._gradients(x, t)
            params, self.opt_state = self.optimizer.update(grads, self.opt_state, model.parameters(), self.steps)
            model.replace_arrays(params, state)
        self.steps += 1
        return loss

    def plan(self, batch_size: int) -> Plan:
        """Predict the memory of a step, and how many images at a time it takes to stay below ``max_memory``.

        Raises
        ------
        XpcnnError
            When ``max_memory`` is too small, saying what would be enough.
        """
        return self._footprint.plan(batch_size, self.max_memory)

    @cached_property
    def _footprint(self) -> Footprint:
        """What the network takes."""
        return self.model.footprint(sum(map(bytes_of, arrays_in(self.opt_state))))

    def _images_at_once(self, count: int) -> int:
        """Return how many images of a batch are computed at a time."""
        if self.max_memory is None or not count:
            return count
        if count not in self._tiles:
            self._tiles[count] = self.plan(count).tile
        return self._tiles[count]

    def _gradients(self, x: Any, t: Any) -> tuple[Array, Arrays, Arrays]:
        """Return a batch's loss, its gradients and the new state."""
        x, t, key = self.model.backend.asarray(x), self._targets(t), Key(self.model.seed).child("step", self.steps)
        count = x.shape[0] if x.ndim else 0
        tile = self._images_at_once(count)
        if tile == count:
            return whole_batch(self.model, self.loss, x, t, key)
        return self._tile(self.model, self.loss, x, t, key, tile)

    def _targets(self, t: Any) -> Array:
        """Return targets on the device: labels as they are, numbers in the model's dtype."""
        backend = self.model.backend
        t = backend.asarray(t)
        floats = backend.xp.isdtype(t.dtype, "real floating")
        return backend.xp.astype(t, getattr(backend.xp, self.model.dtype), copy=False) if floats else t

    def fit(
        self,
        train: Dataset | tuple[Any, Any],
        test: Dataset | tuple[Any, Any] | None = None,
        *,
        epochs: int = 1,
        batch_size: int = 100,
        on_step: Callable[[int, int], None] | None = None,
        on_epoch: Callable[[Epoch, list[float]], None] | None = None,
    ) -> History:
        """Train for whole epochs in an order shuffled by the model's seed; the last batch may be short.

        Parameters
        ----------
        train, test : Dataset or (images, labels)
            Images stay as they are (uint8 is a quarter of float32) and are normalised batch by batch.
        epochs, batch_size : int
            How long, and how many images per update.
        on_step : callable, optional
            Called with (epoch, images done in it) after each update.
        on_epoch : callable, optional
            Called with the epoch's record and its losses; first with epoch 0, before any training.

        Returns
        -------
        History
            Every update's loss and every epoch's record.

        Raises
        ------
        XpcnnError
            When an argument is wrong, or the loss is no longer a number at the end of an epoch.
        OutOfMemoryError
            When memory runs out, saying what a step takes and what would fit.
        """
        epochs = whole("epochs", epochs, 1)
        batch_size = whole("batch_size", batch_size, 1)
        train = as_dataset(train)
        test = None if test is None else as_dataset(test)
        if not len(train):
            raise XpcnnError("there are no training images.")
        at_once = None
        if self.max_memory is not None:
            self.plan(min(batch_size, len(train)))  # raises before anything is computed
            at_once = self._footprint.images_in_prediction(self.max_memory)
        history = History()
        backend = self.model.backend
        with self._told(min(batch_size, len(train))):
            images, labels = backend.asarray(train.images), backend.asarray(train.labels)
            test_images = None if test is None else backend.asarray(test.images)
            recorded = self._recorded(images, labels, batch_size)
        for epoch in range(epochs + 1):
            start = time.perf_counter()
            losses: list[float] = []
            with self._told(min(batch_size, len(train))):
                if recorded is not None and recorded.is_outdated:
                    recorded = self._recorded(images, labels, batch_size)
                if epoch:
                    run = partial(self._run_epoch, images, labels, batch_size) if recorded is None else recorded.epoch
                    losses = run(self._order(len(train), epoch), partial(on_step, epoch) if on_step else _nothing)
            trained = time.perf_counter() - start
            record = Epoch(
                epoch,
                math.fsum(losses) / len(losses) if losses else None,
                self._accuracy(train, images, at_once, recorded),
                None if test is None else self._accuracy(test, test_images, at_once, recorded),
                time.perf_counter() - start,
                len(train) / trained if epoch else None,
            )
            history.losses += losses
            history.epochs.append(record)
            if record.loss is not None and not math.isfinite(record.loss):
                raise XpcnnError(f"the loss is no longer a number in epoch {epoch}; a smaller learning rate may help.")
            if on_epoch:
                on_epoch(record, losses)
        return history

    def _told(self, count: int) -> AbstractContextManager[None]:
        """Return a context that turns running out of memory in steps of so many images into a sentence."""
        backend = self.model.backend
        return told(backend, lambda: of_step(backend, count, lambda: self._footprint))

    def _recorded(self, images: Array, labels: Array, batch_size: int) -> Recorded | None:
        """Return the steps of a data set as graphs, or None, with a note of why where a backend could have some."""
        self.capture_note = ""
        if self.capture == "off" or not kernels.of(self.model.backend.xp).engine("capture", images):
            return None
        try:
            if self.max_memory is not None:
                raise UnrecordableError("with max_memory, nothing is kept for a graph")
            return Recorded(self, images, labels, batch_size)
        except UnrecordableError as error:
            self.capture_note = str(error)
            return None

    def _accuracy(self, data: Dataset, images: Array, at_once: int | None, recorded: Recorded | None) -> float:
        """Return the accuracy on a data set; below a limit, what steps and predictions use is not kept both."""
        backend = self.model.backend
        with told(backend, lambda: of_evaluation(backend, at_once or self.model.images_at_once)):
            if recorded is not None:
                try:
                    return recorded.accuracy(images, data.labels)
                except UnrecordableError as error:
                    self.capture_note = f"in evaluation, {error}"
            if at_once is not None:
                memory.release()
            accuracy, _ = evaluate(self.model, data, images, at_once)
            if at_once is not None:
                memory.release()
        return accuracy

    def _order(self, count: int, epoch: int) -> np.ndarray[Any, Any]:
        """Return an epoch's order of the images."""
        return Key(self.model.seed).child("shuffle", epoch).generator().permutation(count)

    def _run_epoch(
        self, images: Array, labels: Array, batch_size: int, order: np.ndarray[Any, Any], on_batch: Callable[[int], Any]
    ) -> list[float]:
        """Make one pass over the device's images; read the losses back once, at its end."""
        backend, xp = self.model.backend, self.model.backend.xp
        losses = []
        with backend.context():
            order = backend.asarray(order)
            for rows in batches(images.shape[0], batch_size):
                chosen = order[rows]
                losses.append(self.step(xp.take(images, chosen, axis=0), xp.take(labels, chosen, axis=0)))
                on_batch(rows.stop)
            return [float(loss) for loss in backend.to_numpy(xp.stack(losses))]


def evaluate(
    model: Model, data: Dataset, images: Array | None = None, batch_size: int | None = None
) -> tuple[float, float]:
    """Return the accuracy (a fraction) and the mean loss of a model on labelled images, in bounded memory.

    ``images`` may give the data set's images where they already lie on the model's device; ``batch_size`` says how
    many to compute at a time, `Model.images_at_once` or fewer.
    """
    most = model.images_at_once
    batch_size = most if batch_size is None else min(most, whole("batch_size", batch_size, 1))
    if not len(data):
        raise XpcnnError("there are no images to evaluate.")
    backend, xp = model.backend, model.backend.xp
    images = backend.asarray(data.images) if images is None else images
    right, loss = [], []
    with backend.context():
        labels = backend.asarray(data.labels)
        for rows in batches(len(data), batch_size):
            logits = model.predict(images[rows, ...])
            right.append(xp.sum(xp.astype(xp.argmax(logits, axis=1) == labels[rows], xp.int64)))
            loss.append(ops.softmax_cross_entropy(logits, labels[rows], reduction="sum")[0])
        correct = int(backend.to_numpy(xp.stack(right)).sum())
        total = math.fsum(map(float, backend.to_numpy(xp.stack(loss))))
    return correct / len(data), total / len(data)


def as_dataset(data: Dataset | tuple[Any, Any]) -> Dataset:
    """Return a data set from one, or from a pair of host arrays."""
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise XpcnnError("data must be a Dataset or a pair (images, labels).")
    for part in data:
        if is_array_api_obj(part) and not isinstance(part, np.ndarray):
            raise ArrayTypeError(f"data must be NumPy arrays, got {type(part).__name__} (backend.to_numpy makes one).")
    return Dataset(np.asarray(data[0]), np.asarray(data[1]))


def _nothing(done: int) -> None:
    """Do nothing after a batch."""
