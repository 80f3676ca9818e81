"""How pixels become numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError


@dataclass(frozen=True)
class Normalise:
    """How uint8 pixels become a model's floats: ``(pixel / 255 - mean) / std``."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what would not give numbers, and keep plain ones: a NumPy scalar would widen float32 images."""
        object.__setattr__(self, "mean", float(self.mean))
        object.__setattr__(self, "std", float(self.std))
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise XpcnnError(f"normalise needs a finite mean and a std above 0, not {self.mean!r} and {self.std!r}.")

    def __call__(self, images: Array, dtype: str, xp: Any) -> Array:
        """Return normalised images of a dtype."""
        x = xp.astype(images, getattr(xp, dtype)) * (1.0 / (255.0 * self.std))
        return x - self.mean / self.std if self.mean else x
