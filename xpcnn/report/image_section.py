"""What a model sees: its worst mistakes, its first filters, and what the layers make of a few images."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.data import Source
from xpcnn.errors import XpcnnError
from xpcnn.layers import leaves
from xpcnn.model import Model
from xpcnn.report.attribution import grad_cam, saliency
from xpcnn.report.layer_outputs import layer_outputs
from xpcnn.report.markup import Html, join, short, tag
from xpcnn.report.measure import Measured, probabilities
from xpcnn.report.pictures import colour_uri, image_uri, img, overlay_uri, signed_uri

Host = np.ndarray[Any, Any]

MOST_FILTERS = 64
MOST_LAYERS = 12
MOST_MAPS, MAPS_IN_ALL = 16, 600  # of a layer, and on the page
FEWEST_MAPS = 4
LIKELIEST = 5  # classes whose probabilities are shown


def mistakes(data: Source, measured: Measured, names: tuple[str, ...], most: int) -> Html:
    """Return the images that were most confidently taken for something else."""
    worst = measured.mistakes[:most]
    if not len(worst):
        return tag("p", "There are none: every image was recognised.", class_="muted")
    cards = []
    for row, image in zip(worst, data.read(worst), strict=True):
        own, taken = short(names[measured.labels[row]]), short(names[measured.predicted[row]])
        caption = tag(
            "figcaption",
            tag("strong", taken),
            tag("span", _percent(measured.sure[row]), class_="sure"),
            tag("span", "is ", tag("b", own), f", {_percent(measured.right[row])}", class_="own"),
        )
        picture = img(image_uri(image), f"Image {row}: {own}, taken for {taken}")
        cards.append(tag("figure", picture, caption, class_="mistake"))
    heading = tag(
        "p",
        f"The {len(worst)} most confident of {len(measured.mistakes):,}: above, what the image was taken for and how "
        "surely; below, what it is and how likely the model held that.",
        class_="muted",
    )
    return join([heading, tag("div", *cards, class_="mistakes")])


def filters(model: Model) -> Html | None:
    """Return the kernels of the first convolution over images, if there is one."""
    convs = [p for p in leaves(model.net, model.input_shape) if p.layer.kind == "conv" and len(p.output_shape) == 3]
    if not convs:
        return None
    path = convs[0].path
    weight = model.backend.to_numpy(model.parameters()[f"{path}/weight"]).astype(np.float64)
    shown = weight[:MOST_FILTERS]
    colour = weight.shape[1] == 3
    limit = float(np.abs(weight).max())
    uris = [colour_uri(kernel) if colour else signed_uri(kernel[0], limit) for kernel in shown]
    pictures = [img(uri, f"Filter {number} of {path}") for number, uri in enumerate(uris, start=1)]
    size = "×".join(map(str, weight.shape[2:]))
    first = "" if len(shown) == len(weight) else f"The first {len(shown)} of "
    kind = (
        "in colour, grey being 0" if colour else f"orange above 0, blue below, up to ±{limit:.3g}"
        if weight.shape[1] == 1 else f"their first channel of {weight.shape[1]}, orange above 0, blue below"
    )  # fmt: skip
    return join(
        [
            tag("p", f"{first}{len(weight)} filters of {path}, {size} pixels: {kind}.", class_="muted"),
            _tiles(pictures, "filters"),
        ]
    )


def chosen(measured: Measured, count: int) -> list[int]:
    """Return the images to look into: half of them the worst mistakes, then the first right ones of several classes."""
    wrong = measured.mistakes[: count // 2].tolist()
    right = np.flatnonzero(measured.predicted == measured.labels)
    _, first = np.unique(measured.labels[right], return_index=True)
    of_classes = sorted(right[first].tolist())
    others = [row for row in right[: 2 * count].tolist() if row not in of_classes]
    return [*(of_classes + others)[: count - len(wrong)], *wrong]


def examples(model: Model, data: Source, measured: Measured, names: tuple[str, ...], count: int) -> Html:
    """Return what the layers make of chosen images, and which pixels the answers rest on."""
    rows = np.array(chosen(measured, count), dtype=np.int64)
    images = data.read(rows)
    maps = _maps(model, images)
    heats = _heats(model, images)
    most = min(MOST_MAPS, max(FEWEST_MAPS, MAPS_IN_ALL // max(1, len(rows) * len(maps))))
    chances = probabilities(np.asarray(model.predict(images), dtype=np.float64))
    parts = []
    for place, row in enumerate(rows):
        own, taken = short(names[measured.labels[row]]), short(names[measured.predicted[row]])
        verdict = f"recognised as {taken}" if own == taken else f"{own}, taken for {taken}"
        head = tag(
            "summary",
            img(image_uri(images[place]), "", "thumb"),
            tag("span", verdict, f", {_percent(measured.sure[row])}"),
        )
        inside = [
            tag("div", _views(images[place], heats, place, taken), _bars(chances[place], names), class_="views"),
            *[_layer(path, values[place], most) for path, values in maps.items()],
        ]
        parts.append(tag("details", head, *inside, open=place == 0, class_="example"))
    return join(parts)


def _maps(model: Model, images: Host) -> dict[str, Host]:
    """Return the maps (N, C, H, W) of the layers to show: all, or else the convolutions, or else some of them."""
    spatial = [p for p in leaves(model.net, model.input_shape) if len(p.output_shape) == 3]
    if len(spatial) > MOST_LAYERS:
        spatial = [p for p in spatial if p.layer.kind == "conv"] or spatial
    if len(spatial) > MOST_LAYERS:
        spatial = [spatial[round(n * (len(spatial) - 1) / (MOST_LAYERS - 1))] for n in range(MOST_LAYERS)]
    outputs = layer_outputs(model, images)
    return {p.path: model.backend.to_numpy(outputs[p.path]).astype(np.float64) for p in spatial}


def _layer(path: str, maps: Host, most: int) -> Html:
    """Return the first of a layer's maps (C, H, W) of one image, all on one scale."""
    shown = maps[:most]
    limit = float(np.abs(maps).max(initial=0.0))
    size = "×".join(map(str, maps.shape[1:]))
    count = f"{len(maps)} maps" if len(shown) == len(maps) else f"{len(shown)} of {len(maps)} maps"
    pictures = [img(signed_uri(values, limit), "") for values in shown]
    note = tag("span", f"{count if len(maps) > 1 else '1 map'} of {size}, up to ±{limit:.3g}", class_="muted")
    return tag("div", tag("h3", path, " ", note), _tiles(pictures, "maps", f"Feature maps of {path}"), class_="layer")


