"""Initial values of parameters: frozen descriptions that draw from a keyed stream, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xpcnn.random import Key

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Zeros:
    """All zeros (biases)."""

    def draw(self, key: Key, shape: tuple[int, ...], fan_in: int) -> Host:
        """Return float64 initial values."""
        return np.zeros(shape)


@dataclass(frozen=True)
class Ones:
    """All ones (scales)."""

    def draw(self, key: Key, shape: tuple[int, ...], fan_in: int) -> Host:
        """Return float64 initial values."""
        return np.ones(shape)


@dataclass(frozen=True)
class Normal:
    """Normal values of a given standard deviation; 0.01 is the book's.

    K. Saitoh, "Deep Learning from Scratch", 2016, section 7.5.
    """

    std: float = 0.01

    def draw(self, key: Key, shape: tuple[int, ...], fan_in: int) -> Host:
        """Return float64 initial values."""
        return key.generator().standard_normal(shape) * self.std


@dataclass(frozen=True)
class HeNormal:
    """Normal values of variance 2 / fan_in, which keep the scale of activations through ReLU layers.

    K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", 2015, equation 10.
    """

    def draw(self, key: Key, shape: tuple[int, ...], fan_in: int) -> Host:
        """Return float64 initial values."""
        return key.generator().standard_normal(shape) * (2.0 / fan_in) ** 0.5


Initializer = Zeros | Ones | Normal | HeNormal
