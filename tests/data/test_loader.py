"""Batches: their order, what is done to them, and the thread that makes them ahead."""

from __future__ import annotations

import _thread
import gc
import threading
import time

import numpy as np
import pytest

import xpcnn as xc
from xpcnn.data import Augment, Dataset, Loader, Source
from xpcnn.errors import DataError, XpcnnError
from xpcnn.random import Key

COUNT = 23
EVERYTHING = Augment(1, True, 20.0, 0.2, 0.3, 0.2, 0.4, 3, 0.7, 0.9)


@pytest.fixture
def data(rng):
    images = rng.integers(0, 256, (COUNT, 2, 5, 6)).astype(np.uint8)
    return Dataset(images, rng.integers(0, 4, COUNT), tuple("abcd"))


class Slow(Source):
    """Images that are all their number; reading takes a while, and one of them cannot be read."""

    classes = ("a", "b")
    image_shape = (1, 2, 3)

    def __init__(self, seconds=0.0, broken=None, count=COUNT):
        self.labels = np.arange(count) % 2
        self.seconds, self.broken, self.reads = seconds, broken, []

    def read(self, rows):
        time.sleep(self.seconds)
        self.reads.append(rows.tolist())
        if self.broken in rows:
            raise DataError(f"image {self.broken} is broken.")
        return np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), *self.image_shape)).copy()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not loaders()


def loaders():
    return [thread for thread in threading.enumerate() if thread.name == "xpcnn-loader"]


def same(a, b):
    """Whether two sequences of batches are equal, to the last bit."""
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        (x == y).all() and (s == t).all() and x.dtype == y.dtype and s.dtype == t.dtype
        for (x, s), (y, t) in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("prefetch", [0, 1, 2, 50])
@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_an_epoch_is_the_data_in_its_order(data, prefetch, drop_last, sizes):
    loader = Loader(data, 5, seed=3, drop_last=drop_last, prefetch=prefetch)
    batches = list(loader.epoch(2))
    assert [len(x) for x, _ in batches] == sizes
    assert len(loader) == len(sizes)
    order = Key(3).child("shuffle", 2).generator().permutation(COUNT)[: sum(sizes)]
    np.testing.assert_array_equal(loader.order(2)[: sum(sizes)], order)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), data.images[order])
    np.testing.assert_array_equal(np.concatenate([t for _, t in batches]), data.labels[order])
    assert batches[0][0].dtype == np.uint8
    assert loader.table(2) is None


def test_epochs_differ_and_seeds_too(data):
    orders = [Loader(data, 5, seed=seed).order(epoch).tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(COUNT)) for order in orders)


def test_without_shuffling_the_order_is_the_data_sets(data):
    loader = Loader(data, 10, shuffle=False)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in loader.epoch(1)]), data.images)
    np.testing.assert_array_equal(loader.order(5), np.arange(COUNT))


def test_it_brings_what_training_brings_itself(data):
    """`Trainer.fit` has shuffled like this since there is no loader; the weights' seed is the loader's."""
    model = xc.Model(xc.models.simple_convnet((2, 8, 8), 4), "cpu", seed=4)
    trainer = xc.Trainer(model, xc.optim.sgd(0.1))
    images = np.pad(data.images, [(0, 0), (0, 0), (3, 0), (2, 0)])
    data = Dataset(images, data.labels, data.classes)
    history = trainer.fit(data, epochs=1, batch_size=5)
    other = xc.Trainer(xc.Model(model.net, "cpu", seed=4), xc.optim.sgd(0.1))
    losses = [float(other.step(x, t)) for x, t in Loader(data, 5, seed=4).epoch(1)]
    assert losses == history.losses


@pytest.mark.parametrize("start", range(6))
def test_an_epoch_goes_on_where_it_was_left(data, start):
    loader = Loader(data, 5, augment=EVERYTHING)
    assert same(list(loader.epoch(1))[start:], loader.epoch(1, start))


def test_what_was_done_before_is_not_read_again():
    source = Slow()
    list(Loader(source, 5, shuffle=False).epoch(1, 3))
    assert source.reads == [[15, 16, 17, 18, 19], [20, 21, 22]]


@pytest.mark.parametrize("augment", [Augment(crop=1, flip=True), EVERYTHING])
def test_augmentation_is_that_of_the_epochs_table(data, augment):
    loader = Loader(data, 7, seed=9, augment=augment)
    table = loader.table(4)
    np.testing.assert_array_equal(table, augment.draw(Key(9).child("augment", 4), COUNT, (2, 5, 6)))
    order = loader.order(4)
    for number, (x, t) in enumerate(loader.epoch(4)):
        rows = slice(7 * number, 7 * number + 7)
        y, s = augment.apply(data.images[order[rows]], data.labels[order[rows]], table[rows], 4)
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(t, s)
    assert (loader.table(5) != table).mean() > 0.1


