"""xpcnn's side of `bench_gpu.py`: steps one by one and recorded, and the making of what all sides are given."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
from bench_gpu_clock import CupyEvents, Steps, Wall, nodes

import xpcnn as xc
from xpcnn.layers import to_config
from xpcnn.random import Key

VERSION = xc.__version__
CHECKED = 3  # updates whose losses are compared
NETWORKS = {
    "simple_convnet": xc.models.simple_convnet,
    "lenet5": xc.models.lenet5,
    "resnet20": xc.models.resnet20,
    "resnet18": partial(xc.models.resnet18, (3, 32, 32), 10),
}


def prepare(task):
    """Write a network's description and weights, a data set, and the order in which its first epoch goes through it."""
    net, count = NETWORKS[task["network"]](), task["batches"] * task["batch"]
    model = xc.Model(net, "cpu")
    if model.input_shape == (1, 28, 28):
        train, _ = xc.load_dataset("mnist")
        images, labels = train.images[:count], train.labels[:count]
    else:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, *model.input_shape), np.uint8)
        labels = rng.integers(0, 10, count)
    values = {f"values/{path}": value for path, value in (model.parameters() | model.state()).items()}
    order = Key(model.seed).child("shuffle", 1).generator().permutation(len(images))
    np.savez(task["target"], images=images, labels=labels, order=order, config=json.dumps(to_config(net)), **values)


class Training:
    """An xpcnn side, ``mode`` "eager" or "captured": the first losses, then times, then kernels."""

    def __init__(self, task, data):
        self._task, self._data = task, data
        self._trainer, self.note = self._new(), ""
        self._wait = self._trainer.model.backend.synchronize
        if task["mode"] == "captured":
            self.losses = self._fit(self._trainer, None)[:CHECKED]
            self.note = self._trainer.capture_note
        else:
            self._batches = [tuple(map(self._trainer.model.backend.asarray, pair)) for pair in data["batches"]]
            self.losses = [float(self._step(number)) for number in range(CHECKED)]
            clock = CupyEvents() if task["device"] == "cuda" else Wall(self._wait)
            self._steps = Steps(self._step, clock, task["seconds"])

    def _new(self):
        task = self._task
        options = {"precision": task["precision"], "conv_engine": task["engine"]}
        model = xc.Model(NETWORKS[task["network"]](), task["device"], values=self._data["values"], **options)
        rule = xc.optim.adagrad(task["lr"]) if task["adagrad"] else xc.optim.sgd(task["lr"], momentum=0.9)
        return xc.Trainer(model, rule, capture="auto" if task["mode"] == "captured" else "off")

    def _step(self, number):
        return self._trainer.step(*self._batches[number % len(self._batches)])

    def _fit(self, trainer, on_step, epochs=1):
        data = self._data["images"], self._data["labels"]
        return trainer.fit(data, epochs=epochs, batch_size=self._task["batch"], on_step=on_step).losses

    def measure(self):
        """Return the milliseconds of a step; recorded ones from the end of an epoch's first to the end of its last.

        That is the second of two epochs, with events on the stream that the steps are on.
        """
        if self._task["mode"] == "eager":
            return self._steps.measure()
        clock, batch, found = None, self._task["batch"], {}

        def on_step(epoch, done):
            nonlocal clock
            if epoch == 2 and done == batch:
                clock = CupyEvents() if self._task["device"] == "cuda" else Wall(self._wait)
                clock.begin()
            elif epoch == 2 and done == len(self._data["images"]):
                steps = done // batch - 1
                found.update(ms=clock.end() / steps, steps=steps, clock=clock.name)

        self._fit(self._trainer, on_step, epochs=2)
        return found

    def kernels(self):
        """Return what a step's graph consists of, on CUDA; a single step is recorded for this."""
        if self._task["device"] != "cuda":
            return {}
        from xpcnn.kernels.cuda import runtime

        graphs, record = [], runtime.Recorder.record

        def watched(*arguments):
            replay = record(*arguments)
            graphs.append(nodes(replay.func.__self__.graph))
            return replay

        runtime.Recorder.record = watched
        try:
            self._record_one(runtime)
        except (RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
            return {"unknown": str(error)}
        finally:
            runtime.Recorder.record = record
        return max(graphs, key=lambda kinds: kinds["kernels"], default={})  # evaluation's have fewer

    def _record_one(self, runtime):
        trainer = self._new()
        if self._task["mode"] == "captured":
            self._fit(trainer, None)
            return
        step = partial(trainer.step, *self._batches[0])
        with runtime.Recorder() as recorder:
            recorder.record(step, step)


def library():
    """Return the version of what computes."""
    return f"xpcnn {VERSION}"
