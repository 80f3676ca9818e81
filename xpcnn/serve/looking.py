"""What a model makes of one picture, as plain values and PNGs: the answers of `xpcnn serve`."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.data.picture import read_header
from xpcnn.errors import DataError, XpcnnError
from xpcnn.layers.watched import Watched
from xpcnn.model import Model
from xpcnn.report.attribution import class_map, explained_layer, watch
from xpcnn.report.feature_maps import convolutions
from xpcnn.report.pictures import image_uri, overlay_uri, signed_uri
from xpcnn.report.prepared import prepared

Host = np.ndarray[Any, Any]

MOST_PIXELS = 16_000_000
MOST_LAYERS = 24
MOST_MAPS = 320  # over all layers, of which each has some
FEWEST_MAPS = 8


class Looking:
    """Looks at pictures with one model, one at a time whoever asks.

    Parameters
    ----------
    model : Model
        From images (C, H, W) to classes.
    name : str
        The run's, for people.

    Raises
    ------
    XpcnnError
        When the model is none from images to classes, or takes other than 1 or 3 channels.
    """

    def __init__(self, model: Model, name: str) -> None:
        self.layer = explained_layer(model)
        if model.input_shape[0] not in (1, 3):
            raise XpcnnError(f"pictures have 1 or 3 channels, but the model takes {model.input_shape[0]}.")
        self.model, self.name = model, name
        self.convolutions = convolutions(model)
        self.classes = model.classes or tuple(map(str, range(model.output_shape[0])))
        self._lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """Return what the page says about the model."""
        model = self.model
        return {
            "name": self.name,
            "dataset": model.dataset,
            "shape": list(model.input_shape),
            "classes": list(self.classes),
            "parameters": model.net.parameter_count(model.input_shape),
            "device": model.backend.name,
            "explained": self.layer,
            "convolutions": len(self.convolutions),
        }

    def look(self, content: bytes, chosen: int | None = None) -> dict[str, Any]:
        """Return probabilities, what speaks for a class, and feature maps of a picture.

        Parameters
        ----------
        content : bytes
            A picture's file.
        chosen : int, optional
            The class to explain, by default the most probable one.

        Raises
        ------
        DataError
            When the content is no picture, truncated or too large.
        XpcnnError
            When there is no such class, or the model's outputs are no numbers.
        """
        with self._lock:
            start = time.perf_counter()
            image = self._prepared(content)
            seen = watch(self.model, image[None], chosen)
            heat = class_map(self.model, seen, self.layer)[0]
            probabilities = self._probabilities(seen)
            return {
                "input": image_uri(image),
                "overlay": overlay_uri(image, heat),
                "explained": int(np.argmax(probabilities)) if chosen is None else chosen,
                "probabilities": [round(float(p), 6) for p in probabilities],
                "layers": self._maps(seen),
                "milliseconds": round(1000 * (time.perf_counter() - start), 1),
            }

    def _prepared(self, content: bytes) -> Host:
        """Return a picture as the model takes it; how many pixels it has is read before they are."""
        try:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "picture"
                path.write_bytes(content)
                height, width, _ = read_header(path)
                if height * width > MOST_PIXELS:
                    raise DataError(f"{path} has {width} × {height} pixels, more than {MOST_PIXELS:,}.")
                return prepared(path, self.model)
        except DataError as error:
            raise DataError(str(error).replace(str(path), "the picture")) from None
        except OSError as error:
            raise DataError(f"the picture cannot be put into the temporary directory ({error.strerror}).") from None

    def _probabilities(self, seen: Watched) -> Host:
        """Return the softmax of the logits."""
        logits = self.model.backend.to_numpy(seen.y)[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise XpcnnError("the model's outputs are not numbers; its parameters are damaged.")
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    def _maps(self, seen: Watched) -> list[dict[str, Any]]:
        """Return the maps of the first convolutions; within a layer they have one scale."""
        paths = self.convolutions[:MOST_LAYERS]
        most = max(FEWEST_MAPS, MOST_MAPS // max(1, len(paths)))
        layers = []
        for path in paths:
            maps = self.model.backend.to_numpy(seen.outputs[path])[0].astype(np.float64)
            limit = float(np.abs(maps).max())
            uris = [signed_uri(values, limit) for values in maps[:most]]
            size = list(maps.shape[1:])
            layers.append({"name": path, "size": size, "of": len(maps), "limit": limit, "maps": uris})
        return layers
