"""Runs made by hand: a small network that was never trained, with a record of a training that never was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import xpcnn as xc
from xpcnn import layers
from xpcnn.data import Dataset


@dataclass
class Made:
    path: Path
    model: xc.Model
    data: Dataset


def small_model(image_shape, names, seed=0):
    parts = [layers.Conv2D(5, 3, padding=1), layers.ReLU(), layers.MaxPool2D(2), layers.Flatten()]
    net = layers.Sequential(*parts, layers.Affine(len(names)), input_shape=image_shape)
    return xc.Model(net, "cpu", seed, classes=names, dataset="mnist")


def write_run(path, *, updates=30, epochs=3, test=True, config=True, **settings):
    """Write a configuration and metrics."""
    path.mkdir(parents=True, exist_ok=True)
    if config:
        known = {"model": "simple-convnet", "dataset": "mnist", "epochs": epochs, "lr": 0.06} | settings
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in known.items()]
        environment = '[environment]\nxpcnn = "0"\nstarted = "2026-01-02T03:04:05+0000"\n'
        (path / "config.toml").write_text("\n".join(["[train]", *lines, environment]), encoding="utf-8")
    records = []
    for epoch in range(epochs + 1):
        if epoch:
            records += [{"update": n, "loss": 2.0 / (n + updates * (epoch - 1))} for n in range(1, updates + 1)]
        records.append({
            "epoch": epoch, "loss": 1.0 / epoch if epoch else None, "train_accuracy": 0.9 + epoch / 100,
            "test_accuracy": 0.8 + epoch / 100 if test else None, "seconds": 1.5, "images_per_second": 100.0,
        })  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_run(directory, rng, name="run", image_shape=(1, 12, 12), names=("a", "b", "c"), count=60, **options):
    """Write a run with a model, and draw labelled images for it."""
    path = write_run(directory / name, **options)
    model = small_model(image_shape, names)
    model.save(path / "model.safetensors")
    images = rng.integers(0, 256, (count, *image_shape)).astype(np.uint8)
    return Made(path, model, Dataset(images, rng.integers(0, len(names), count), tuple(names)))
