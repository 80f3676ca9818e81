"""The sum over GPUs, on arrays of the host with an NCCL of threads that really adds.

What this cannot show: that NCCL itself takes these calls. `python scripts/bench_parallel.py` on several GPUs would.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from xpcnn.errors import BackendError
from xpcnn.kernels.cuda import collective, runtime, stream

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = {2: "int32", 4: "int64", 6: "float16", 7: "float32", 8: "float64", 9: ml_dtypes.bfloat16}  # of nccl.h


class Meeting:
    """Where threads wait for each other: what `Group.gathered` does between processes."""

    def __init__(self, size):
        self.size, self.barrier, self.values = size, threading.Barrier(size, timeout=10), [None] * size

    def gathered(self, rank):
        def exchange(value):
            self.values[rank] = value
            self.barrier.wait()
            found = list(self.values)
            self.barrier.wait()
            return found

        return exchange


class FakeNccl:
    """Stands in for `cupy.cuda.nccl`."""

    available = True

    def __init__(self, size, broken=None):
        self.meeting, self.broken, self.made, self.streams = Meeting(size), broken, [], []

    def get_version(self):
        return 22707

    def get_unique_id(self):
        return bytes(range(128))

    def NcclCommunicator(self, size, name, rank):  # noqa: N802
        assert (size, name, len(name)) == (self.meeting.size, bytes(range(128)), 128)
        if rank == self.broken:
            raise RuntimeError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error\nmore of it")
        self.made.append(rank)
        return SimpleNamespace(allReduce=lambda *call: self.add(rank, *call))

    def add(self, rank, source, target, count, kind, operation, place):
        assert operation == 0  # ncclSum
        if place < 0:
            raise RuntimeError("NCCL_ERROR_REMOTE_ERROR: remote process exited\nmore of it")
        dtype = np.dtype(DTYPES[kind])
        given = memory(source, count, dtype).copy()
        parts = self.meeting.gathered(rank)(given)
        memory(target, count, dtype)[:] = sum(part.astype(np.float64) for part in parts).astype(dtype)
        self.streams.append(place)


def memory(address, count, dtype):
    """Return the array that lies at an address."""

    data = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(data, dtype, count)


@pytest.fixture
def host(monkeypatch):
    """Let arrays of the host be a GPU's; return where a fake NCCL is set, and which GPU is whose."""
    forget = collective.missing.cache_clear
    forget()
    gpus = SimpleNamespace(nccl=None, names=lambda device: f"alpha 0000:{device:02x}:00.0", place=(0, 7, 0))
    monkeypatch.setattr(collective, "_nccl", lambda: gpus.nccl)
    monkeypatch.setattr(collective, "_gpu", lambda device: gpus.names(device))
    monkeypatch.setattr(collective, "_on", lambda device: threading.Lock())
    monkeypatch.setattr(runtime, "empty", lambda shape, dtype: np.full(shape, 99, dtype))
    monkeypatch.setattr(runtime, "contiguous", np.ascontiguousarray)
    monkeypatch.setattr(stream, "address", lambda x: x.ctypes.data)
    monkeypatch.setattr(stream, "place", lambda: gpus.place)
    monkeypatch.setattr(stream, "is_capturing", lambda place: False)
    yield gpus
    forget()


def all_ranks(size, work):
    """Return what each rank's work gives, in threads."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def connected(host, size, broken=None):
    """Return what `connect` gives every rank."""
    host.nccl, meeting = FakeNccl(size, broken), Meeting(size)
    return all_ranks(size, lambda rank: collective.connect(rank, rank, meeting.gathered(rank)))


@pytest.mark.parametrize("kind", DTYPES.values(), ids=str)
def test_every_rank_gets_the_sum_as_a_new_array(host, kind):
    sums = connected(host, 3)
    assert [reason for _, reason in sums] == [""] * 3
    given = [(np.arange(12).reshape(3, 4) * (rank + 1)).astype(kind)[:, ::2] for rank in range(3)]
    before = [x.copy() for x in given]
    found = all_ranks(3, lambda rank: sums[rank][0](given[rank]))
    for total, x, old in zip(found, given, before, strict=True):
        assert total.dtype == np.dtype(kind)
        assert np.array_equal(total.astype(float), np.arange(12).reshape(3, 4)[:, ::2] * 6.0)
        assert np.array_equal(x, old)
    assert host.nccl.streams == [7, 7, 7]


def test_without_nccl_on_one_rank_none_has_it_and_nothing_waits(host, monkeypatch):
    own = threading.local()
    monkeypatch.setattr(collective, "missing", lambda: own.why)
    host.nccl, meeting = FakeNccl(3), Meeting(3)

    def work(rank):
        own.why = "it is away" if rank == 1 else ""
        return collective.connect(rank, rank, meeting.gathered(rank))

    assert all_ranks(3, work) == [(None, "rank 1 has no NCCL: it is away")] * 3
    assert host.nccl.made == []


def test_two_ranks_on_one_gpu_are_named_before_nccl_is_asked(host):
    host.names = lambda device: f"alpha 0000:0{device % 2}:00.0"
    reason = "ranks 0 and 2 share the GPU 0000:00:00.0, but NCCL needs one for each"
    assert connected(host, 3) == [(None, reason)] * 3
    assert host.nccl.made == []


def test_gpus_of_two_machines_may_have_one_number(host):
    names = ["alpha 0000:01:00.0", "beta 0000:01:00.0"]
    host.names = lambda device: names[device]
    assert all(total for total, _ in connected(host, 2))


def test_if_one_rank_cannot_connect_none_is_connected(host):
    reason = "rank 1: NCCL cannot connect the GPUs (NCCL_ERROR_SYSTEM_ERROR: unhandled system error)"
    assert connected(host, 2, broken=1) == [(None, reason)] * 2


def test_what_is_not_installed_is_said(host):
    host.nccl = SimpleNamespace(available=False)
    assert "it is not installed: pip install 'nvidia-nccl" in collective.missing()


def test_faults_are_one_sentence(host):
    ((total, _),) = connected(host, 1)
    with pytest.raises(BackendError, match="not of complex64"):
        total(np.zeros(3, np.complex64))
    host.place = (0, -1, 0)
    with pytest.raises(BackendError, match=r"GPUs \(NCCL_ERROR_REMOTE_ERROR: remote process exited\); NCCL_DEBUG"):
        total(np.zeros(3, np.float32))
