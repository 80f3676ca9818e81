"""Run blocks of work on the CPU's cores: one thread per core, BLAS held to one thread while they run.

BLAS's own threads are not used beside these: they spin for a while after each product and would take the cores.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from xpcnn.errors import XpcnnError, whole

MOST = 1024  # threads that may be asked for
VARIABLE = "XPCNN_NUM_THREADS"

_lock = threading.Lock()
_chosen: int | None = None  # what `set_num_threads` was given
_callers: weakref.WeakSet[threading.Event] = weakref.WeakSet()  # who holds BLAS; an interrupted caller drops out
_held = False  # whether BLAS is held
_widths: list[int] = []  # BLAS's thread counts before it was
_here = threading.local()  # .busy: whether this thread runs a task


def thread_count() -> int:
    """Return how many threads to use: the number set, else the environment's, else what BLAS and affinity allow."""
    return _chosen or _usual()


def set_num_threads(n: int | None) -> None:
    """Compute with n threads from now on, BLAS included; results are the same bits for the same number.

    Parameters
    ----------
    n : int or None
        From 1 to 1024; it may be more than the cores. None goes back to what holds without this call: the environment
        variable ``XPCNN_NUM_THREADS`` or, without it, what BLAS was given within the cores this process may run on.

    Raises
    ------
    XpcnnError
        When n is anything else; nothing is changed then.
    """
    global _chosen
    number = _usual() if n is None else _checked("the number of threads", n)
    as_given = n is None and not os.environ.get(VARIABLE, "").strip()
    _set_blas(_given() if as_given else [number] * len(_blas()))
    _chosen = None if n is None else number
    _renew_pool()


@contextlib.contextmanager
def limited_to(n: int) -> Iterator[None]:
    """Compute with n threads while the context lasts."""
    global _chosen
    before, widths = _chosen, [library.get_num_threads() for library in _blas()]
    set_num_threads(n)
    try:
        yield
    finally:
        _chosen = before
        _set_blas(widths)
        _renew_pool()


@lru_cache
def _usual() -> int:
    """Return the number of threads unless one is set; BLAS is given the environment's too."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return max(1, min([cores(), *_given()]))
    plain = text.isascii() and text.isdigit() and len(text) < 10
    number = _checked(f"the environment variable {VARIABLE}", int(text) if plain else text[:40])
    _set_blas([number] * len(_blas()))
    return number


def _checked(name: str, n: object) -> int:
    """Return a number of threads, or raise."""
    try:
        if (number := whole(name, n, 1)) <= MOST:
            return number
    except XpcnnError:
        pass
    raise XpcnnError(f"{name} must be a whole number from 1 to {MOST}, not {n!r}.")


def _set_blas(widths: list[int]) -> None:
    """Give each BLAS library a number of threads, now or when it is held no more."""
    _given()
    with _lock:
        if _held:
            _widths[:] = widths
        else:
            for library, width in zip(_blas(), widths, strict=True):
                library.set_num_threads(width)


def _renew_pool() -> None:
    """Let the next caller make a pool of the size that is due; the one there is finishes what it was given."""
    if _pool.cache_info().currsize:
        pool = _pool()
        _pool.cache_clear()
        pool.shutdown(wait=False)


def cores() -> int:
    """Return how many cores this process may run on."""
    return len(core_numbers())


def core_numbers() -> list[int]:
    """Return which cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run(tasks: list[Callable[[], None]]) -> None:
    """Run the tasks, spread over the threads in a fixed way; the first error is raised when all have stopped.

    A task's own tasks run one after another, in its thread.
    """
    threads = min(thread_count(), len(tasks))
    if threads < 2 or getattr(_here, "busy", False):
        for task in tasks:
            task()
        return
    with single_threaded_blas():
        own, others = tasks[::threads], []
        for number in range(1, threads):
            share = tasks[number::threads]
            try:
                others.append(_pool().submit(_run_all, share))
            except RuntimeError:  # the interpreter is shutting down and starts no threads any more
                own += share
        try:
            _run_all(own)
        finally:
            errors = [other.exception() for other in others]
    for error in errors:
        if error is not None:
            raise error


def _run_all(tasks: list[Callable[[], None]]) -> None:
    """Run tasks in this thread."""
    _here.busy = True
    try:
        for task in tasks:
            task()
    finally:
        _here.busy = False


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS to one thread while any caller is inside: its own would spin after a product and take the cores."""
    global _held, _widths
    thread_count()  # which asks BLAS, as long as it answers for itself
    caller = threading.Event()  # any object that can be referred to weakly
    try:
        with _lock:
            _callers.add(caller)
            if not _held:
                _widths = [library.get_num_threads() for library in _blas()]
                _held = True
                for library in _blas():
                    library.set_num_threads(1)
        yield
    finally:
        with _lock:
            _callers.discard(caller)
            if _held and not _callers:
                for library, width in zip(_blas(), _widths, strict=True):
                    library.set_num_threads(width)
                _held = False


@lru_cache
def _blas() -> list[Any]:
    """Return handles on the BLAS libraries that NumPy loaded."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


@lru_cache
def _given() -> list[int]:
    """Return how many threads the BLAS libraries had before any were set here."""
    return [library.get_num_threads() for library in _blas()]


@lru_cache
def _pool() -> ThreadPoolExecutor:
    """Return the pool of helper threads; the calling thread works too."""
    return ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix="xpcnn")


def _after_fork() -> None:
    """Start over in a forked child: threads, held locks and other callers do not survive a fork."""
    global _lock
    _lock = threading.Lock()
    _here.busy = False
    _callers.clear()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
