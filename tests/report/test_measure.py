"""One pass over a data set: loss and probabilities by definition, mistakes in their order."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn.data import Dataset
from xpcnn.report.measure import measure


def test_by_definition(make_run, monkeypatch):
    made = make_run(names=list("abcdefg"), count=50)
    monkeypatch.setattr(xc.Model, "images_at_once", 7)  # the last batch is short
    found = measure(made.model, made.data)
    logits = made.model.predict(made.data.images).astype(np.float64)
    losses = []
    for row, label, sure, right, predicted in zip(
        logits, made.data.labels, found.sure, found.right, found.predicted, strict=True
    ):
        powers = np.exp(row)
        losses.append(-np.log(powers[label] / powers.sum()))
        assert right == pytest.approx(powers[label] / powers.sum())
        assert sure == pytest.approx(powers.max() / powers.sum())
        assert predicted == row.argmax()
    assert found.loss == pytest.approx(np.mean(losses))
    assert found.found.top1 == np.mean(found.predicted == made.data.labels)
    assert found.found.images == 50
    assert found.found.classes == tuple("abcdefg")


def test_the_most_confident_mistakes_come_first(make_run):
    made = make_run()
    found = measure(made.model, made.data)
    wrong = [row for row in range(len(made.data)) if found.predicted[row] != made.data.labels[row]]
    assert sorted(found.mistakes.tolist()) == wrong
    assert (np.diff(found.sure[found.mistakes]) <= 0).all()


def test_it_agrees_with_evaluate(make_run):
    made = make_run()
    found = measure(made.model, made.data)
    accuracy, loss = xc.evaluate(made.model, made.data)
    assert (found.found.top1, found.loss) == (accuracy, pytest.approx(loss, rel=1e-5))


def test_what_cannot_be_measured(make_run):
    made = make_run()
    with pytest.raises(xc.XpcnnError, match="no images to evaluate"):
        measure(made.model, made.data.first(0))
    made.model.load_parameters({p: np.full(a.shape, np.nan) for p, a in made.model.parameters().items()})
    with pytest.raises(xc.XpcnnError, match="loss is not a number; its parameters are damaged"):
        measure(made.model, made.data)
    with pytest.raises(xc.XpcnnError, match="labels must lie from 0 to 2"):
        measure(make_run("other").model, Dataset(made.data.images, made.data.labels + 1))
