"""Random numbers keyed by purpose, drawn on the host, so that they are the same on every backend."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FLOATS_A_STEP = 8  # float32 numbers that one step of Philox's counter gives: four words of 64 bits


@dataclass(frozen=True)
class Key:
    """A named stream of random numbers: a seed and the purpose it is drawn for.

    ``Key(0).child("init", "conv1/weight")`` always yields the same numbers, whatever else was drawn before,
    in whatever order, on whatever backend. ``row`` says which row of a batch the first image at hand is, where a
    batch is computed in tiles; it changes what `uniform` skips, and nothing else.
    """

    seed: int
    path: tuple[str | int, ...] = ()
    row: int = 0

    def child(self, *purpose: str | int) -> Key:
        """Return the stream for a narrower purpose."""
        return Key(self.seed, (*self.path, *purpose), self.row)

    def generator(self) -> np.random.Generator:
        """Return a fresh generator at the start of this stream."""
        import numpy as np

        digest = hashlib.blake2b(repr((self.seed, self.path)).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Draw numbers from [0, 1) for rows of a batch: those that the whole batch would get there."""
        generator = self.generator()
        steps, rest = divmod(self.row * prod(shape[1:]), FLOATS_A_STEP)
        generator.bit_generator.advance(steps)  # type: ignore[attr-defined]  # Philox can jump ahead
        generator.random(rest, dtype="float32")
        return generator.random(shape, dtype="float32")
