"""Peaks of resident memory in processes of their own, against what is predicted and promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")

START = """
import json, sys
import numpy as np
import xpcnn as xc
from xpcnn import models, optim

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

options = json.loads(sys.argv[1])
images, shape = options["images"], options["shape"]
rng = np.random.default_rng(0)
x, t = rng.integers(0, 256, (images, *shape), dtype=np.uint8), rng.integers(0, 10, images)
xc.num_threads()
before = status("VmRSS")
net = getattr(models, options["net"])(shape, 10)
"""
TRAIN = """
trainer = xc.Trainer(xc.Model(net, "cpu"), optim.adam(0.001), max_memory=options.get("limit"))
if "limit" in options:
    plan = trainer.plan(images)
for _ in range(3):
    trainer.step(x, t)
peak = status("VmHWM") - before
plan = trainer.plan(images)
print(json.dumps({"peak": peak, "total": plan.total, "tiles": plan.tiles}))
"""
FIT = """
trainer = xc.Trainer(xc.Model(net, "cpu"), optim.adam(0.001), max_memory=options["limit"])
trainer.fit((x, t), epochs=1, batch_size=options["batch"])
print(json.dumps({"peak": status("VmHWM") - before}))
"""
PREDICT = """
model = xc.Model(net, "cpu")
if options["work"] == "predict":
    assert model.predict(x).shape == (images, 10)
else:
    xc.evaluate(model, xc.Dataset(x, t))
print(json.dumps({"peak": status("VmHWM") - before}))
"""
GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def measured(code, net, images, shape, kernels="auto", **options):
    """Run code in a fresh process and return what it printed; VmHWM, unlike ru_maxrss, starts anew with exec."""
    arguments = json.dumps({"net": net, "images": images, "shape": shape, **options})
    environment = os.environ | {"XPCNN_KERNELS": kernels}
    command = [sys.executable, "-c", START + code, arguments]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("kernels", ["numpy", "auto"])
@pytest.mark.parametrize(
    ("net", "images", "shape"),
    [
        ("simple_convnet", 10, GREY),
        ("simple_convnet", 100, GREY),
        ("simple_convnet", 1000, GREY),
        ("lenet5", 100, GREY),
        ("lenet5", 1000, GREY),
        ("two_conv_net", 300, GREY),
        ("resnet20", 8, COLOUR),
        ("resnet20", 64, COLOUR),
        ("mobilenet_v2", 4, COLOUR),
        ("vgg11", 8, COLOUR),
    ],
)
def test_a_step_takes_about_what_is_planned(net, images, shape, kernels):
    found = measured(TRAIN, net, images, shape, kernels)
    least = 0.5 if found["total"] > 40_000_000 else 0.4  # of small steps, what code and threads take is the larger part
    assert least <= found["peak"] / found["total"] <= 1.25, found


@pytest.mark.parametrize(
    ("net", "images", "limit"),
    [("simple_convnet", 1000, 40_000_000), ("simple_convnet", 4000, 60_000_000), ("lenet5", 2000, 30_000_000)],
)
def test_tiles_keep_a_step_below_its_limit(net, images, limit):
    whole = measured(TRAIN, net, images, GREY)
    assert whole["peak"] > 1.5 * limit
    found = measured(TRAIN, net, images, GREY, limit=limit)
    assert found["tiles"] > 1
    assert found["peak"] <= 1.15 * limit


def test_an_epoch_with_its_accuracies_stays_below_the_limit():
    found = measured(FIT, "simple_convnet", 5100, GREY, limit=45_000_000, batch=500)
    assert found["peak"] <= 1.25 * 45_000_000


@pytest.mark.parametrize("kernels", ["numpy", "auto"])
@pytest.mark.parametrize("work", ["predict", "evaluate"])
def test_sixty_thousand_images_are_classified_in_bounded_memory(work, kernels):
    found = measured(PREDICT, "simple_convnet", 60_000, GREY, kernels, work=work)
    assert found["peak"] < 300_000_000
