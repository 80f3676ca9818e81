"""Optimizers and initializers."""

from xpcnn.optim.initializers import HeNormal, Initializer, Normal, Zeros
from xpcnn.optim.optimizers import Optimizer, adagrad, adam, sgd

__all__ = ["HeNormal", "Initializer", "Normal", "Optimizer", "Zeros", "adagrad", "adam", "sgd"]
