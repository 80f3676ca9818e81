"""Buffers that are used again must never be used twice at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest

from xpcnn.kernels import memory


def test_a_buffer_comes_back_only_when_nothing_refers_to_it():
    memory.release()
    first = memory.empty((1000, 100), np.float32)
    place = first.__array_interface__["data"][0]
    view = first[10:20].T
    del first
    second = memory.empty((1000, 100), np.float32)
    assert second.__array_interface__["data"][0] != place
    assert not np.shares_memory(second, view)
    del view
    third = memory.empty((100, 1000), np.float32)
    assert third.__array_interface__["data"][0] == place
    assert not np.shares_memory(second, third)
    memory.release()
    third[...] = 1.0
    assert third.sum() == 100_000


def test_no_two_living_arrays_share_memory(rng):
    memory.release()
    living = []
    for _ in range(2000):
        shape = (int(rng.integers(1, 200)), int(rng.integers(500, 600)))
        array = memory.empty(shape, rng.choice(["float32", "float64", "uint8"]))
        array[...] = len(living) % 100
        living.append((array, len(living) % 100))
        if len(living) > 20:
            array, value = living.pop(int(rng.integers(0, len(living))))
            assert (array == value).all()
    assert all((array == value).all() for array, value in living)


def test_threads_do_not_get_one_buffer():
    memory.release()
    faults = []

    def work(value):
        for _ in range(300):
            array = memory.empty((300, 300), np.float32)
            array[...] = value
            if not (array == value).all():
                faults.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_what_is_kept_is_bounded(monkeypatch):
    memory.release()
    monkeypatch.setattr(memory, "MOST_KEPT", 1 << 20)
    living = [memory.empty((300, 300), np.float64) for _ in range(10)]
    assert memory._kept <= 1 << 20
    for one, other in pairwise(living):
        assert not np.shares_memory(one, other)
    memory.release()


def test_a_held_lock_blocks_nobody():
    """A signal handler that interrupts the allocator is not held up."""
    with memory._lock:
        assert memory.empty((300, 300), np.float32).shape == (300, 300)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_starts_over():
    """Even if a thread was in the allocator when the child was made."""
    code = """
import os, numpy as np
from xpcnn.kernels import memory
memory.empty((300, 300), np.float32)
with memory._lock:
    child = os.fork()
    if not child:
        before = memory._kept
        memory.empty((300, 300), np.float32)
        os._exit(0 if before == 0 < memory._kept else 1)
    raise SystemExit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=60).returncode == 0
