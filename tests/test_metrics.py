"""Metrics against their definitions, written as loops over images, and against numbers worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xpcnn import XpcnnError
from xpcnn.metrics import classification, ranks


def ranked(row):
    """Return classes by output, largest first and of equal ones the first, by sorting pairs."""
    return [number for _, number in sorted((-value, number) for number, value in enumerate(row))]


def by_loops(outputs, labels):
    """Return every figure by going through the images one by one."""
    count = len(outputs[0])
    predicted = [ranked(row)[0] for row in outputs]
    pairs = list(zip(labels, predicted, strict=True))
    table = []
    for k in range(count):
        hits = sum(1 for t, p in pairs if t == k and p == k)
        taken, there = sum(1 for _, p in pairs if p == k), sum(1 for t, _ in pairs if t == k)
        precision, recall = hits / taken if taken else 0.0, hits / there if there else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        table.append((precision, recall, f1, there, taken))
    return {
        "confusion": [[sum(1 for pair in pairs if pair == (i, j)) for j in range(count)] for i in range(count)],
        "top1": sum(t == p for t, p in pairs) / len(pairs),
        "top5": sum(t in ranked(row)[:5] for t, row in zip(labels, outputs, strict=True)) / len(pairs),
        "table": table,
    }


@pytest.mark.parametrize("classes", [2, 5, 6, 10])
@pytest.mark.parametrize("levels", [3, 1000])  # with three levels, most outputs are equal to others
def test_against_loops(rng, classes, levels):
    outputs = rng.integers(0, levels, (200, classes)).astype(np.float32) / 7 - 1
    labels = rng.integers(0, classes, 200)
    labels[:150] = outputs[:150].argmax(axis=1)
    found, expected = classification(outputs, labels), by_loops(outputs.tolist(), labels.tolist())
    assert found.confusion.tolist() == expected["confusion"]
    assert found.top1 == pytest.approx(expected["top1"])
    assert found.top5 == (pytest.approx(expected["top5"]) if classes > 5 else None)
    for number, values in enumerate((found.precision, found.recall, found.f1, found.support, found.predicted)):
        assert values == pytest.approx([row[number] for row in expected["table"]])
    for number, name in enumerate(("precision", "recall", "f1")):
        assert found.macro[name] == pytest.approx(np.mean([row[number] for row in expected["table"]]))


def test_by_hand():
    """Three cats (two taken for cats, one for a dog), one dog taken for a cat; there is no bird."""
    outputs = [[2, 1, 0], [3, 0, 0], [0, 1, 0], [5, 4, 0]]
    found = classification(outputs, [0, 0, 0, 1], ["cat", "dog", "bird"])
    assert found.confusion.tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert found.precision == pytest.approx([2 / 3, 0, 0])
    assert found.recall == pytest.approx([2 / 3, 0, 0])
    assert found.f1 == pytest.approx([2 / 3, 0, 0])
    assert found.macro == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})  # of cats and dogs
    assert (found.top1, found.top5, found.images) == (0.5, None, 4)


def test_of_equal_outputs_the_first_class_stands_first():
    assert ranks(np.zeros((4, 4)), [0, 1, 2, 3]).tolist() == [0, 1, 2, 3]
    assert ranks([[1.0, np.inf, -np.inf]] * 3, [0, 1, 2]).tolist() == [1, 0, 2]
    found = classification(np.ones((6, 6)), np.arange(6))
    assert (found.top1, found.top5) == (1 / 6, 5 / 6)


def test_batches_add_up(rng):
    outputs, labels = rng.random((50, 7)), rng.integers(0, 7, 50)
    parts = classification(outputs[:20], labels[:20]) + classification(outputs[20:], labels[20:])
    assert parts.as_dict() == classification(outputs, labels).as_dict()


def test_as_json(rng):
    found = classification(rng.random((30, 6)), rng.integers(0, 6, 30).astype(np.uint8), list("abcdef"))
    again = json.loads(json.dumps(found.as_dict()))
    assert again == found.as_dict()
    assert [row["class"] for row in again["classes"]] == list("abcdef")
    assert sum(row["support"] for row in again["classes"]) == again["images"] == 30
    assert np.trace(again["confusion"]) / 30 == pytest.approx(again["top1"])


def test_nothing_is_all_zero():
    found = classification(np.zeros((0, 6)), [])
    assert (found.images, found.top1, found.top5) == (0, 0.0, 0.0)
    assert found.macro == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("outputs", "labels", "classes", "says"),
    [
        (np.zeros(3), [0, 0, 0], (), r"outputs must be \(N, K\) and labels \(N,\), got shapes \(3,\) and \(3,\)"),
        (np.zeros((3, 2)), [0, 0], (), r"got shapes \(3, 2\) and \(2,\)"),
        (np.zeros((2, 0)), [0, 0], (), "got shapes"),
        (np.zeros((2, 2)), [0.0, 1.0], (), "labels must be integers, got dtype float64"),
        (np.zeros((2, 2)), [0, 2], (), "labels must lie from 0 to 1, got 0 to 2"),
        (np.zeros((2, 2)), [-1, 0], (), "labels must lie from 0 to 1, got -1 to 0"),
        (np.zeros((2, 2)), [0, 1], ["a"], "outputs are of 2 classes, but classes names 1"),
        ([[0.0, np.nan]], [0], (), "outputs are not a number"),
    ],
)
def test_what_does_not_fit(outputs, labels, classes, says):
    with pytest.raises(XpcnnError, match=says):
        classification(outputs, labels, classes)
