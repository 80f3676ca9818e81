"""JAX's side of `bench_cpu.py`: a network from xpcnn's description as one jitted function."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
from jax import lax

VERSION = jax.__version__
IMAGES = ("NCHW", "OIHW", "NCHW")


def hold_threads(task):
    """Keep to as many cores as there shall be threads: XLA has no other knob, and looks when it first computes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])


def run(config, values, x, train, new, path=""):
    """Return a layer's output; running statistics are put into ``new``."""
    kind = config["type"]
    if kind == "Sequential":
        for name, layer in config["layers"]:
            x = run(layer, values, x, train, new, f"{path}{name}/")
        return x
    if kind == "Residual":
        return sum(run(config[name], values, x, train, new, f"{path}{name}/") for name in ("body", "shortcut"))
    if kind == "Conv2D":
        return _conv(config, values, x, path)
    if kind == "BatchNorm":
        return _batch_norm(config, values, x, train, new, path)
    if kind == "Affine":
        return x.reshape(len(x), -1) @ values[f"{path}weight"] + values[f"{path}bias"]
    return PLAIN[kind](x, config)


def _conv(config, values, x, path):
    stride, padding = (config["stride"],) * 2, ((config["padding"],) * 2,) * 2
    options = {"feature_group_count": config["groups"], "dimension_numbers": IMAGES}
    y = lax.conv_general_dilated(x, values[f"{path}weight"], stride, padding, **options)
    return y + values[f"{path}bias"][:, None, None] if config["bias"] else y


def _batch_norm(config, values, x, train, new, path):
    mean, var = values[f"{path}mean"], values[f"{path}var"]
    if train:
        count, share = x.size // x.shape[1], config["momentum"]
        own, spread = x.mean((0, 2, 3)), x.var((0, 2, 3))
        new[f"{path}mean"] = (1 - share) * mean + share * own
        new[f"{path}var"] = (1 - share) * var + share * spread * (count / (count - 1))
        mean, var = own, spread
    scale = values[f"{path}gamma"] * lax.rsqrt(var + config["eps"])
    return x * scale[:, None, None] + (values[f"{path}beta"] - mean * scale)[:, None, None]


def _max_pool(x, config):
    window = (1, 1, config["kernel_size"], config["kernel_size"])
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


PLAIN = {
    "ReLU": lambda x, config: jnp.maximum(x, 0),
    "ReLU6": lambda x, config: jnp.clip(x, 0, 6),
    "MaxPool2D": _max_pool,
    "AvgPool2D": lambda x, config: x[:, :, :: config["stride"], :: config["stride"]],
    "PadChannels": lambda x, config: jnp.pad(x, ((0, 0), (0, config["channels"] - x.shape[1]), (0, 0), (0, 0))),
    "GlobalAvgPool": lambda x, config: x.mean((2, 3)),
    "Identity": lambda x, config: x,
}


def floats(x):
    """Return images as floats: bytes are scaled to 0..1."""
    return x.astype(jnp.float32) * (1 / 255) if x.dtype == jnp.uint8 else x


def training(task, data):
    """Return a function that makes the update of a given number and returns its loss, waiting for it."""
    hold_threads(task)
    values = {path: jnp.asarray(value) for path, value in data["values"].items()}
    state = {path: values.pop(path) for path in list(values) if path.endswith(("/mean", "/var"))}
    batches = [(jnp.asarray(x), jnp.asarray(t, jnp.int32)) for x, t in data["batches"]]

    def loss_of(params, state, x, t):
        new = {}
        y = jax.nn.log_softmax(run(data["config"], params | state, floats(x), True, new))
        return -jnp.take_along_axis(y, t[:, None], 1).mean(), new

    def update(p, g, moment):
        if task["adagrad"]:
            moment = moment + g * g
            return p - task["lr"] * g / (jnp.sqrt(moment) + 1e-7), moment
        moment = 0.9 * moment + g
        return p - task["lr"] * moment, moment

    def step(params, state, moments, x, t):
        (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params, state, x, t)
        both = {path: update(p, grads[path], moments[path]) for path, p in params.items()}
        return {path: p for path, (p, _) in both.items()}, new, {path: m for path, (_, m) in both.items()}, loss

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    kept = [values, state, {path: jnp.zeros_like(value) for path, value in values.items()}]

    def make(number):
        *kept[:], loss = jax.block_until_ready(compiled(*kept, *batches[number % len(batches)]))
        return loss

    return make


def prediction(task, data):
    """Return a function from nothing to the logits of the task's images, waiting for them."""
    hold_threads(task)
    values = {path: jnp.asarray(value) for path, value in data["values"].items()}
    x = jnp.asarray(data["images"])
    compiled = jax.jit(lambda values, x: run(data["config"], values, floats(x), False, {}))
    return lambda: jax.block_until_ready(compiled(values, x))
