"""What is said when memory runs out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xpcnn.backend import Backend
from xpcnn.errors import OutOfMemoryError
from xpcnn.layers.plan import Footprint, megabytes


@contextmanager
def told(backend: Backend, sentence: Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory into a sentence."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not backend.ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the arrays of what failed
        message = sentence()
    else:
        return
    raise OutOfMemoryError(message)  # not from the error, so that nothing holds on to its arrays


def of_step(backend: Backend, images: int, footprint: Callable[[], Footprint]) -> str:
    """Return what a step of so many images takes, what is free, and how many would fit."""
    free = backend.free_memory()
    try:
        found = footprint()
    except Exception as error:
        if not backend.ran_out(error):
            raise
        return f"{_start(backend)}, even to find out what a step takes{_there(free)}; take a smaller network."
    said = (
        f"{_start(backend)}: a step of {images} images takes about {megabytes(found.plan(images).total)}{_there(free)}"
    )
    tiles = "" if found.whole else " or max_memory, which computes a batch in tiles"
    fits = 0 if free is None else found.images_that_fit(free)
    if fits >= images:
        return f"{said}, which ought to do: something else may have taken it, or it lies in pieces."
    if not fits:
        return f"{said}; take {'a smaller network' if images == 1 else f'a smaller batch size{tiles}'}."
    return f"{said}; a batch size of {fits} would fit{tiles.replace(' or', ', or')}."


def of_evaluation(backend: Backend, images: int) -> str:
    """Return how many images were evaluated at a time, and what is free."""
    return f"{_start(backend)} while it evaluated {images} images at a time{_there(backend.free_memory())}."


def _start(backend: Backend) -> str:
    return f"{'the GPU' if backend.name == 'cupy' else 'the machine'} ran out of memory"


def _there(free: int | None) -> str:
    return "" if free is None else f", and {megabytes(free)} are free"
