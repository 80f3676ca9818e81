"""Whole trainings for `bench_gpu.py`: the time before the first step, and the time to an accuracy."""

from __future__ import annotations

import time

import xpcnn as xc

NETWORKS = {"simple_convnet": xc.models.simple_convnet, "two_conv_net": xc.models.two_conv_net}
RULES = {
    "adagrad": xc.optim.adagrad,
    "adam": xc.optim.adam,
    "sgd": lambda lr: xc.optim.sgd(lr, momentum=0.9),
}


class ReachedError(Exception):
    """The accuracy is reached; carries the record of the epoch."""


def start(task):
    """Return the seconds from the process's start to the end of each stage of a first training."""
    found = {}

    def passed(stage):
        found[stage] = round(time.time() - task["begun"], 3)

    passed("imports")
    train = xc.load_dataset("mnist", task["data_dir"])[0].first(200)
    model = xc.Model(xc.models.simple_convnet(), task["device"])
    passed("model")
    float(xc.Trainer(model, xc.optim.adagrad(0.06), capture="off").step(train.images[:100], train.labels[:100]))
    passed("first_step")
    trainer = xc.Trainer(model, xc.optim.adagrad(0.06))
    trainer.fit(train, epochs=1, batch_size=100)
    passed("first_fit")
    return found | {"note": trainer.capture_note}


def goal(task):
    """Return after how many epochs and seconds of training and evaluation a test accuracy was reached, by seed.

    The kernels have been compiled and the data set has been read before the first second is counted; what `fit` does
    before its first epoch (uploading, recording) counts.
    """
    train, test = xc.load_dataset("mnist", task["data_dir"])
    updates = task["epochs"] * -(-len(train) // task["batch"])
    rule = RULES[task["optimizer"]](lambda step: task["lr"] * max(0.0, 1.0 - step / updates))
    once(task, rule, train.first(2 * task["batch"]), test.first(10), 1)
    runs = [once(task, rule, train, test, seed) for seed in task["seeds"]]
    return {"runs": runs}


def once(task, rule, train, test, seed):
    """Train until the accuracy is reached, or to the last epoch."""
    model = xc.Model(NETWORKS[task["network"]](), task["device"], seed)
    best = 0.0

    def on_epoch(record, losses):
        nonlocal best
        best = max(best, record.test_accuracy)
        if record.test_accuracy >= task["accuracy"]:
            raise ReachedError(record)

    begin = time.perf_counter()
    try:
        trainer = xc.Trainer(model, rule)
        trainer.fit(train, test, epochs=task["epochs"], batch_size=task["batch"], on_epoch=on_epoch)
    except ReachedError as reached:
        (record,) = reached.args
        found = {"reached": True, "epochs": record.epoch, "test_accuracy": record.test_accuracy}
    else:
        found = {"reached": False, "epochs": task["epochs"], "test_accuracy": best}
    return found | {"seed": seed, "seconds": round(time.perf_counter() - begin, 3)}
