"""One call of `Trainer.fit`: epochs of steps, each followed by an evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from xpcnn import kernels
from xpcnn.backend import Array
from xpcnn.data import Augment, Dataset, Loader, Source
from xpcnn.errors import NotFiniteError, XpcnnError, whole
from xpcnn.kernels import memory
from xpcnn.layers.base import Arrays
from xpcnn.optim.base import OptState
from xpcnn.parallel import check_alike, share
from xpcnn.training.capture import Recorded, UnrecordableError
from xpcnn.training.checkpoint import Progress
from xpcnn.training.evaluation import as_source, evaluate
from xpcnn.training.guard import first_fault, not_finite, worst
from xpcnn.training.memory import of_evaluation, told
from xpcnn.training.shared import check_weights

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

CURES = "a smaller learning rate, a warm-up or clip_norm may help"
OnStep = Callable[[int, int], bool | None] | None


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; epoch 0 is the state before training, with no loss. What was not measured is None."""

    epoch: int
    loss: float | None  # mean over the epoch's updates
    train_accuracy: float | None  # fraction of the whole training set, after the epoch
    test_accuracy: float | None
    seconds: float  # training and evaluation
    images_per_second: float | None  # of training alone
    test_loss: float | None = None
    lr: float | None = None  # of the epoch's last update

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


@dataclass
class History:
    """The loss of every update and the record of every epoch; ``stopped`` says that a callback ended the training."""

    losses: list[float] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    stopped: bool = False


class _Snapshot(NamedTuple):
    """What a trainer held."""

    params: Arrays
    state: Arrays
    moments: OptState
    average: Arrays | None
    steps: int
    batch: int


