"""Threads: all tasks run, errors arrive, BLAS gets its threads back."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from xpcnn import ops
from xpcnn.kernels import threads


def widths():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def many_threads(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 4)
    threads._pool.cache_clear()
    yield
    threads._pool.cache_clear()


def test_all_tasks_run_once_and_blas_is_held_meanwhile(many_threads):
    before, seen, done = widths(), [], []

    def task(number):
        seen.append(widths())
        done.append(number)

    threads.run([lambda n=n: task(n) for n in range(10)])
    assert sorted(done) == list(range(10))
    assert all(set(width) <= {1} for width in seen)
    assert widths() == before


def test_an_error_in_any_thread_is_raised_and_blas_restored(many_threads):
    before = widths()

    def fail():
        raise ZeroDivisionError("in a task")

    for place in range(4):
        with pytest.raises(ZeroDivisionError, match="in a task"):
            threads.run([fail if number == place else lambda: None for number in range(4)])
    assert widths() == before


def test_tasks_may_run_tasks(many_threads):
    done = []
    threads.run([lambda n=n: threads.run([lambda m=m: done.append((n, m)) for m in range(3)]) for n in range(4)])
    assert sorted(done) == [(n, m) for n in range(4) for m in range(3)]


def test_two_callers_at_once_get_their_own_results(many_threads, rng):
    before = widths()
    x, w = rng.standard_normal((64, 3, 20, 20)), rng.standard_normal((8, 3, 3, 3))
    expected = ops.conv2d(x, w)[0]
    faults = []

    def call():
        for _ in range(10):
            if not np.array_equal(ops.conv2d(x, w)[0], expected):
                faults.append(1)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not faults
    assert widths() == before


def test_an_interrupted_caller_does_not_keep_blas(many_threads):
    """As if Ctrl-C had hit before the caller could leave: its mark goes with it, and the next caller restores."""
    before = widths()
    holder = threads.single_threaded_blas()
    holder.__enter__()
    assert set(widths()) <= {1}
    threads._callers.clear()
    threads.run([lambda: None, lambda: None])
    assert widths() == before


def test_without_new_threads_the_caller_does_all(many_threads, monkeypatch):
    class Closed:
        def submit(self, *work):
            raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(threads, "_pool", Closed)
    done = []
    threads.run([lambda n=n: done.append(n) for n in range(6)])
    assert sorted(done) == list(range(6))
    monkeypatch.undo()
