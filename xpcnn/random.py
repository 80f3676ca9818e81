"""Random numbers keyed by purpose, drawn on the host, so that they are the same on every backend."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array, upload_like

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
        return replace(self, path=(*self.path, *purpose))

    @property
    def words(self) -> int:
        """The stream's key for Philox, of 128 bits."""
        digest = hashlib.blake2b(repr((self.seed, self.path)).encode(), digest_size=16).digest()
        return int.from_bytes(digest, "little")

    def generator(self) -> np.random.Generator:
        """Return a fresh generator at the start of this stream."""
        import numpy as np

        return np.random.Generator(np.random.Philox(key=self.words))

    def mask(self, rate: float, like: Array) -> Array:
        """Draw where a number from [0, 1) is at least ``rate``, of an array's shape, on its device."""
        return upload_like(self.uniform(tuple(like.shape)) >= rate, like)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Draw numbers from [0, 1) for rows of a batch: those that the whole batch would get there."""
        generator = self.generator()
        steps, rest = divmod(self.row * prod(shape[1:]), FLOATS_A_STEP)
        generator.bit_generator.advance(steps)  # type: ignore[attr-defined]  # Philox can jump ahead
        generator.random(rest, dtype="float32")
        return generator.random(shape, dtype="float32")
