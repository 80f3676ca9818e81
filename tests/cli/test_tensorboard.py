"""TensorBoard's event files, read record by record as their format says."""

from __future__ import annotations

import json
import struct

import pytest


def events(directory):
    """Yield (tag, step, value) of every scalar in a directory's event files."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for file in sorted(directory.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)  # length, its checksum, the record, its checksum
            record = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            for value in record.summary.value:
                yield value.tag, record.step, value.simple_value


def test_event_files_have_the_metrics(call, few, tmp_path):
    pytest.importorskip("tensorboardX")
    out = tmp_path / "run"
    options = "--data-dir", few, "--epochs", 2, "--device", "cpu", "--tensorboard"
    assert call("train", *options, "--out", out, "--quiet")[0] == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {(tag, step): value for tag, step, value in events(out / "tensorboard")}
    for line in lines:
        if "update" in line:
            assert found["loss/update", line["update"]] == pytest.approx(line["loss"], rel=1e-6)
        else:
            assert found["epoch/test_accuracy", line["epoch"]] == pytest.approx(line["test_accuracy"], rel=1e-6)
    assert ("epoch/loss", 0) not in found
