"""One training step, and the state that steps change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from xpcnn import ops
from xpcnn.backend import Array
from xpcnn.data import Augment, Source
from xpcnn.errors import XpcnnError
from xpcnn.kernels.threads import single_threaded_blas
from xpcnn.layers.base import Arrays, Layer
from xpcnn.layers.plan import Footprint, Plan, arrays_in, bytes_of, memory_size
from xpcnn.model import Model
from xpcnn.optim import Optimizer
from xpcnn.optim.average import moving_average
from xpcnn.optim.base import keeps_nothing
from xpcnn.parallel import Group, share
from xpcnn.random import Key
from xpcnn.training import checkpoint
from xpcnn.training.checkpoint import Progress
from xpcnn.training.fitting import Epoch, Fitting, History
from xpcnn.training.memory import of_step, told
from xpcnn.training.shared import broadcast, parts, shared_loss, summed, sync_net
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
    ema : float, optional
        Keep a moving average of weights and running statistics with this decay (see `xpcnn.optim.moving_average`).
        `fit` evaluates it, shows it to ``on_epoch``, and leaves it in the model at its end.
    group : Group, optional
        Processes that train together, such as `xpcnn.parallel.world`: each computes its part of every batch, and the
        gradients are added up. The result is that of one process, up to the order of summation; batch norm takes the
        statistics of each part, whose running means are averaged.
    sync_batchnorm : bool
        Take batch norm's statistics over the whole batch, as one process does.

    Attributes
    ----------
    steps : int
        Updates made so far.
    progress : Progress
        Where `fit` stands.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        loss: str | Loss = "softmax_cross_entropy",
        *,
        max_memory: int | str | None = None,
        capture: str = "auto",
        ema: float | None = None,
        group: Group | None = None,
        sync_batchnorm: bool = False,
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
        self.group = Group() if group is None else group
        self.sync_batchnorm = sync_batchnorm
        self.max_memory = memory_size(max_memory)
        self.capture = capture
        self.capture_note = ""
        self.ema = ema
        self.averaging = None if ema is None else moving_average(ema)
        self.steps = 0
        self.progress = Progress()
        self.restored = False  # whether `fit` goes on from the progress, instead of beginning
        self.is_busy = False  # whether a step is being made, so that this trainer is not to be saved
        self._lent: tuple[Arrays, Arrays] | None = None  # the weights, while the model holds their averages
        self._shown: Arrays = {}
        self._tiles: dict[int, int] = {}  # by the images of a batch, how many of them are computed at a time
        self._tile = tiles_of_a_mean if isinstance(loss, str) and self.group.size == 1 else tiles_of_any
        with model.backend.context():
            self.opt_state = optimizer.init(model.parameters())
        self.average: Arrays | None = None if ema is None else model.parameters() | model.state()

    def step(self, x: Any, t: Any, of: int | None = None) -> Array:
        """Make one update from a batch and return its loss, which stays on the device.

        Parameters
        ----------
        x : array (N, C, H, W)
            uint8 images or normalised floats, on the host or the device. Every rank of a group is given all of them,
            and computes its part.
        t : array (N,) or (N, K)
            Labels or probabilities.
        of : int, optional
            Images in the whole batch, where x and t are this rank's part of it already.
        """
        self.take_back()
        count = of or (len(x) if hasattr(x, "__len__") else 1)
        if self.group.size > 1 and of is None:
            if len(t) != count:
                raise XpcnnError(f"there must be one target per image: {count} images, {len(t)} targets.")
            own = share(count, self.group.rank, self.group.size)
            x, t = x[own, ...], t[own, ...]
        model = self.model
        with model.computing(), single_threaded_blas(), self.told(count):
            loss, grads, state = self._gradients(x, t, count)
            params, moments = self.optimizer.update(grads, self.opt_state, model.parameters(), self.steps)
            average = self.average
            if self.averaging is not None and average is not None:
                average, _ = self.averaging.update(params | state, {}, average, self.steps)
        model.replace_arrays(params, state)
        self.opt_state, self.average = moments, average
        self.steps += 1
        return loss

    def fit(
        self,
        train: Source | tuple[Any, Any],
        test: Source | tuple[Any, Any] | None = None,
        *,
        epochs: int = 1,
        batch_size: int = 100,
        augment: Augment | None = None,
        drop_last: bool = False,
        evaluate_train: bool = True,
        evaluate_every: int = 1,
        on_step: Callable[[int, int], bool | None] | None = None,
        on_epoch: Callable[[Epoch, list[float]], bool | None] | None = None,
    ) -> History:
        """Train for whole epochs in an order shuffled by the model's seed; the last batch may be short.

        Parameters
        ----------
        train, test : Source or (images, labels)
            From `xpcnn.load_dataset`, or in memory. Images stay as they are (uint8 is a quarter of float32) and are
            normalised batch by batch; what is read from files is read ahead in the background.
        epochs, batch_size : int
            How long, and how many images per update.
        augment : Augment, optional
            How training images are changed at random, by the model's seed.
        drop_last : bool
            Leave a short last batch out.
        evaluate_train : bool
            Measure the accuracy on the whole training set, too.
        evaluate_every : int
            Epochs between two evaluations; the last epoch always has one.
        on_step : callable, optional
            Called with (epoch, images done in it) after each update; true ends the training.
        on_epoch : callable, optional
            Called with the epoch's record and its losses; first with epoch 0, before any training; true ends it.

        Returns
        -------
        History
            Every update's loss and every epoch's record; after `restore`, of what was still to do.

        Raises
        ------
        XpcnnError
            When an argument is wrong, or the loss is no longer a number, naming the step and the first layer.
        OutOfMemoryError
            When memory runs out, saying what a step takes and what would fit.
        """
        fitting = Fitting(self, train, test, batch_size, augment, drop_last)
        return fitting.run(epochs, evaluate_train, evaluate_every, on_step, on_epoch)

    def save(self, path: str | Path, **extra: Any) -> None:
        """Write a checkpoint that `restore` goes on from, whole or not at all.

        It may be called in ``on_step`` and ``on_epoch``. ``extra`` is stored beside: numbers, texts, lists, dicts.
        """
        checkpoint.save(self, path, extra)

    def restore(self, path: str | Path) -> dict[str, Any]:
        """Go on from a checkpoint: the next `fit`, with the same arguments, ends as if there had been no break.

        The device may be another one. Returns what `save` was given as ``extra``.

        Raises
        ------
        XpcnnError
            When the file is missing, damaged, or of another network, optimizer, seed or type of numbers.
        """
        return checkpoint.restore(self, path)

    def weights(self) -> tuple[Arrays, Arrays]:
        """Return the parameters and state that steps change, also while the model holds their averages."""
        return self._lent or (self.model.parameters(), self.model.state())

    def lend_average(self) -> None:
        """Let the model hold the averages, if there are any, until the next step."""
        if self.average is not None and self._lent is None:
            params, state = self._lent = self.weights()
            self._shown = {p: self.average[p] for p in params}
            self.model.replace_arrays(dict(self._shown), {p: self.average[p] for p in state})

    def take_back(self) -> None:
        """Let the model hold the weights that steps change; what somebody gave it meanwhile stays."""
        if self._lent is not None:
            now = self.model.parameters()
            if all(now[path] is array for path, array in self._shown.items()):
                self.model.replace_arrays(*self._lent)
            self._lent = None

    @contextmanager
    def being_busy(self) -> Iterator[None]:
        """Say that this trainer is not to be saved; that stays so if what is done is not done to its end."""
        self.is_busy = True
        yield
        self.is_busy = False

    def plan(self, batch_size: int) -> Plan:
        """Predict the memory of a step, and how many images at a time it takes to stay below ``max_memory``.

        Raises
        ------
        XpcnnError
            When ``max_memory`` is too small, saying what would be enough.
        """
        return self.footprint.plan(-(-batch_size // self.group.size), self.max_memory)

    @cached_property
    def footprint(self) -> Footprint:
        """What the network takes."""
        kept = [*arrays_in(self.opt_state), *(self.average or {}).values()]
        return self.model.footprint(sum(map(bytes_of, kept)))

    def told(self, count: int) -> AbstractContextManager[None]:
        """Return a context that turns running out of memory in steps of so many images into a sentence."""
        backend = self.model.backend
        return told(backend, lambda: of_step(backend, -(-count // self.group.size), lambda: self.footprint))

    def follow(self) -> None:
        """Take over, on every rank, what rank 0's trainer holds and where it stands."""
        if self.group.size == 1:
            return
        position = checkpoint.position(self)
        checkpoint.give(self, broadcast(checkpoint.named(self), self.group, self.model.backend))
        checkpoint.go_to(self, self.group.first(position))

    def key(self, step: int) -> Key:
        """Return the random numbers of a step."""
        return Key(self.model.seed).child("step", step)

    def _images_at_once(self, count: int) -> int:
        """Return how many of this process' images of a batch are computed at a time."""
        if self.max_memory is None or not count:
            return count
        if count not in self._tiles:
            self._tiles[count] = self.footprint.plan(count, self.max_memory).tile
        return self._tiles[count]

    def _gradients(self, x: Any, t: Any, count: int) -> tuple[Array, Arrays, Arrays]:
        """Return a batch's loss, its gradients and the new state, from this process' images of it."""
        model, backend, group = self.model, self.model.backend, self.group
        x, t, key, loss, net = backend.asarray(x), self._targets(t), self.key(self.steps), self.loss, model.net
        own = x.shape[0] if x.ndim else 0
        tile = self._images_at_once(own)
        if group.size > 1:
            key = replace(key, row=share(count, group.rank, group.size).start)
            loss = shared_loss(loss, group, parts(count, group.size), backend)
            net = self._synced if self.sync_batchnorm else net
        if tile == own:
            value, grads, state = whole_batch(model, loss, x, t, key, net)
        else:
            value, grads, state = self._tile(model, loss, x, t, key, tile)
        if group.size > 1:
            grads, state = summed(grads, state, own / count, group, backend, lasting=not keeps_nothing(self.optimizer))
        return value, grads, state

    @cached_property
    def _synced(self) -> Layer:
        """The network whose batch norms take the statistics of the whole batch."""
        return sync_net(self.model.net, self.group, self.model.backend)

    def _targets(self, t: Any) -> Array:
        """Return targets on the device: labels as they are, numbers in the model's dtype."""
        backend = self.model.backend
        t = backend.asarray(t)
        floats = backend.xp.isdtype(t.dtype, "real floating")
        return backend.xp.astype(t, getattr(backend.xp, self.model.dtype), copy=False) if floats else t
