"""What is asked of CuPy: recorded work keeps its memory to itself, and leaves nothing behind. A stand-in keeps count."""

from __future__ import annotations

import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from xpcnn import Model, optim
from xpcnn import layers as la
from xpcnn.kernels.cuda import runtime, stream
from xpcnn.training import Trainer


class CUDARuntimeError(Exception):
    """An error of CUDA's, by its number."""

    def __init__(self, status):
        self.status = status


class OutOfMemoryError(MemoryError):
    """CuPy's, which its pools let pass."""


class Pool:
    """A pool of CuPy's: when nothing is left it gives back what nobody uses and tries again, and at its limit too."""

    def __init__(self, allocator):
        self.allocator, self.limit, self.freed_on = allocator, "the environment's", []

    def set_limit(self, *, size):
        self.limit = size

    def malloc(self, size):
        try:
            return self.allocator(size)
        except CUDARuntimeError:
            self.free_all_blocks()
            return self.allocator(size)

    def free_all_blocks(self):
        self.freed_on.append(sys.modules["cupy"].device)


class Device:
    """The current device, for a while."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        cupy = sys.modules["cupy"]
        self.before, cupy.device = cupy.device, self.number

    def __exit__(self, *raised):
        sys.modules["cupy"].device = self.before


class Stream:
    """A stream, on the device that was current when it was made."""

    def __init__(self, non_blocking):
        assert non_blocking
        cupy = sys.modules["cupy"]
        self.device_id = cupy.device
        cupy.streams.append(self)

    def __enter__(self):
        if self.device_id != sys.modules["cupy"].device:
            raise RuntimeError("another device")

    def __exit__(self, *raised):
        pass

    def synchronize(self):
        pass

    def begin_capture(self):
        pass

    def end_capture(self):
        return SimpleNamespace(launch=lambda stream: sys.modules["cupy"].launched.append(stream))


@pytest.fixture
def cupy(monkeypatch):
    made = SimpleNamespace(device=0, room=1000, reserve=0, streams=[], pools=[], launched=[], cuda=SimpleNamespace())

    def pool(allocator):
        made.pools.append(Pool(allocator))
        return made.pools[-1]

    def memory(size):
        if size > made.room:
            raise CUDARuntimeError(2 if made.room else 700)
        made.room -= size
        return SimpleNamespace(ptr=512, size=size)

    def give_back():
        made.room, made.reserve = made.room + made.reserve, 0

    made.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=give_back, total_bytes=lambda: 0)
    made.cuda.Stream, made.cuda.MemoryPool, made.cuda.Device, made.cuda.Memory = Stream, pool, Device, memory
    made.cuda.MemoryPointer = lambda memory, offset: (memory, offset)
    made.cuda.get_current_stream = lambda: Stream(non_blocking=True) and made.streams.pop()
    made.cuda.runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDevice=lambda: made.device)
    made.cuda.memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    made.cuda.using_allocator = lambda allocator: Device(made.device)
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(runtime, "_idle", [])
    return made


def work():
    """Launch nothing."""


def test_a_recorder_is_on_the_device_where_it_is_entered(cupy):
    recorder = runtime.Recorder()
    with Device(1), recorder:
        replay = recorder.record(work, work)
        replay()
    assert [s.device_id for s in cupy.streams] == [1]
    assert cupy.launched == cupy.streams


def test_memory_is_given_back_when_nothing_can_be_replayed_any_more(cupy):
    with Device(1), runtime.Recorder() as recorder:
        replay = recorder.record(work, work)
    del recorder
    gc.collect()
    (pool,) = cupy.pools
    assert pool.freed_on == []
    replay()
    del replay
    gc.collect()
    assert pool.freed_on == [1]


def test_streams_are_taken_over_one_recorder_after_another(cupy):
    for device in (0, 1, 0, 1, 0):
        with Device(device), runtime.Recorder():
            pass
        gc.collect()
    assert [s.device_id for s in cupy.streams] == [0, 1]
    with runtime.Recorder(), runtime.Recorder():  # two at a time have two
        pass
    assert [s.device_id for s in cupy.streams] == [0, 1, 0]


def test_for_want_of_memory_a_recorder_takes_nothing_from_its_recordings(cupy):
    with runtime.Recorder():
        (pool,) = cupy.pools
        cupy.reserve = 500
        assert pool.malloc(1200)[0].size == 1200
        with pytest.raises(OutOfMemoryError):
            pool.malloc(400)
        assert pool.freed_on == []
        assert pool.limit == 0


def test_memory_of_ones_own_comes_from_what_cupys_pool_can_spare(cupy):
    cupy.reserve = 500
    assert stream.own_memory(1500).ptr
    with pytest.raises(CUDARuntimeError):
        stream.own_memory(1)  # an illegal address is not for want of memory


def test_a_rule_that_no_kernel_can_be_made_of_trains_without_graphs(graphs):
    def rule(numbers, p, g):
        return (p - float(numbers[0]) * g,)  # symbols are no numbers

    optimizer = optim.sgd(0.1)._replace(rule=rule)
    net = la.Sequential(la.Conv2D(2, 3), la.Flatten(), la.Affine(3))
    model = Model(net, graphs.backend, input_shape=(1, 6, 6))
    before = {path: graphs.backend.to_numpy(array).copy() for path, array in model.parameters().items()}
    trainer = Trainer(model, optimizer)
    rng = np.random.default_rng(0)
    trainer.fit((rng.integers(0, 256, (6, 1, 6, 6), np.uint8), rng.integers(0, 3, 6)), batch_size=3)
    assert trainer.capture_note
    assert any((graphs.backend.to_numpy(array) != before[path]).any() for path, array in model.parameters().items())
