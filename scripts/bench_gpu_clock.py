"""Device time of many steps: by events on the device's stream, by the clock where a library shows none."""

from __future__ import annotations

import ctypes
import time

LEAST, MOST = 5, 2000  # steps of one measurement


class Wall:
    """The host's clock around work that ``wait`` waits for."""

    name = "wall"

    def __init__(self, wait=lambda: None):
        self.wait = wait

    def begin(self):
        """Note the time, nothing being under way."""
        self.wait()
        self._begun = time.perf_counter()

    def end(self):
        """Return the milliseconds since, when all is done."""
        self.wait()
        return 1e3 * (time.perf_counter() - self._begun)


class CupyEvents:
    """Events on the stream that CuPy uses at the moment."""

    name = "events"

    def __init__(self):
        import cupy

        self._cuda, self._events = cupy.cuda, [cupy.cuda.Event() for _ in range(2)]

    def begin(self):
        """Put an event into the stream."""
        self._events[0].record(self._cuda.get_current_stream())

    def end(self):
        """Return the milliseconds between it and the work's end."""
        self._events[1].record(self._cuda.get_current_stream())
        self._events[1].synchronize()
        return self._cuda.get_elapsed_time(*self._events)


class TorchEvents:
    """PyTorch's events on its current stream."""

    name = "events"

    def __init__(self):
        import torch

        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def begin(self):
        """Put an event into the stream."""
        self._events[0].record()

    def end(self):
        """Return the milliseconds between it and the work's end."""
        self._events[1].record()
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1])


class Steps:
    """Times a function that makes the update of a given number, in runs that take about so many seconds each."""

    def __init__(self, step, clock, seconds):
        self._step, self._clock, self._number = step, clock, 0
        once = self._run(2)
        self._count = max(LEAST, min(MOST, int(1e3 * seconds / max(once, 1e-6))))
        self._run(self._count)  # warm-up

    def _run(self, count):
        """Return the milliseconds of a step."""
        self._clock.begin()
        for _ in range(count):
            self._step(self._number)
            self._number += 1
        return self._clock.end() / count

    def measure(self):
        """Return the milliseconds of a step, and how they were found."""
        return {"ms": self._run(self._count), "steps": self._count, "clock": self._clock.name}


def nodes(graph):
    """Return how many nodes of each kind a CUDA graph (its address) has: its kernels, copies and fillings."""
    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_size_t()
    cuda.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count))
    found = (ctypes.c_void_p * count.value)()
    cuda.cuGraphGetNodes(ctypes.c_void_p(graph), found, ctypes.byref(count))
    kinds = {"kernels": 0, "copies": 0, "fillings": 0, "others": 0}
    kind = ctypes.c_int()
    for node in found:
        cuda.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
        kinds[("kernels", "copies", "fillings")[kind.value] if kind.value < 3 else "others"] += 1
    return kinds


def profiled(step):
    """Return how many kernels, copies and fillings one call of a function starts, as PyTorch's profiler sees them."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
    names = [event.name for event in on_device if not getattr(event, "is_user_annotation", False)]
    copies = sum(name.startswith("Memcpy") for name in names)
    fillings = sum(name.startswith("Memset") for name in names)
    return {"kernels": len(names) - copies - fillings, "copies": copies, "fillings": fillings, "others": 0}
