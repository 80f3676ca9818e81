"""A model's answers for a whole data set: one pass in bounded memory, of which only a few numbers per image stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpcnn.data import Loader, Source
from xpcnn.errors import XpcnnError
from xpcnn.metrics import Classification, classification
from xpcnn.model import Model

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Measured:
    """What a model makes of labelled images.

    Attributes
    ----------
    found : Classification
        Confusion matrix and what follows from it.
    loss : float
        Mean cross-entropy in nats.
    labels, predicted : numpy.ndarray (N,)
        Each image's class, and the one it was taken for.
    sure : numpy.ndarray (N,)
        The probability given to the predicted class.
    right : numpy.ndarray (N,)
        The probability given to the image's own class.
    """

    found: Classification
    loss: float
    labels: Host
    predicted: Host
    sure: Host
    right: Host

    @property
    def mistakes(self) -> Host:
        """The numbers of the images taken for another class, the most confident mistakes first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.sure[wrong], kind="stable")]


def measure(model: Model, data: Source) -> Measured:
    """Run a model over labelled images.

    Parameters
    ----------
    model : Model
        From images to classes.
    data : Source
        Read in batches, ahead in the background.

    Raises
    ------
    XpcnnError
        When there are no images, a label is none of the model's classes, or an output is not a number.
    """
    if not len(data):
        raise XpcnnError("there are no images to evaluate.")
    names = data.classes or model.classes
    counted, parts = [], []
    for images, labels in Loader(data, model.images_at_once, shuffle=False).epoch(0):
        logits = np.asarray(model.predict(images), dtype=np.float64)
        if not np.isfinite(logits).all():
            raise XpcnnError("the model's loss is not a number; its parameters are damaged.")
        counted.append(classification(logits, labels, names))
        parts.append(_answers(logits, labels))
    loss, predicted, sure, right = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = sum(counted[1:], start=counted[0])
    return Measured(found, math.fsum(loss) / len(loss), np.asarray(data.labels), predicted, sure, right)


def probabilities(logits: Host) -> Host:
    """Return the softmax of logits (N, K), in float64."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return powers / powers.sum(axis=1, keepdims=True)


def _answers(logits: Host, labels: Host) -> tuple[Host, Host, Host, Host]:
    """Return each image's loss, predicted class, and the probabilities of that and of its own class."""
    rows, predicted, chances = np.arange(len(labels)), logits.argmax(axis=1), probabilities(logits)
    top = logits.max(axis=1)
    loss = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[rows, labels]
    return loss, predicted, chances[rows, predicted], chances[rows, labels]
