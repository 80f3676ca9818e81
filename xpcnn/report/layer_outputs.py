"""What every layer of a model gives for a batch of images."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array
from xpcnn.layers import watched
from xpcnn.model import Model


def layer_outputs(model: Model, images: Any) -> dict[str, Array]:
    """Return the output of every layer that holds no others, by path, on the model's device.

    Parameters
    ----------
    model : Model
        Run as it predicts, not as it trains.
    images : array (N, *input_shape)
        As `Model.predict` takes them. Everything is kept at once, so give few.
    """
    x = model.as_input(images)
    with model.backend.context():
        return watched.outputs(model.net, model.input_shape, model.parameters(), model.state(), x)
