"""Training and evaluation as recorded graphs: a step is launched with one call, and the host stays out of its way.

A backend that can record work (CUDA) has the engine ``capture``. The data set lies on the device; each step takes its
batch from there by an order that is uploaded once per epoch, reads the learning rate from a table, writes the new
parameters over the old, and notes its loss. One graph serves all full batches, another the last, short one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from xpcnn import kernels, ops
from xpcnn.backend import Array
from xpcnn.data import Augment, Loader
from xpcnn.data.augment import COLUMNS
from xpcnn.errors import XpcnnError
from xpcnn.layers.base import Arrays
from xpcnn.model import Model, batches
from xpcnn.optim.base import Numbers, OptState
from xpcnn.random import Key
from xpcnn.training.tiling import whole_batch

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

Host = np.ndarray[Any, Any]
Held = tuple[Arrays, Arrays, OptState, Arrays]  # parameters, state, the optimizer's moments, averages

SOURCES = ("uint8", "float32", "float64")  # what images are gathered from
MOST_DRAWS = 64  # layers that draw random numbers in a step
WARM_UP = 2  # steps before a recording: they compile kernels, choose algorithms and take memory


class UnrecordableError(XpcnnError):
    """Why a step cannot be recorded; training goes on without."""


class Draws:
    """The keys of all random numbers that the steps of an epoch draw: a table on the device, a row for each step."""

    def __init__(self, model: Model, steps: int, progress: Array, engine: Any) -> None:
        self._model, self._engine, self._progress = model, engine, progress
        self._paths: list[tuple[str | int, ...]] = []
        self._table = model.backend.asarray(np.zeros((steps, MOST_DRAWS, 2), np.uint64))

    def mask(self, path: tuple[str | int, ...], rate: float, like: Array) -> Array:
        """Draw what `Key.mask` would, by the key that the table has for this step and path."""
        if path not in self._paths:
            self._paths.append(path)
        place = self._paths.index(path)
        if place >= MOST_DRAWS:
            raise UnrecordableError(f"more than {MOST_DRAWS} layers draw random numbers")
        return self._engine.mask(self._table, self._progress, place, rate, tuple(like.shape))

    def fill(self, first: int) -> None:
        """Put down the keys of an epoch whose first step has this number."""
        if not self._paths:
            return
        keys = np.zeros(self._table.shape, np.uint64)
        for row, place in product(range(len(keys)), range(len(self._paths))):
            words = Key(self._model.seed, ("step", first + row, *self._paths[place])).words
            keys[row, place] = words & (1 << 64) - 1, words >> 64
        self._table[...] = self._model.backend.asarray(keys)


@dataclass(frozen=True)
class RecordedKey(Key):
    """The key of a step that is recorded once and replayed with the numbers of other steps."""

    draws: Draws | None = None

    @property
    def words(self) -> int:
        """Refuse: it would be known once, and never again."""
        raise UnrecordableError(f"{'/'.join(map(str, self.path))} draws random numbers on the host in each step")

    def mask(self, rate: float, like: Array) -> Array:
        """Draw on the device."""
        assert self.draws is not None
        return self.draws.mask(self.path, rate, like)


class Feed:
    """A data set on the device and where in it the next batch begins."""

    def __init__(
        self,
        images: Array,
        labels: Array,
        step: int,
        model: Model,
        most: int | None = None,
        augment: Augment | None = None,
    ) -> None:
        backend = model.backend
        model.as_input(images[:1, ...])  # raises where a step would
        if not images.shape[0] or str(images.dtype) not in SOURCES:
            raise UnrecordableError(f"{images.shape[0]} images of {images.dtype} are not what is gathered on a GPU")
        self.step, self.model, self.augment = step, model, augment
        self.count = images.shape[0]
        self.sizes = [rows.stop - rows.start for rows in batches(self.count, step)][:most]
        self.images = kernels.of(backend.xp).engine("capture", images).contiguous(images)
        self.labels = backend.asarray(labels, "int64")
        self.order = backend.asarray(np.arange(self.count))
        self.table = backend.asarray(np.zeros((self.count if augment else 0, COLUMNS), np.float32))
        self.progress = backend.asarray(np.zeros(1, np.int64))
        self.losses = backend.asarray(np.zeros(len(self.sizes)), model.dtype)
        self.right = backend.asarray(np.zeros(len(self.sizes), np.int64))

    def batch(self, engine: Any, count: int) -> tuple[Array, Array]:
        """Return the next images and labels."""
        arrays = self.images, self.labels, self.order, self.progress
        dtype = self.model.computation.image_dtype
        normalise = self.model.normalise
        pixel = 1.0 / (255.0 * normalise.std), normalise.mean / normalise.std
        if not self.augment:
            return engine.gather(*arrays, count, self.step, dtype, pixel)
        classes, probability = self.model.output_shape[0], self.model.dtype
        sizes = count, self.step, dtype, pixel, classes, probability
        return engine.gather_augmented(*arrays, self.table, self.augment.stages, *sizes)

    def rewind(self, order: Host | None = None, table: Host | None = None, first: int = 0) -> None:
        """Begin anew, or with another batch than the first, in another order and with other random numbers if given."""
        self.progress[...] = first
        if order is not None:
            self.order[...] = self.model.backend.asarray(order)
        if table is not None:
            self.table[...] = self.model.backend.asarray(table)


class Recorded:
    """A trainer's steps over one data set, and the evaluation of others, as graphs.

    While an epoch runs, the model holds the arrays that each step writes over; between epochs it has copies of its own,
    so that nobody's arrays change under their hands.

    Raises
    ------
    UnrecordableError
        When a step cannot be recorded, saying why.
    """

    def __init__(
        self, trainer: Trainer, images: Array, labels: Array, loader: Loader, augment: Augment | None = None
    ) -> None:
        self.trainer, self.model = trainer, trainer.model
        backend = self.model.backend
        k, optimizer = kernels.of(backend.xp), trainer.optimizer
        self._engine, self._optimizer = k.engine("capture", images), k.engine("optimizer", images)
        if not self._engine or not self._optimizer:
            raise UnrecordableError(f"{backend.name} has no graphs")
        if optimizer.numbers is None or optimizer.rule is None:
            raise UnrecordableError(f"the optimizer {optimizer.name} has no rule and numbers")
        self._numbers, self._prepare = optimizer.numbers, optimizer.prepare
        self._groups = optimizer.groups(self.model.parameters())
        self._recorder = self._engine.recorder()
        self._graphs: dict[tuple[int, int], Callable[[], None]] = {}
        self._others: dict[int, Feed] = {}
        with backend.context():
            self._feed = Feed(images, labels, loader.batch_size, self.model, len(loader), augment)
            self._table = backend.asarray(self._numbers_from(0, self._numbers))
            self._shares = backend.asarray(self._numbers_from(0, self._averaging_numbers))
            self._draws = Draws(self.model, len(self._feed.sizes), self._feed.progress, self._engine)
            self._own = self._copies(self._held())
        self._handed = self._held()  # what the graphs' arrays have the values of
        self._recorded = self._settings()
        self._record(self._feed, self._train)

    @property
    def is_outdated(self) -> bool:
        """Whether the trainer has got another optimizer, loss or network since."""
        return any(a is not b for a, b in zip(self._settings(), self._recorded, strict=True))

    def _settings(self) -> tuple[object, ...]:
        """Return what was recorded once and for all."""
        trainer, model = self.trainer, self.model
        return trainer.optimizer, *trainer.loss, trainer.averaging, model.normalise, model.net

    def epoch(self, order: Host, table: Host | None = None) -> Generator[int, None, None]:
        """Make the updates of a pass over the data set that are still to be made; after each, yield the images done."""
        feed, backend, expected = self._feed, self.model.backend, -1
        trainer, progress = self.trainer, self.trainer.progress
        with backend.context(), self._recorder:
            feed.rewind(order, table, progress.batch)
            try:
                for number in range(progress.batch, len(feed.sizes)):
                    with trainer.being_busy():
                        self._catch_up()
                        if trainer.steps != expected:  # at first, and where the caller made steps of its own
                            self._fill_tables(trainer.steps - number)
                        self._give(self._own)
                        self._handed = self._own
                        self._graphs[id(feed), feed.sizes[number]]()
                        trainer.steps = expected = trainer.steps + 1
                        progress.losses.append(feed.losses[number])
                        progress.batch = number + 1
                    yield sum(feed.sizes[: number + 1])
            finally:
                self._catch_up()
                self._handed = self._copies(self._own)
                self._give(self._handed)
                progress.losses = progress.read(backend)

    def accuracy(self, images: Array, labels: Array) -> tuple[float, float]:
        """Return the share of a data set on the device that the model gets right, and its mean loss."""
        backend = self.model.backend
        if id(images) not in self._others:
            with backend.context():
                feed = Feed(images, labels, self.model.images_at_once, self.model)
            self._record(feed, self._evaluate)
            self._others[id(images)] = feed
        feed = self._others[id(images)]
        with backend.context(), self._recorder:
            self._catch_up()
            feed.rewind()
            for size in feed.sizes:
                self._graphs[id(feed), size]()
            right, losses = int(backend.to_numpy(feed.right).sum()), backend.to_numpy(feed.losses)
            return right / feed.count, math.fsum(map(float, losses)) / feed.count

    def _record(self, feed: Feed, work: Callable[[Feed, int], None]) -> None:
        """Warm up and record a step for each size of batch; the model stays as it is."""
        before = self._held()
        with self.model.computing(), self._recorder:
            self._give(self._own)
            try:
                for size in sorted(set(feed.sizes)):
                    job = partial(work, feed, size)
                    self._graphs[id(feed), size] = self._recorder.record(job, partial(_repeated, feed, job))
            except self._engine.NotRecordedError as error:
                raise UnrecordableError((str(error).strip() or repr(error)).splitlines()[0]) from error
            finally:
                self._fill(before)
                self._give(before)

    def _numbers_from(self, first: int, of: Callable[[int], Numbers]) -> Host:
        """Return the numbers of an epoch's steps, a row each."""
        numbers = [of(max(0, first + step)) for step in range(len(self._feed.sizes))]
        return np.asarray(numbers, np.float64).reshape(len(numbers), len(numbers[0]))

    def _averaging_numbers(self, step: int) -> Numbers:
        """Return a step's numbers for the average."""
        averaging = self.trainer.averaging
        return averaging.numbers(step) if averaging is not None and averaging.numbers is not None else (0.0,)

    def _fill_tables(self, first: int) -> None:
        """Put down what the steps of an epoch need whose first has this number."""
        asarray = self.model.backend.asarray
        self._draws.fill(first)
        self._table[...] = asarray(self._numbers_from(first, self._numbers))
        self._shares[...] = asarray(self._numbers_from(first, self._averaging_numbers))

    def _train(self, feed: Feed, size: int) -> None:
        """Launch one update."""
        x, t = feed.batch(self._engine, size)
        params, state, moments, average = self._held()
        loss, grads, new_state = whole_batch(
            self.model, self.trainer.loss, x, t, RecordedKey(self.model.seed, draws=self._draws)
        )
        grads = self._prepare(grads) if self._prepare else grads
        for rule, paths in self._groups:
            values, slopes = [params[path] for path in paths], [grads[path] for path in paths]
            tables = [[arrays[path] for path in paths] for arrays in moments.values()]
            into = values, tables
            self._optimizer.update_all(rule, self._table, values, slopes, tables, step=feed.progress, into=into)
        changed = [path for path in state if new_state[path] is not state[path]]
        olds, news = [state[path] for path in changed], [new_state[path] for path in changed]
        if changed:  # written over in one launch
            self._optimizer.update_all(_take_new, self._table, olds, news, [], step=feed.progress, into=(olds, []))
        if average and self.trainer.averaging is not None:
            olds, news = list(average.values()), list((params | state).values())
            average_rule, into = self.trainer.averaging.rule, (olds, [])
            self._optimizer.update_all(average_rule, self._shares, olds, news, [], step=feed.progress, into=into)
        self._engine.advance(loss, feed.losses, feed.progress)

    def _evaluate(self, feed: Feed, size: int) -> None:
        """Launch the evaluation of one batch."""
        x, t = feed.batch(self._engine, size)
        computation = self.model.computation
        params = computation.parameters(self.model.parameters())
        logits = computation.widen(self.model.net.predict(params, self.model.state(), x))
        if logits.ndim != 2:
            raise UnrecordableError(f"the network's outputs are of shape {tuple(logits.shape[1:])}, not one per class")
        self._engine.tally(logits, t, feed.right, feed.progress)
        self._engine.advance(ops.softmax_cross_entropy(logits, t, reduction="sum")[0], feed.losses, feed.progress)

    def _held(self) -> Held:
        """Return what the model and the optimizer hold."""
        return self.model.parameters(), self.model.state(), self.trainer.opt_state, self.trainer.average or {}

    def _give(self, held: Held) -> None:
        """Let the model and the optimizer hold arrays."""
        params, state, moments, average = held
        self.model.replace_arrays(params, state)
        self.trainer.opt_state, self.trainer.average = moments, average or None

    def _catch_up(self) -> None:
        """Let the graphs' arrays have the values that the model holds, if somebody replaced what it was given."""
        held = self._held()
        if any(a is not b for a, b in zip(_leaves(held), _leaves(self._handed), strict=True)):
            self._fill(held)
            self._handed = held

    def _fill(self, held: Held) -> None:
        """Copy values into the graphs' arrays."""
        for target, source in zip(_leaves(self._own), _leaves(held), strict=True):
            self._engine.replace(target, source)

    def _copies(self, held: Held) -> Held:
        """Return arrays of their own."""
        copied = iter([self._engine.copy(array) for array in _leaves(held)])
        params, state = ({path: next(copied) for path in part} for part in held[:2])
        moments = {name: {path: next(copied) for path in arrays} for name, arrays in held[2].items()}
        return params, state, moments, {path: next(copied) for path in held[3]}


def _leaves(held: Held) -> list[Array]:
    """Return all arrays in one order."""
    params, state, moments, average = held
    tables = [params, state, *moments.values(), average]
    return [array for arrays in tables for array in arrays.values()]


def _take_new(numbers: tuple[float, ...], old: Array, new: Array) -> tuple[Array, ...]:
    """Replace a value: an optimizer's rule."""
    return (new,)


def _repeated(feed: Feed, work: Callable[[], None]) -> None:
    """Do some work a few times with the first batch."""
    for _ in range(WARM_UP):
        feed.rewind()
        work()
