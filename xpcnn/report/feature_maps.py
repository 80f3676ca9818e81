"""Feature maps: what the layers of a network make of one image, drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpcnn.errors import XpcnnError
from xpcnn.files import write_whole
from xpcnn.layers.base import leaves
from xpcnn.model import Model
from xpcnn.report.layer_outputs import layer_outputs

Host = np.ndarray[Any, Any]

ACROSS = 10  # maps in a row
MOST_ROWS = 12  # of maps, over all layers, of which each has one at least
MOST_LAYERS = 24
SIDE = 1.0  # inches of a map
GAP = 0.08  # between maps, in their widths
COLOURS = "RdBu_r"


class Drawn(NamedTuple):
    """One layer in the picture."""

    layer: str
    maps: int  # that are drawn
    of: int  # that the layer has
    size: tuple[int, ...]
    low: float
    high: float

    def __str__(self) -> str:
        """Say it: ``conv1: 30 maps of 24x24, from -1.2 to 3.4``."""
        count = f"{self.maps} maps" if self.maps == self.of else f"the first {self.maps} of {self.of} maps"
        size = "x".join(map(str, self.size))
        return f"{self.layer}: {count if self.of > 1 else '1 map'} of {size}, from {self.low:.3g} to {self.high:.3g}"


def draw_feature_maps(
    path: str | Path, model: Model, image: Any, layers: Sequence[str] = (), title: str = ""
) -> list[Drawn]:
    """Draw a PNG of the image and of every channel that layers make of it; return what is in it.

    Within a layer all maps have one scale: white is 0, red above, blue below.

    Parameters
    ----------
    path : path
        Of the PNG, written whole or not at all.
    model : Model
        With its parameters.
    image : array (C, H, W) or (C, L)
        One image, uint8 or normalised as in training.
    layers : sequence of str
        The layers' paths, such as ``conv1``; the first `MOST_LAYERS` convolutions by default.
    title : str
        Above everything.

    Raises
    ------
    XpcnnError
        When a layer is unknown or has no maps, or the image does not fit the model.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = model.backend.to_numpy(model.backend.asarray(image))
    names = _chosen(model, layers)
    outputs = layer_outputs(model, image[None])
    most = ACROSS * max(1, MOST_ROWS // len(names))
    tiled = [_input_tiles(image), *(_map_tiles(name, _host(model, outputs[name]), most) for name in names)]
    heights = [tiles.inches for tiles in tiled]
    figure = Figure(figsize=(ACROSS * SIDE + 1.0, sum(heights) + 0.4 * len(heights) + 0.3), dpi=100)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title or "Feature maps", fontsize=11)
    for axes, tiles in zip(figure.subplots(len(tiled), height_ratios=heights, squeeze=False)[:, 0], tiled, strict=True):
        _draw(figure, axes, tiles)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
    return [tiles.drawn for tiles in tiled if tiles.drawn]


def convolutions(model: Model) -> list[str]:
    """Return the paths of a model's convolutions over signals and images, in order."""
    found = leaves(model.net, model.input_shape)
    return [placed.path for placed in found if placed.layer.kind == "conv" and len(placed.output_shape) in (2, 3)]


def _chosen(model: Model, layers: Sequence[str]) -> list[str]:
    """Return the paths of the layers to draw, or raise naming the one that cannot be."""
    drawable = [p.path for p in leaves(model.net, model.input_shape) if len(p.output_shape) in (2, 3)]
    unknown = [name for name in layers if name not in drawable]
    if unknown:
        raise XpcnnError(f"there are no feature maps of {unknown[0]!r}; this network has those of {_some(drawable)}.")
    names = list(dict.fromkeys(layers)) or convolutions(model)[:MOST_LAYERS]
    if not names:
        raise XpcnnError(f"this network has no convolution to draw; name layers out of {_some(drawable)}.")
    if len(names) > MOST_LAYERS:
        raise XpcnnError(f"{len(names)} layers are too many for one picture; name at most {MOST_LAYERS}.")
    return names


def _some(names: Sequence[str]) -> str:
    """Return names as a list that stays short."""
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"


def _host(model: Model, output: Any) -> Host:
    """Return the first image's output on the host."""
    return model.backend.to_numpy(output)[0].astype(np.float64)


class _Tiles(NamedTuple):
    """Pictures (count, rows, columns, 3) of numbers from 0 to 1, to be laid side by side."""

    pictures: Host
    title: str
    limit: float = 0.0  # the colours of a layer's maps go from -limit to limit
    drawn: Drawn | None = None

    @property
    def inches(self) -> float:
        """The height of all rows of tiles."""
        count, high, wide, _ = self.pictures.shape
        return -(-count // ACROSS) * SIDE * min(4.0, (high + GAP * wide) / (wide + GAP * wide))


def _input_tiles(image: Host) -> _Tiles:
    """Return the input: in colour, or every channel in grey."""
    values = _two_axes(image.astype(np.float64))[:ACROSS]
    low, high = values.min(), values.max()
    values = (values - low) / (high - low or 1.0)
    pictures = np.moveaxis(values, 0, 2)[None] if len(image) == 3 else np.repeat(values[..., None], 3, axis=3)
    return _Tiles(pictures, f"input {'x'.join(map(str, image.shape))}")


def _map_tiles(name: str, values: Host, most: int) -> _Tiles:
    """Return a layer's maps (C, H, W) or (C, L) in colours of one scale."""
    from matplotlib import colormaps

    if not np.isfinite(values).all():
        raise XpcnnError(f"the output of layer {name} has values that are not numbers.")
    shown = _two_axes(values[:most])
    said = Drawn(name, len(shown), len(values), values.shape[1:], float(values.min()), float(values.max()))
    limit = max(abs(said.low), abs(said.high)) or 1.0
    return _Tiles(colormaps[COLOURS]((shown / limit + 1) / 2)[..., :3], str(said), limit, said)


def _two_axes(maps: Host) -> Host:
    """Return maps (C, H, W); signals (C, L) become strips a quarter as high as they are long."""
    return maps if maps.ndim == 3 else np.repeat(maps[:, None, :], -(-maps.shape[1] // 4), axis=1)


def _draw(figure: Any, axes: Any, tiles: _Tiles) -> None:
    """Lay tiles side by side in frames, with the scale of colours beside them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    count, high, wide, _ = tiles.pictures.shape
    gap = GAP * wide  # not a whole number: tiles are placed, not pasted
    frames = []
    for number, picture in enumerate(tiles.pictures):
        top, left = number // ACROSS * (high + gap), number % ACROSS * (wide + gap)
        axes.imshow(picture, extent=(left, left + wide, top + high, top), interpolation="nearest")
        frames.append(Rectangle((left, top), wide, high))
    axes.add_collection(PatchCollection(frames, facecolor="none", edgecolor="#999999", linewidth=0.7))
    rows = -(-count // ACROSS)
    axes.set(xlim=(-gap, ACROSS * (wide + gap)), ylim=(rows * (high + gap), -gap))
    axes.set_title(tiles.title, fontsize=9, loc="left")
    axes.set_axis_off()
    axes.set_anchor("W")
    if tiles.limit:
        scale = ScalarMappable(Normalize(-tiles.limit, tiles.limit), COLOURS)
        bar = figure.colorbar(scale, ax=axes, fraction=0.02, pad=0.01, ticks=MaxNLocator(4, symmetric=True))
        bar.ax.tick_params(labelsize=7)
