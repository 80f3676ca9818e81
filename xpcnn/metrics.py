"""How well classes are told apart: top-1 and top-5, the confusion matrix, precision, recall and F1 of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xpcnn.errors import XpcnnError

Host = np.ndarray[Any, Any]

FIVE = 5  # below six classes, top-5 is always right and not given


@dataclass(frozen=True, eq=False)
class Classification:
    """What a classifier made of labelled images, all of it counted; two of them add up.

    With TP, FP and FN the true positives, false positives and false negatives of a class, its precision is
    TP / (TP + FP), its recall TP / (TP + FN), its F1 their harmonic mean 2 TP / (2 TP + FP + FN). Where nothing is to
    be divided by (a class that was never predicted, or never there), the value is 0, as in scikit-learn.

    Attributes
    ----------
    confusion : numpy.ndarray (K, K)
        ``confusion[i, j]`` images of class i were taken for class j.
    within_five : int or None
        Images whose class is among the five with the largest outputs; None with five classes or fewer.
    classes : tuple of str
        The classes' names.
    """

    confusion: Host
    within_five: int | None
    classes: tuple[str, ...]

    def __add__(self, other: Classification) -> Classification:
        """Return the counts of both together, such as of two batches."""
        within = None if self.within_five is None or other.within_five is None else self.within_five + other.within_five
        return Classification(self.confusion + other.confusion, within, self.classes)

    @property
    def images(self) -> int:
        """How many images were classified."""
        return int(self.confusion.sum())

    @cached_property
    def support(self) -> Host:
        """Images of each class (K,)."""
        return self.confusion.sum(axis=1)

    @cached_property
    def predicted(self) -> Host:
        """Images taken for each class (K,)."""
        return self.confusion.sum(axis=0)

    @cached_property
    def precision(self) -> Host:
        """Of the images taken for a class, the share that is of it (K,)."""
        return _share(np.diagonal(self.confusion), self.predicted)

    @cached_property
    def recall(self) -> Host:
        """Of the images of a class, the share that was taken for it (K,)."""
        return _share(np.diagonal(self.confusion), self.support)

    @cached_property
    def f1(self) -> Host:
        """The harmonic mean of precision and recall (K,)."""
        return _share(2 * np.diagonal(self.confusion), self.support + self.predicted)

    @property
    def top1(self) -> float:
        """The accuracy: the share of images that were taken for what they are; 0 without images."""
        return int(np.trace(self.confusion)) / max(1, self.images)

    @property
    def top5(self) -> float | None:
        """The share of images whose class is among the five with the largest outputs; None below six classes."""
        return None if self.within_five is None else self.within_five / max(1, self.images)

    @property
    def macro(self) -> dict[str, float]:
        """The plain means of precision, recall and F1 over the classes that occur, as labels or as predictions."""
        occur = self.support + self.predicted > 0
        named = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {name: float(values[occur].mean()) if occur.any() else 0.0 for name, values in named.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON has: numbers, texts, lists."""
        columns = zip(self.classes, self.precision, self.recall, self.f1, self.support, strict=True)
        return {
            "images": self.images,
            "top1": self.top1,
            "top5": self.top5,
            "macro": self.macro,
            "classes": [
                {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
                for name, p, r, f, n in columns
            ],
            "confusion": self.confusion.tolist(),
        }


def classification(outputs: Any, labels: Any, classes: Sequence[str] = ()) -> Classification:
    """Compare a classifier's outputs with the labels.

    Parameters
    ----------
    outputs : array (N, K)
        Logits or probabilities, on the host. The class with the largest is predicted; of equal ones the first.
    labels : array (N,)
        Integers from 0 to K - 1.
    classes : sequence of str
        The K classes' names; their numbers by default.

    Raises
    ------
    XpcnnError
        When shapes do not fit, a label is none of the classes, or an output is not a number.
    """
    outputs, labels = _checked(outputs, labels)
    count = outputs.shape[1]
    if classes and len(classes) != count:
        raise XpcnnError(f"outputs are of {count} classes, but classes names {len(classes)}; give one name for each.")
    rank = ranks(outputs, labels)
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (labels, outputs.argmax(axis=1)), 1)
    within = int((rank < FIVE).sum()) if count > FIVE else None
    return Classification(confusion, within, tuple(classes) or tuple(map(str, range(count))))


def ranks(outputs: Any, labels: Any) -> Host:
    """Return how many classes stand before each image's own (N,): top-k is right where that is below k.

    Larger outputs stand before smaller ones; of equal ones, the class with the smaller number, so that rank 0 is
    where `numpy.argmax` finds the label.
    """
    outputs, labels = _checked(outputs, labels)
    own = np.take_along_axis(outputs, labels[:, None], axis=1)  # (N, 1)
    earlier = np.arange(outputs.shape[1]) < labels[:, None]
    return ((outputs > own) | ((outputs == own) & earlier)).sum(axis=1)


def _share(part: Host, whole: Host) -> Host:
    """Divide counts; nothing of nothing is 0."""
    return part / np.maximum(whole, 1)


def _checked(outputs: Any, labels: Any) -> tuple[Host, Host]:
    """Return both as arrays that fit together, or raise."""
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if outputs.ndim != 2 or labels.shape != outputs.shape[:1] or not outputs.shape[1]:
        raise XpcnnError(f"outputs must be (N, K) and labels (N,), got shapes {outputs.shape} and {labels.shape}.")
    if labels.dtype.kind not in "iu" and len(labels):
        raise XpcnnError(f"labels must be integers, got dtype {labels.dtype}.")
    labels = labels.astype(np.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
        raise XpcnnError(f"labels must lie from 0 to {outputs.shape[1] - 1}, got {labels.min()} to {labels.max()}.")
    if np.isnan(outputs).any():
        raise XpcnnError("outputs are not a number for some images; look at the model's parameters.")
    return outputs, labels
