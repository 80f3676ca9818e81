"""Batch normalisation in training in C, with or without ReLU or ReLU6 after it."""

from __future__ import annotations

import ctypes
from math import prod
from typing import NamedTuple

import numpy as np

from xpcnn.kernels import memory
from xpcnn.kernels.native.build import function
from xpcnn.kernels.native.call import Floats, address, passes, plain
from xpcnn.kernels.reference import mixed


class Norm(ctypes.Structure):
    """``Norm`` of norm.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "channels", "area", "rectified")),
        *((name, ctypes.c_double) for name in ("eps", "most")),
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "gamma", "beta", "dy", "mean", "var", "scale", "y", "dx", "dgamma", "dbeta")
        ),
    ]


class Saved(NamedTuple):
    """What `backward` needs."""

    x: Floats
    mean: Floats
    scale: Floats
    gamma: Floats | None
    beta: Floats | None
    most: float | None  # which y is held below, and above 0; None is no bound


def forward(
    x: Floats,
    gamma: Floats | None,
    beta: Floats | None,
    eps: float,
    most: float | None,
    running_mean: Floats | None,
    running_var: Floats | None,
    momentum: float,
) -> tuple[Floats, Saved, Floats | None, Floats | None]:
    """Return y, what backward needs, and the running mean and variance moved towards the batch's."""
    x, gamma, beta = plain(x, gamma, beta)
    y: Floats = memory.empty(x.shape, np.float32)
    mean, var, scale = np.empty((3, x.shape[1]), np.float32)
    job = Norm(*x.shape[:2], prod(x.shape[2:]), most is not None, eps, most or 0.0)
    job.x, job.gamma, job.beta, job.y = map(address, (x, gamma, beta, y))
    job.mean, job.var, job.scale = map(address, (mean, var, scale))
    function("norm_forward")(ctypes.byref(job), passes(4 * x.size))
    count = x.shape[0] * prod(x.shape[2:])
    new_mean, new_var = mixed(running_mean, mean, momentum), mixed(running_var, var * (count / (count - 1)), momentum)
    return y, Saved(x, mean, scale, gamma, beta, most), new_mean, new_var


def backward(dy: Floats, saved: Saved) -> tuple[Floats, Floats, Floats]:
    """Return (dx, dgamma, dbeta)."""
    x, mean, scale, gamma, beta, most = saved
    (dy,) = plain(dy)
    dx: Floats = memory.empty(x.shape, np.float32)
    dgamma, dbeta = np.empty((2, x.shape[1]), np.float32)
    job = Norm(*x.shape[:2], prod(x.shape[2:]), most is not None, 0.0, most or 0.0)
    job.x, job.gamma, job.beta, job.mean, job.scale = map(address, (x, gamma, beta, mean, scale))
    job.dy, job.dx, job.dgamma, job.dbeta = map(address, (dy, dx, dgamma, dbeta))
    function("norm_backward")(ctypes.byref(job), passes(4 * x.size))
    return dx, dgamma, dbeta
