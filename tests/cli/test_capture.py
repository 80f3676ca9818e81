"""``xpcnn train --capture``, on the emulated kernels."""

from __future__ import annotations

import json

import emulator
import pytest


@pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler")
def test_recorded_and_single_steps_come_to_the_same(call, few, tmp_path, monkeypatch):
    emulator.install(monkeypatch)
    found = []
    for capture in ("auto", "off"):
        out = tmp_path / capture
        status, said, errors = call(
            "train", "--data-dir", few, "--device", "cpu", "--epochs", 1, "--out", out, "--capture", capture
        )
        assert status == 0, errors
        assert "recorded graph" not in said
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found.append([{k: v for k, v in record.items() if "second" not in k} for record in records])
    assert found[0] == found[1]
    assert (tmp_path / "auto" / "model.safetensors").read_bytes() == (
        tmp_path / "off" / "model.safetensors"
    ).read_bytes()


@pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler")
def test_it_says_once_why_steps_are_not_recorded(call, few, tmp_path, monkeypatch):
    emulator.install(monkeypatch)
    status, said, errors = call(
        "train", "--data-dir", few, "--device", "cpu", "--epochs", 1, "--batch-size", 250, "--max-memory", "30MB",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, errors
    assert said.count("not as a recorded graph: with max_memory, nothing is kept for a graph") == 1
