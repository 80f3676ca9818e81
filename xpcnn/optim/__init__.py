"""Optimizers and initializers."""

from xpcnn.optim.initializers import HeNormal, Initializer, Normal, Ones, Zeros
from xpcnn.optim.optimizers import Optimizer, adagrad, adam, sgd

__all__ = ["HeNormal", "Initializer", "Normal", "Ones", "Optimizer", "Zeros", "adagrad", "adam", "sgd"]