class Fitting:
    """Trains a trainer's model on one data set.

    The data set lies on the model's device if it is in memory, and its steps are recorded where they can be. Images
    that lie in files, and all images where the host computes, come from a loader.
    """

    def __init__(
        self, trainer: Trainer, train: Any, test: Any, batch_size: int, augment: Augment | None, drop_last: bool
    ) -> None:
        self.trainer, self.model, self.backend = trainer, trainer.model, trainer.model.backend
        batch_size = whole("batch_size", batch_size, 1)
        self.train: Source = as_source(train)
        self.test: Source | None = None if test is None else as_source(test)
        if not len(self.train):
            raise XpcnnError("there are no training images.")
        if drop_last and len(self.train) < batch_size:
            raise XpcnnError(f"with drop_last, {len(self.train)} images are no batch of {batch_size}.")
        self.augment = augment if augment else None
        in_memory = isinstance(self.train, Dataset)
        ahead = 2 if self.augment or not in_memory else 0
        self.loader = Loader(
            self.train, batch_size, seed=self.model.seed, augment=self.augment, drop_last=drop_last, prefetch=ahead,
            classes=self.model.output_shape[0], part=(trainer.group.rank, trainer.group.size),
        )  # fmt: skip
        self.batch_size = min(batch_size, len(self.train))
        if trainer.group.size > 1:
            check_weights(trainer.group, trainer.weights()[0], self.backend)
            check_alike(
                trainer.group, {"training data": self.train.fingerprint(), "batches": repr((batch_size, drop_last))}
            )
        self.stopped = False
        self.images_per_second: float | None = None
        self.at_once: int | None = None
        if trainer.max_memory is not None:
            trainer.plan(self.batch_size)  # raises before anything is computed
            self.at_once = trainer.footprint.images_in_prediction(trainer.max_memory)
        with trainer.told(self.batch_size):
            self.images, self.labels = self._on_device(self.train)
            self.test_images = None if self.test is None else self._on_device(self.test)[0]
            self.recorded = self._record()

    def run(
        self,
        epochs: int,
        evaluate_train: bool,
        evaluate_every: int,
        on_step: OnStep,
        on_epoch: Callable[[Epoch, list[float]], bool | None] | None,
    ) -> History:
        """Train and evaluate, from the trainer's progress on if it was restored."""
        epochs, every = whole("epochs", epochs, 1), whole("evaluate_every", evaluate_every, 1)
        trainer, history = self.trainer, History()
        trainer.take_back()
        if not trainer.restored:
            trainer.progress = Progress()
        if (batch := trainer.progress.batch) > len(self.loader):
            raise XpcnnError(
                f"training stopped after batch {batch}, but an epoch has {len(self.loader)} batches; it goes on with "
                "the same data and batch_size only."
            )
        trainer.restored = trainer.is_busy = False
        for epoch in range(trainer.progress.epoch, epochs + 1):
            start = time.perf_counter()
            losses = self._epoch(epoch, on_step) if epoch else []
            history.losses += losses
            if self.stopped:
                history.stopped = True
                return history
            due = epoch % every == 0 or epoch == epochs
            trainer.lend_average()
            record = self._evaluated(epoch, losses, due, due and evaluate_train, start)
            history.epochs.append(record)
            with trainer.being_busy():
                trainer.progress = Progress(epoch + 1)
                history.stopped = trainer.group.any(bool(on_epoch and on_epoch(record, losses)))
            if history.stopped:
                break
            trainer.take_back()
        trainer.lend_average()
        return history

    def _epoch(self, epoch: int, on_step: OnStep) -> list[float]:
        """Make the steps of an epoch that are still to be made, and return the losses of all."""
        trainer, progress = self.trainer, self.trainer.progress
        start, first = time.perf_counter(), progress.batch
        with trainer.told(self.batch_size):
            if self.recorded is not None and self.recorded.is_outdated:
                self.recorded = self._record()
            before = self._snapshot()
            try:
                self._make_steps(epoch, on_step)
            except NotFiniteError as error:  # a callback could not save, and does not know where that began
                alone = trainer.group.size == 1  # other ranks would not make the steps again with this one
                raise (self._fault_in(before, epoch) if alone else None) or error from None
            losses = progress.read(self.backend)
            check_weights(trainer.group, trainer.weights()[0], self.backend)
        images = min(progress.batch * self.loader.batch_size, len(self.train)) - first * self.loader.batch_size
        self.images_per_second = images / (time.perf_counter() - start) if images > 0 else None
        if fault := self._fault_in(before, epoch):
            raise fault
        return losses

    def _make_steps(self, epoch: int, on_step: OnStep) -> None:
        """Make the steps of an epoch that are still to be made, as long as nobody wants to stop."""
        with closing(self._steps(epoch) if self.recorded is None else self._replays(epoch)) as steps:
            for done in steps:
                wanted = bool(on_step and on_step(epoch, done))
                if self.trainer.group.any(wanted):
                    self.stopped = True
                    return

    def _steps(self, epoch: int) -> Generator[int, None, None]:
        """Make steps one by one; after each, yield how many of the epoch's images are done."""
        trainer, progress = self.trainer, self.trainer.progress
        for x, t in self._batches(epoch, progress.batch):
            before = self._snapshot()
            with trainer.being_busy():
                loss = trainer.step(x, t, **self._whole(progress.batch))
                progress.losses.append(loss)
                progress.batch += 1
            if self.backend.name == "numpy" and not math.isfinite(float(loss)):
                raise self._fault(before, x, epoch)
            yield min(progress.batch * self.loader.batch_size, len(self.train))

    def _replays(self, epoch: int) -> Generator[int, None, None]:
        """Do the same by replaying recorded steps."""
        assert self.recorded is not None
        return self.recorded.epoch(self.loader.order(epoch), self.loader.table(epoch))

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
        """Yield an epoch's batches from one on, gathered and augmented where the images are."""
        if self.images is None or self.backend.name == "numpy":
            yield from self.loader.epoch(epoch, first)
            return
        xp, table = self.backend.xp, self.loader.table(epoch)
        with self.backend.context():
            order = self.backend.asarray(self.loader.order(epoch))
            for batch in range(first, len(self.loader)):
                rows, own = self.loader.rows(batch)
                chosen = xp.take(order, self.backend.asarray(rows), axis=0)
                x, t = xp.take(self.images, chosen, axis=0), xp.take(self.labels, chosen, axis=0)
                if table is not None and self.augment is not None:
                    x, t = self.augment.apply(x, t, table[rows], self.model.output_shape[0])
                yield x[own, ...], t[own, ...]

    def _whole(self, batch: int) -> dict[str, int]:
        """Return what a step must be told where its images are only a part of a batch."""
        return {"of": self._images_in(batch)} if self.trainer.group.size > 1 else {}

    def _images_in(self, batch: int) -> int:
        """Return how many images one of the epoch's batches has, on all ranks together."""
        return min(self.loader.batch_size, len(self.train) - batch * self.loader.batch_size)

    def _evaluated(self, epoch: int, losses: list[float], test: bool, train: bool, start: float) -> Epoch:
        """Return an epoch's record, with the accuracies that are due."""
        nothing = None, None
        accuracy, _ = self._accuracy(self.train, self.images) if train else nothing
        wanted = self.test if test else None
        test_accuracy, test_loss = nothing if wanted is None else self._accuracy(wanted, self.test_images)
        return Epoch(
            epoch,
            math.fsum(losses) / len(losses) if losses else None,
            accuracy,
            test_accuracy,
            time.perf_counter() - start,
            self.images_per_second,
            test_loss,
        )

    def _accuracy(self, data: Source, images: Array | None) -> tuple[float, float]:
        """Return accuracy and loss on a data set; below a limit, what steps and predictions use is not kept both."""
        backend = self.backend
        with told(backend, lambda: of_evaluation(backend, self.at_once or self.model.images_at_once)):
            if self.recorded is not None and images is not None:
                try:
                    return self.recorded.accuracy(images, data.labels)
                except UnrecordableError as error:
                    self.trainer.capture_note = f"in evaluation, {error}"
            if self.at_once is not None:
                memory.release()
            found = evaluate(self.model, data, images, self.at_once, self.trainer.group)
            if self.at_once is not None:
                memory.release()
        return found

    def _on_device(self, data: Source) -> tuple[Array | None, Array]:
        """Return images and labels where the model is; images that are read from files stay there."""
        images = self.backend.asarray(data.images) if isinstance(data, Dataset) else None
        return images, self.backend.asarray(data.labels)

    def _record(self) -> Recorded | None:
        """Return the steps as graphs, or None, with a note of why where a backend could have some."""
        trainer = self.trainer
        trainer.capture_note = ""
        like = self.images if self.images is not None else next(iter(self.model.parameters().values()), self.labels)
        if trainer.capture == "off" or not kernels.of(self.backend.xp).engine("capture", like):
            return None
        try:
            if trainer.group.size > 1:
                raise UnrecordableError("several processes add up their gradients after each")
            if trainer.max_memory is not None:
                raise UnrecordableError("with max_memory, nothing is kept for a graph")
            if self.images is None:
                raise UnrecordableError("the images are read from files")
            return Recorded(trainer, self.images, self.labels, self.loader, self.augment)
        except UnrecordableError as error:
            trainer.capture_note = str(error)
            return None

    def _snapshot(self) -> _Snapshot:
        """Return what the trainer holds; no step writes to it."""
        trainer = self.trainer
        return _Snapshot(*trainer.weights(), trainer.opt_state, trainer.average, trainer.steps, trainer.progress.batch)

    def _fault_in(self, before: _Snapshot, epoch: int) -> XpcnnError | None:
        """Return what is wrong with an epoch's losses or the weights after it; the model is left as it was before."""
        losses = self.trainer.progress.read(self.backend)
        if not all(map(math.isfinite, losses)):
            return self._fault_among(losses, before, epoch)
        params, state = self.trainer.weights()
        wrong = not_finite(self.model, params | state)
        if wrong is None:
            return None
        step = self.trainer.steps
        self._go_back(before)
        return XpcnnError(f"{wrong} is no longer finite after step {step}, in epoch {epoch}; {CURES}.")

    def _fault_among(self, losses: list[float], before: _Snapshot, epoch: int) -> XpcnnError:
        """Return what is wrong with the first loss that is no number, by making the epoch's steps again until there."""
        wrong = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), len(losses) - 1)
        self._go_back(before)
        for x, t in self._batches(epoch, before.batch):
            if self.trainer.progress.batch >= wrong:
                return self._fault(self._snapshot(), x, epoch)
            self.trainer.step(x, t, **self._whole(self.trainer.progress.batch))
            self.trainer.progress.batch += 1
        return self._fault(before, x, epoch)

    def _fault(self, before: _Snapshot, x: Any, epoch: int) -> XpcnnError:
        """Return what is wrong with a step whose loss is no number; the model is left as it was before it."""
        self._go_back(before)
        key = self.trainer.key(before.steps)
        group = self.trainer.group
        key = replace(key, row=share(self._images_in(before.batch), group.rank, group.size).start)
        found = worst(group.gathered(first_fault(self.model, before.params, before.state, x, key)))
        step = before.steps + 1
        return XpcnnError(f"the loss is no longer a number in step {step}, in epoch {epoch}: {found}; {CURES}.")

    def _go_back(self, before: _Snapshot) -> None:
        """Let the trainer hold what it held."""
        trainer = self.trainer
        trainer.model.replace_arrays(before.params, before.state)
        trainer.opt_state, trainer.average, trainer.steps = before.moments, before.average, before.steps
        trainer.progress.batch = before.batch
