"""Ending a training between two steps when a signal asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from xpcnn.training import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Request:
    """Which signal has asked for the end, if one has."""

    def __init__(self, trainer: Trainer) -> None:
        self.signal: int | None = None
        self._trainer = trainer

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note a signal while a step is being made; between steps, and at the second signal, interrupt at once."""
        alone = self._trainer.group.size == 1  # several end together, between two steps
        at_once = self.signal is not None or (alone and not self._trainer.is_busy)
        self.signal = number
        if at_once:
            raise KeyboardInterrupt


@contextmanager
def heeding_signals(trainer: Trainer) -> Iterator[Request]:
    """Let Ctrl-C and SIGTERM end a training only where it can be saved."""
    request = Request(trainer)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup or a shell's background job has it
            signal.signal(number, request.ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