def test_an_images_changes_do_not_depend_on_the_batch_it_is_in(data):
    augment = Augment(2, True, 20.0, 0.2, 0.3, 0.2, 0.4, 3)
    for size in (1, 4, 23, 100):
        x = np.concatenate([x for x, _ in Loader(data, size, augment=augment).epoch(1)])
        np.testing.assert_array_equal(x, next(Loader(data, 23, augment=augment).epoch(1))[0])


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_nothing_depends_on_the_threads_timing(data, prefetch, rng):
    loader = Loader(data, 2, augment=EVERYTHING, prefetch=prefetch)
    wanted = list(Loader(data, 2, augment=EVERYTHING, prefetch=0).epoch(1))
    found = []
    for batch in loader.epoch(1):
        time.sleep(rng.random() * 0.003)
        found.append(batch)
    assert same(found, wanted)


def test_two_epochs_at_once_do_not_meet(data):
    loader = Loader(data, 3, augment=EVERYTHING)
    both = list(zip(loader.epoch(1), loader.epoch(2), strict=True))
    assert same([a for a, _ in both], loader.epoch(1))
    assert same([b for _, b in both], loader.epoch(2))


def test_it_works_ahead_but_not_too_far():
    source = Slow()
    batches = Loader(source, 1, prefetch=3).epoch(1)
    next(batches)
    deadline = time.monotonic() + 5
    while len(source.reads) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(source.reads) == 4  # one taken, three waiting
    assert [thread.daemon for thread in loaders()] == [True]
    batches.close()
    assert len(source.reads) == 4


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("error", [DataError, KeyboardInterrupt, MemoryError])
def test_what_goes_wrong_is_raised_where_its_batch_would_have_come(prefetch, error):
    class Broken(Slow):
        def read(self, rows):
            try:
                return super().read(rows)
            except DataError as reason:
                raise error(*reason.args) from None

    batches = Loader(Broken(broken=11), 5, shuffle=False, prefetch=prefetch).epoch(1)
    assert [int(x[0, 0, 0, 0]) for x, _ in (next(batches), next(batches))] == [0, 5]
    with pytest.raises(error, match="image 11 is broken") as found:
        next(batches)
    assert type(found.value) is error
    with pytest.raises(StopIteration):
        next(batches)


def fail_within(batches):
    for _ in batches:
        raise ZeroDivisionError


@pytest.mark.parametrize("taken", [0, 1, 4])
@pytest.mark.parametrize("leave", ["close", "forget", "raise"])
def test_leaving_early_stops_the_thread(taken, leave):
    batches = Loader(Slow(0.002, count=1000), 1, prefetch=2).epoch(1)
    for _ in range(taken):
        next(batches)
    assert len(loaders()) == (1 if taken else 0)
    if leave == "close":
        batches.close()
    elif leave == "forget":
        del batches
        gc.collect()
    else:
        with pytest.raises(ZeroDivisionError):
            fail_within(batches)
        del batches
        gc.collect()
    assert not loaders()


def test_an_interrupt_while_waiting_stops_the_thread():
    class Interrupting(Slow):
        def read(self, rows):
            time.sleep(0.05)  # the consumer waits by now
            _thread.interrupt_main()
            return super().read(rows)

    batches = Loader(Interrupting(0.2), 5).epoch(1)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert not loaders()


def test_mixed_targets_have_as_many_classes_as_are_named_or_needed(data):
    augment = Augment(mixup=1.0)
    assert next(Loader(data, 5, augment=augment).epoch(1))[1].shape == (5, 4)
    nameless = Dataset(data.images, data.labels)
    assert next(Loader(nameless, 5, augment=augment).epoch(1))[1].shape == (5, 1 + data.labels.max())
    assert next(Loader(nameless, 5, augment=augment, classes=9).epoch(1))[1].shape == (5, 9)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, not 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"prefetch": 1.5}, "prefetch must be a whole number of 0 or more, not 1.5"),
        ({"batch_size": 24, "drop_last": True}, "drop_last leaves nothing: batch_size is 24, but there are 23 images"),
        ({"augment": Augment(crop=5)}, "crop=5 is too much for images of 5×6 pixels"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(data, options, fault):
    with pytest.raises(XpcnnError, match=fault):
        Loader(data, **({"batch_size": 5} | options))


def test_an_empty_data_set_and_a_start_outside_the_epoch_are_refused(data):
    with pytest.raises(XpcnnError, match="there are no images to load"):
        Loader(data.first(0), 5)
    with pytest.raises(XpcnnError, match="start must be a batch from 0 to 5, not 6"):
        Loader(data, 5).epoch(1, 6)
