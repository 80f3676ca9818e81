"""Optimizers, schedules of their learning rates, and initializers."""

from collections.abc import Callable

from xpcnn.optim.average import moving_average
from xpcnn.optim.base import Optimizer, Schedule, decays
from xpcnn.optim.clipping import clip_by_norm
from xpcnn.optim.initializers import HeNormal, Initializer, Normal, Ones, Zeros
from xpcnn.optim.muon import muon
from xpcnn.optim.optimizers import adagrad, adam, adamw, rmsprop, sgd
from xpcnn.optim.schedules import constant, cosine, one_cycle, step_decay, warmup

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "HeNormal",
    "Initializer",
    "Normal",
    "Ones",
    "Optimizer",
    "Schedule",
    "Zeros",
    "adagrad",
    "adam",
    "adamw",
    "clip_by_norm",
    "constant",
    "cosine",
    "decays",
    "moving_average",
    "muon",
    "one_cycle",
    "rmsprop",
    "sgd",
    "step_decay",
    "warmup",
]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {  # by the names that configuration files use
    "adagrad": adagrad,
    "adam": adam,
    "adamw": adamw,
    "muon": muon,
    "rmsprop": rmsprop,
    "sgd": sgd,
}
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "step": step_decay,
    "cosine": cosine,
    "one-cycle": one_cycle,
}
