"""Batches of a data set in an order drawn from the seed, read and augmented ahead by a thread in the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from xpcnn.data.augment import Augment
from xpcnn.data.dataset import Source
from xpcnn.errors import XpcnnError, whole
from xpcnn.parallel import share
from xpcnn.random import Key

Host = np.ndarray[Any, Any]
Batch = tuple[Host, Host]


class Loader:
    """Batches of a data set, epoch by epoch.

    What an epoch brings depends on the seed and its number alone: not on earlier epochs, on where in it one begins, nor
    on the threads.

    Parameters
    ----------
    data : Source
        Such as a `Dataset`; it is read batch by batch.
    batch_size : int
        Images in a batch; the last one may be short.
    seed : int
        Of orders and augmentation.
    augment : Augment, optional
        What is changed at random.
    shuffle : bool
        Whether each epoch has an order of its own; else all have the data set's.
    drop_last : bool
        Leave out a short last batch.
    prefetch : int
        How many batches are made ahead by a thread; with 0, each is made when it is asked for.
    classes : int, optional
        K of the probabilities (n, K) that mixup and cutmix make of labels; if not given, as many as the data set names
        or, if it names none, as its labels need.
    part : (int, int)
        Which part of each batch is wanted, such as (rank, size) of `xpcnn.parallel.world`: the others are not read.

    Raises
    ------
    XpcnnError
        When an argument is wrong, or there would be no batch.
    """

    def __init__(
        self,
        data: Source,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        prefetch: int = 2,
        classes: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.data = data
        self.batch_size = whole("batch_size", batch_size, 1)
        self.seed = whole("seed", seed, 0)
        self.augment = augment or None
        self.shuffle, self.drop_last = shuffle, drop_last
        self.prefetch = whole("prefetch", prefetch, 0)
        self.part = part
        if not len(data):
            raise XpcnnError("there are no images to load.")
        if not len(self):
            raise XpcnnError(
                f"drop_last leaves nothing: batch_size is {batch_size}, but there are {len(data)} images; "
                f"make batches smaller or keep the last one."
            )
        self.classes = classes or len(data.classes) or 1 + int(data.labels.max())
        if self.augment:
            self.augment.draw(Key(self.seed), 0, data.image_shape)  # raises where an epoch would

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        count = len(self.data)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def order(self, epoch: int) -> Host:
        """Return an epoch's order of the images (N,)."""
        if not self.shuffle:
            return np.arange(len(self.data))
        return Key(self.seed).child("shuffle", epoch).generator().permutation(len(self.data))

    def table(self, epoch: int) -> Host | None:
        """Return an epoch's random numbers (N, COLUMNS), or None: row i is for the i-th image of the order."""
        if self.augment is None:
            return None
        return self.augment.draw(Key(self.seed).child("augment", epoch), len(self.data), self.data.image_shape)

    def rows(self, batch: int) -> tuple[Host, slice]:
        """Return which places of an epoch's order are read for a batch, and which of those are this part's.

        Mixup and cutmix mix an image with its mirror image in the order of the batch, which is read, too.
        """
        first = batch * self.batch_size
        count = min(self.batch_size, len(self.data) - first)
        own = share(count, *self.part)
        if self.augment is None or not self.augment.mixes or self.part[1] == 1:
            return np.arange(first + own.start, first + own.stop), slice(0, own.stop - own.start)
        places = np.arange(own.start, own.stop)
        read = np.union1d(places, count - 1 - places)
        start = int(np.searchsorted(read, own.start))
        return first + read, slice(start, start + len(places))

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches from the one numbered ``start`` on; what comes before it is not read.

        Parameters
        ----------
        number : int
            The epoch's; training counts from 1.
        start : int
            The first batch, up to ``len(self)``, where nothing is left.

        Yields
        ------
        x : array (n, C, H, W)
            uint8 images, or what the data set holds.
        t : array (n,) or (n, K)
            Labels or, with mixup or cutmix, probabilities of float32.

        Raises
        ------
        XpcnnError
            When ``start`` lies outside the epoch.

        Notes
        -----
        What goes wrong in reading is raised where its batch would have come. Closing the iterator, or letting go of it,
        stops the thread.
        """
        if whole("start", start, 0) > len(self):
            raise XpcnnError(f"start must be a batch from 0 to {len(self)}, not {start}.")
        made = self._batches(number, start)
        return _ahead(made, self.prefetch) if self.prefetch else made

    def _batches(self, number: int, start: int) -> Iterator[Batch]:
        """Make an epoch's batches one by one."""
        order, table = self.order(number), self.table(number)
        for batch in range(start, len(self)):
            rows, own = self.rows(batch)
            x, t = self.data.read(order[rows]), self.data.labels[order[rows]]
            if self.augment is not None and table is not None:
                x, t = self.augment.apply(x, t, table[rows], self.classes)
            yield x[own], t[own]


def _ahead(made: Iterator[Batch], most: int) -> Iterator[Batch]:
    """Yield what an iterator makes, in a thread that is up to ``most`` items ahead."""
    items: SimpleQueue[Batch | BaseException | None] = SimpleQueue()
    permits: SimpleQueue[bool] = SimpleQueue()  # to make one more item, or not
    for _ in range(most - 1):
        permits.put(True)
    thread = threading.Thread(target=_fill, args=(items, permits, made), name="xpcnn-loader", daemon=True)
    try:
        thread.start()
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            permits.put(True)
            yield item
    finally:
        _stop(permits, thread)


def _fill(items: SimpleQueue[Any], permits: SimpleQueue[bool], made: Iterator[Batch]) -> None:
    """Put down what is made, as far as it is permitted, and at the end None or what went wrong."""
    end: BaseException | None = None
    try:
        for item in made:
            items.put(item)
            if not permits.get():
                return
    except BaseException as error:  # noqa: BLE001  it is raised where the batch is waited for
        end = error
    items.put(end)


def _stop(permits: SimpleQueue[bool], thread: threading.Thread) -> None:
    """Permit nothing more, and wait for the batch that is being made."""
    with suppress(Empty):
        while True:
            permits.get_nowait()
    permits.put(False)
    if thread.is_alive() and thread is not threading.current_thread():  # which may be what collects garbage
        thread.join()
