"""A picture made ready for a model exactly as its training images were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.data import read_picture
from xpcnn.errors import XpcnnError
from xpcnn.model import Model

GUESSED = ("", "mnist", "fashion-mnist")  # data sets of light things on black, for which dark ones are inverted


def prepared(path: str | Path, model: Model, *, polarity: str = "auto") -> np.ndarray[Any, Any]:
    """Read a picture as a model's data set says: centred like MNIST, or fitted as `xpcnn.data.folder` does.

    Parameters
    ----------
    path : path
        See `xpcnn.data.read_picture`.
    model : Model
        Of images (C, H, W); its ``dataset`` chooses the rule.
    polarity : {"auto", "keep", "invert"}
        What to do about dark ink on light ground; ``auto`` inverts it for MNIST and its like, and never for a folder's
        model, whose training pictures were taken as they are.

    Returns
    -------
    numpy.ndarray
        uint8 (C, H, W).

    Raises
    ------
    DataError
        When the file is missing, not a picture, truncated or too large.
    """
    if len(model.input_shape) != 3:
        raise XpcnnError(f"pictures are for models of images (C, H, W), not of {model.input_shape}.")
    channels, height, width = model.input_shape
    if polarity == "auto" and model.dataset not in GUESSED:
        polarity = "keep"
    return read_picture(path, (channels, height, width), polarity=polarity, center=model.dataset == "mnist")
