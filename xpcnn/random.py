"""Random numbers keyed by purpose, drawn on the host, so that they are the same on every backend."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Key:
    """A named stream of random numbers: a seed and the purpose it is drawn for.

    ``Key(0).child("init", "conv1/weight")`` always yields the same numbers, whatever else was drawn before,
    in whatever order, on whatever backend.
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def child(self, *purpose: str | int) -> Key:
        """Return the stream for a narrower purpose."""
        return Key(self.seed, (*self.path, *purpose))

    def generator(self) -> np.random.Generator:
        """Return a fresh generator at the start of this stream."""
        import numpy as np

        digest = hashlib.blake2b(repr((self.seed, self.path)).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
