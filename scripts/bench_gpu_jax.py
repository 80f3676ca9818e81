"""JAX's side of `bench_gpu.py`: a whole step as one jitted function, whose calls are not waited for one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from bench_cpu_jax import floats, run
from bench_gpu_clock import Steps, Wall

VERSION = jax.__version__
CHECKED = 3  # updates whose losses are compared
PRODUCTS = {"float32": "highest", "tf32": "tensorfloat32"}


class Training:
    """JAX's side; ``mode`` "jit"."""

    note = ""

    def __init__(self, task, data):
        jax.config.update("jax_default_matmul_precision", PRODUCTS[task["precision"]])
        if task["device"] == "cuda" and jax.default_backend() != "gpu":
            raise SystemExit(f"JAX sees no GPU here, only {jax.default_backend()}")
        values = {path: jnp.asarray(value) for path, value in data["values"].items()}
        state = {path: values.pop(path) for path in list(values) if path.endswith(("/mean", "/var"))}
        self._kept = [values, state, {path: jnp.zeros_like(value) for path, value in values.items()}]
        self._batches = [(jnp.asarray(x), jnp.asarray(t, jnp.int32)) for x, t in data["batches"]]
        self._compiled = jax.jit(update(task, data["config"]), donate_argnums=(0, 1, 2))
        self.losses = [float(self._step(number)) for number in range(CHECKED)]
        self._steps = Steps(self._step, Wall(lambda: jax.block_until_ready(self._kept)), task["seconds"])

    def _step(self, number):
        *self._kept[:], loss = self._compiled(*self._kept, *self._batches[number % len(self._batches)])
        return loss

    def measure(self):
        """Return the milliseconds of a step."""
        return self._steps.measure()

    def kernels(self):
        """Return nothing: XLA's kernels are not counted."""
        return {}


def update(task, config):
    """Return the function of one update."""

    def loss_of(params, state, x, t):
        new = {}
        y = jax.nn.log_softmax(run(config, params | state, floats(x), True, new))
        return -jnp.take_along_axis(y, t[:, None], 1).mean(), new

    def changed(p, g, moment):
        if task["adagrad"]:
            moment = moment + g * g
            return p - task["lr"] * g / (jnp.sqrt(moment) + 1e-7), moment
        moment = 0.9 * moment + g
        return p - task["lr"] * moment, moment

    def step(params, state, moments, x, t):
        (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params, state, x, t)
        both = {path: changed(p, grads[path], moments[path]) for path, p in params.items()}
        return {path: p for path, (p, _) in both.items()}, new, {path: m for path, (_, m) in both.items()}, loss

    return step


def library():
    """Return the versions of what computes."""
    return f"jax {VERSION}, {jax.devices()[0].device_kind}"
