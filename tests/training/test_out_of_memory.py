"""When memory runs out, one sentence says what was asked, what is there and what would fit; nothing is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import optim
from xpcnn.backend import Backend

NET = la.Sequential(la.Conv2D(4, 3), la.ReLU(), la.Flatten(), la.Affine(3))


class OutOfMemoryError(Exception):  # as CuPy names its own
    pass


def trainer_that_fails(monkeypatch, error, free, net=NET, name="numpy"):
    model = xc.Model(net, "cpu", input_shape=(1, 8, 8))
    trainer = xc.Trainer(model, optim.sgd(0.1))
    trainer.plan(4)  # finds the footprint while memory is there
    monkeypatch.setattr(Backend, "free_memory", lambda self: free)
    model.backend = replace(model.backend, name=name)

    def forward(*args, **options):
        raise error

    monkeypatch.setattr("xpcnn.training.trainer.whole_batch", forward)
    return trainer


def test_the_sentence_says_what_would_fit(monkeypatch):
    trainer = trainer_that_fails(monkeypatch, MemoryError(), None)
    total = trainer.plan(1000).total
    trainer = trainer_that_fails(monkeypatch, MemoryError(), trainer.plan(300).total)
    with pytest.raises(xc.OutOfMemoryError, match="1000 images") as caught:
        trainer.step(np.zeros((1000, 1, 8, 8), np.float32), np.zeros(1000, np.int64))
    fits = int(re.search(r"a batch size of (\d+) would fit", str(caught.value))[1])
    assert trainer.plan(fits).total <= trainer.plan(300).total < trainer.plan(fits + 1).total
    assert f"{total / 1e6:,.1f}"[:3].rstrip(".") in str(caught.value)
    assert isinstance(caught.value, xc.XpcnnError)
    assert isinstance(caught.value, MemoryError)


def test_a_gpus_error_is_known_by_its_name(monkeypatch):
    trainer = trainer_that_fails(monkeypatch, OutOfMemoryError("out of memory"), 1, name="torch")
    with pytest.raises(xc.OutOfMemoryError, match="take a smaller batch size or max_memory"):
        trainer.step(np.zeros((5, 1, 8, 8), np.float32), np.zeros(5, np.int64))


def test_other_errors_pass(monkeypatch):
    trainer = trainer_that_fails(monkeypatch, ZeroDivisionError("mine"), 1)
    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer.step(np.zeros((5, 1, 8, 8), np.float32), np.zeros(5, np.int64))


def test_batch_norm_offers_no_tiles(monkeypatch):
    net = la.Sequential(la.Conv2D(4, 3), la.BatchNorm(), la.Flatten(), la.Affine(3))
    trainer = trainer_that_fails(monkeypatch, MemoryError(), 1, net)
    with pytest.raises(xc.OutOfMemoryError, match=r"take a smaller batch size\."):
        trainer.step(np.zeros((5, 1, 8, 8), np.float32), np.zeros(5, np.int64))


def test_fit_says_it_too_and_the_model_stays(monkeypatch):
    trainer = trainer_that_fails(monkeypatch, MemoryError(), 1 << 40)
    before = trainer.model.parameters()
    with pytest.raises(xc.OutOfMemoryError, match=r"a step of 6 images .*, which ought to do"):
        trainer.fit((np.zeros((6, 1, 8, 8), np.float32), np.zeros(6, np.int64)), batch_size=100)
    assert all(value is before[path] for path, value in trainer.model.parameters().items())


def test_evaluation_has_a_sentence_of_its_own_and_callbacks_none(monkeypatch):
    model = xc.Model(NET, "cpu", input_shape=(1, 8, 8))
    data = np.zeros((6, 1, 8, 8), np.float32), np.zeros(6, np.int64)

    def fail(*anything):
        raise MemoryError("mine")

    with pytest.raises(MemoryError, match=r"^mine$"):
        xc.Trainer(model, optim.sgd(0.1)).fit(data, on_epoch=fail)
    monkeypatch.setattr("xpcnn.training.fitting.evaluate", fail)
    with pytest.raises(xc.OutOfMemoryError, match=r"while it evaluated \d+ images at a time"):
        xc.Trainer(model, optim.sgd(0.1)).fit(data)


def test_real_memory_that_runs_out(tmp_path):
    if sys.platform != "linux":
        pytest.skip("RLIMIT_AS does not hold everywhere")
    code = """
import resource, sys
import numpy as np, xpcnn as xc
from xpcnn import layers as la, optim
net = la.Sequential(la.Conv2D(64, 3, padding=1), la.ReLU(), la.Conv2D(64, 3, padding=1), la.GlobalAvgPool(), la.Affine(3))
model = xc.Model(net, "cpu", input_shape=(3, 64, 64))
trainer = xc.Trainer(model, optim.sgd(0.1))
trainer.step(np.zeros((2, 3, 64, 64), np.uint8), np.zeros(2, np.int64))
x = np.zeros((600, 3, 64, 64), np.uint8)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, resource.RLIM_INFINITY))
try:
    trainer.step(x, np.zeros(600, np.int64))
except xc.OutOfMemoryError as error:
    print(error)
print("loss", float(trainer.step(x[:4], np.zeros(4, np.int64))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert not done.returncode, done.stderr
    assert "ran out of memory: a step of 600 images takes about" in done.stdout
    assert "loss" in done.stdout