def _heats(model: Model, images: Host) -> dict[str, Host]:
    """Return Grad-CAM and saliency (N, H, W), or what of them the network allows."""
    found = {}
    for name, method in (("Grad-CAM", grad_cam), ("Saliency", saliency)):
        try:
            found[name] = method(model, images)
        except XpcnnError:  # a network without maps has no Grad-CAM
            continue
    return found


def _views(image: Host, heats: dict[str, Host], place: int, taken: str) -> Html:
    """Return an image, and it under each heat."""
    views = [("Image", image_uri(image), f"The image, taken for {taken}")]
    for name, heat in heats.items():
        views.append((name, overlay_uri(image, heat[place]), f"{name}: the pixels that speak for {taken} glow"))
    return join([tag("figure", img(uri, alt), tag("figcaption", name), class_="view") for name, uri, alt in views])


def _bars(chances: Host, names: tuple[str, ...]) -> Html:
    """Return the likeliest classes with bars as long as their probabilities."""
    rows = []
    for k in np.argsort(-chances, kind="stable")[:LIKELIEST]:
        length = tag("rect", width=f"{100 * chances[k]:.1f}%", height="100%")
        bar = tag("td", tag("svg", length, class_="bar", aria_hidden="true"))
        chance = tag("td", _percent(chances[k]), class_="number")
        rows.append(tag("tr", tag("th", short(names[k]), scope="row"), bar, chance))
    return tag("table", tag("caption", "Likeliest classes"), tag("tbody", *rows), class_="bars")


def _tiles(pictures: list[Html], kind: str, label: str = "") -> Html:
    """Return pictures side by side."""
    return tag("div", *pictures, class_=f"tiles {kind}", role="img" if label else None, aria_label=label or None)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
