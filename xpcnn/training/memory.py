"""What is said when memory runs out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xpcnn.backend import Backend
from xpcnn.errors import OutOfMemoryError
from xpcnn.layers.plan import Footprint, megabytes


@contextmanager
def told(backend: Backend, images: int, footprint: Callable[[], Footprint]) -> Iterator[None]:
    """Turn running out of memory in steps of so many images into a sentence that says what would fit."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not backend.ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the arrays of the step that failed
        message = _sentence(backend, images, footprint)
    else:
        return
    raise OutOfMemoryError(message)  # not from the error, so that nothing holds on to its arrays


def _sentence(backend: Backend, images: int, footprint: Callable[[], Footprint]) -> str:
    """Return what the step takes, what is free, and how many images would fit."""
    where = "the GPU" if backend.name == "cupy" else "the machine"
    free = backend.free_memory()
    there = "" if free is None else f" and {megabytes(free)} are free"
    start = f"{where} ran out of memory"
    try:
        found = footprint()
    except Exception as error:
        if not backend.ran_out(error):
            raise
        return f"{start}, even to find out what a step takes{there.replace(' and', ';')}; take a smaller network."
    plan = found.plan(images)
    said = f"{start}: a step of {images} images takes about {megabytes(plan.total)}{there}"
    fits = 0 if free is None else min(images - 1, found.images_that_fit(free))
    if not fits:
        return f"{said}; take a smaller batch size{'' if found.whole else ' or max_memory'}."
    tiles = "" if found.whole else f", or max_memory={free} computes the batch in tiles"
    return f"{said}; a batch size of {fits} would fit{tiles}."
