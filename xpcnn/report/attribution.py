"""Which pixels a model's answer rests on: Grad-CAM and saliency, and a picture of it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from xpcnn.backend import Array
from xpcnn.errors import XpcnnError
from xpcnn.layers import watched
from xpcnn.layers.base import Placed, leaves
from xpcnn.layers.watched import Watched
from xpcnn.model import Model, batches

Host = np.ndarray[Any, Any]

ONCE = 32  # images at a time at most: all outputs and gradients are kept
SIDE = 224  # pixels that an overlay has at least along its shorter side
COLOURS = "inferno"
DIMMED, COVER = 0.6, 0.85  # how bright the picture is shown, and how much of it the hottest place hides


def grad_cam(model: Model, images: Any, classes: Any = None, layer: str | None = None) -> Host:
    """Return where a layer saw what speaks for a class: ``relu(Σ_k a_k A_k)``, ``a_k`` = mean of ``∂logit/∂A_k``.

    Parameters
    ----------
    model : Model
        From images (C, H, W) to classes; run as it predicts.
    images : array (N, C, H, W)
        As `Model.predict` takes them.
    classes : int or sequence of int (N,), optional
        Whose logits to explain; by default the predicted ones.
    layer : str, optional
        Path of the layer with the maps A (N, K, H', W'). By default what follows the last convolution at its size,
        such as its normalisation and ReLU, see `explained_layer`.

    Returns
    -------
    numpy.ndarray
        float32 (N, H, W) from 0 to 1, the hottest place of each image being 1; nothing but zeros where nothing speaks
        for the class.

    Raises
    ------
    XpcnnError
        When the model, a class or the layer does not fit, or gradients are not finite.

    References
    ----------
    R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", 2017,
    equations 1 and 2.
    """
    layer = explained_layer(model, layer)
    found = [class_map(model, seen, layer) for seen in _runs(model, images, classes)]
    return np.concatenate(found)


def saliency(model: Model, images: Any, classes: Any = None) -> Host:
    """Return how much a class's logit changes with each pixel: the largest of ``|∂logit/∂x|`` over the channels.

    Parameters
    ----------
    model, images, classes
        As in `grad_cam`.

    Returns
    -------
    numpy.ndarray
        float32 (N, H, W) from 0 to 1, each image's largest value being 1.

    Raises
    ------
    XpcnnError
        When the model or a class does not fit, or gradients are not finite.

    References
    ----------
    K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks: visualising image classification models
    and saliency maps", 2014, section 3.1.
    """
    found = []
    for seen in _runs(model, images, classes):
        found.append(_scaled(np.abs(_host(model, seen.dx)).max(axis=1)))
    return np.concatenate(found)


def explained_layer(model: Model, layer: str | None = None) -> str:
    """Return the path of the layer whose maps explain: the one that is named, or what the last convolution becomes.

    That is the last layer of the same size as the last convolution that sees more than one place: in
    convolution, normalisation, ReLU the ReLU, as in the authors' program. Without such a convolution it is the
    last layer with more than one place.

    Raises
    ------
    XpcnnError
        When the model is none from images to classes, or the layer is unknown or has no maps.
    """
    _check_model(model)
    spatial = [placed for placed in leaves(model.net, model.input_shape) if len(placed.output_shape) == 3]
    if layer is not None:
        if layer not in [placed.path for placed in spatial]:
            names = ", ".join(placed.path for placed in spatial[-20:])
            raise XpcnnError(f"there are no maps of a layer {layer!r}; this network's last ones are {names or 'none'}.")
        return layer
    wide = [placed for placed in spatial if prod(placed.output_shape[1:]) > 1]
    convolutions = [placed for placed in wide if placed.layer.kind == "conv"]
    if not wide:
        raise XpcnnError("this network has no layer whose output has more than one place, so nothing can be located.")
    size = (convolutions or wide)[-1].output_shape[1:]
    return _last_of_size(wide, size).path


def watch(model: Model, images: Any, classes: Any = None) -> Watched:
    """Run images forward, and backward from the logits of classes (by default the predicted ones); for few images.

    Returns
    -------
    Watched
        Every layer's output and gradient, on the model's device.
    """
    x = model.as_input(images)
    chosen = None if classes is None else _checked_classes(model, classes, x.shape[0])

    def upstream(y: Array) -> Array:
        """Return ones at the logits to explain."""
        rows = np.argmax(model.backend.to_numpy(y), axis=1) if chosen is None else chosen
        return model.backend.asarray(np.eye(y.shape[1])[rows], model.dtype)

    with model.backend.context():
        return watched.gradients(model.net, model.input_shape, model.parameters(), model.state(), x, upstream)


def class_map(model: Model, seen: Watched, layer: str) -> Host:
    """Return Grad-CAM's maps (N, H, W), float32 from 0 to 1 at the images' size, of what `watch` saw."""
    xp = model.backend.xp
    with model.backend.context():
        weights = xp.mean(seen.gradients[layer], axis=(2, 3), keepdims=True)
        summed = xp.sum(weights * seen.outputs[layer], axis=1)
    maps = np.maximum(_host(model, summed), 0)
    return _scaled(enlarged(maps, model.input_shape[1], model.input_shape[2]))


def enlarged(maps: Host, height: int, width: int) -> Host:
    """Return maps (..., H, W) interpolated bilinearly to another size; pixels are areas, and edges are continued."""
    return _weights(maps.shape[-2], height) @ maps @ _weights(maps.shape[-1], width).T


def draw_overlay(image: Any, heat: Any) -> bytes:
    """Return a PNG of an image under a heat map: cold places show it dimmed, hot ones glow.

    Parameters
    ----------
    image : array (C, H, W)
        uint8, C being 1 or 3; enlarged by a whole number so that its pixels are seen.
    heat : array (H, W)
        From 0 to 1, such as one of `grad_cam`'s.
    """
    from matplotlib import colormaps
    from PIL import Image

    image, heat = np.asarray(image), np.asarray(heat, dtype=np.float64)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != np.uint8 or heat.shape != image.shape[1:]:
        raise XpcnnError(
            f"an overlay needs a uint8 image (1 or 3, H, W) and a heat map (H, W), "
            f"not {image.dtype} {image.shape} and {heat.shape}."
        )
    times = -(-SIDE // min(heat.shape))
    pixels = np.moveaxis(np.broadcast_to(image, (3, *heat.shape)), 0, 2)
    under = DIMMED / 255.0 * np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)
    hot = np.clip(enlarged(heat, *under.shape[:2]), 0, 1)
    cover = COVER * np.sqrt(hot)[..., None]
    mixed = (1 - cover) * under + cover * colormaps[COLOURS](0.2 + 0.7 * hot)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray((mixed * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _runs(model: Model, images: Any, classes: Any) -> Iterator[Watched]:
    """Watch images in batches that bound the memory."""
    _check_model(model)
    images = model.backend.asarray(images)
    chosen = None if classes is None else _checked_classes(model, classes, images.shape[0])
    for rows in batches(images.shape[0], min(ONCE, model.images_at_once)):
        yield watch(model, images[rows, ...], None if chosen is None else chosen[rows])


def _check_model(model: Model) -> None:
    """Raise unless a model goes from images to classes."""
    if len(model.input_shape) != 3 or len(model.output_shape) != 1:
        raise XpcnnError(
            f"explaining needs a model from images (C, H, W) to classes, "
            f"not from {model.input_shape} to {model.output_shape}."
        )


def _checked_classes(model: Model, classes: Any, count: int) -> Host:
    """Return a class for each image, or raise."""
    (outputs,) = model.output_shape
    chosen = np.asarray(classes)
    if chosen.dtype.kind not in "iu" or chosen.shape not in ((), (count,)):
        raise XpcnnError(f"classes must be one whole number, or one for each of {count} images, not {classes!r}.")
    if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < outputs:
        raise XpcnnError(f"classes must lie from 0 to {outputs - 1}, not {classes!r}.")
    return np.broadcast_to(chosen, (count,))


def _last_of_size(placed: Sequence[Placed], size: tuple[int, ...]) -> Placed:
    """Return the last layer with an output of a size."""
    return [row for row in placed if row.output_shape[1:] == size][-1]


def _host(model: Model, array: Array) -> Host:
    """Return an array's values in float64 on the host, or raise if some are no numbers."""
    values = model.backend.to_numpy(array).astype(np.float64)
    if not np.isfinite(values).all():
        raise XpcnnError("the model's gradients are not numbers; its parameters are damaged.")
    return values


def _scaled(maps: Host) -> Host:
    """Divide each map by its largest value; maps of zeros stay."""
    largest = maps.max(axis=(1, 2), keepdims=True, initial=0.0)
    return (maps / np.where(largest > 0, largest, 1.0)).astype(np.float32)


def _weights(size: int, to: int) -> Host:
    """Return the matrix (to, size) that interpolates linearly along one axis."""
    place = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    below = np.minimum(place.astype(int), max(size - 2, 0))
    weights = np.zeros((to, size))
    weights[np.arange(to), below] = 1 - (place - below)
    weights[np.arange(to), np.minimum(below + 1, size - 1)] += place - below
    return weights
