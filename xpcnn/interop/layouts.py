"""What a network's arrays are called and how they lie in other frameworks, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xpcnn.interop.flattening import flattened, row_orders
from xpcnn.layers.affine import Affine
from xpcnn.layers.base import Layer, Placed, Shape, leaves
from xpcnn.layers.conv import _Conv, _Convolution
from xpcnn.layers.graph import Graph
from xpcnn.layers.norm import LayerNorm, _Norm
from xpcnn.layers.sequential import Sequential
from xpcnn.ops._check import axes_of

Host = np.ndarray[Any, Any]
Convert = Callable[[Host], Host]

LAYOUTS = ("xpcnn", "pytorch", "keras")
NORM = {  # what normalising layers call their arrays
    "pytorch": {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"},
    "keras": {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "var": "moving_variance"},
}


class Wanted(NamedTuple):
    """An array of the network, and how to make it of one that lies in one of these shapes there."""

    path: str
    shape: Shape
    ways: dict[Shape, Convert]
    is_state: bool


class Place(NamedTuple):
    """A layer of the network, with its arrays by what they are called there."""

    path: str
    arrays: dict[str, Wanted]


def places(net: Layer, input_shape: Shape, layout: str) -> list[Place]:
    """Return the layers that have arrays, in the order of the network."""
    orders = row_orders(net, input_shape) if layout == "keras" else {}
    alone = not net.children(input_shape)
    found = []
    for placed in leaves(net, input_shape):
        path = "" if alone else placed.path
        arrays = dict(_arrays(placed, layout, orders.get(path), f"{path}/" if path else ""))
        if arrays:
            found.append(Place(path, arrays))
    return found


def in_sequence(net: Layer, input_shape: Shape, first: str, second: str) -> bool:
    """Whether the network gives what one layer makes of an image, by path, to the other sooner or later."""
    placed = Placed("", net, input_shape, input_shape)
    for a, b in zip(first.split("/"), second.split("/"), strict=False):
        if a != b:
            layer = placed.layer
            return isinstance(layer, Sequential) or (isinstance(layer, Graph) and _reaches(layer, a, b))
        placed = next(child for child in placed.layer.children(placed.input_shape) if child.path == a)
    return False


def _reaches(graph: Graph, first: str, second: str) -> bool:
    """Whether a graph's node is among those that another one's inputs are made of."""
    needed = {second}
    for name, _, sources in reversed(graph.nodes):
        needed |= set(sources) if name in needed else set()
    return first in needed


def _arrays(placed: Placed, layout: str, order: Host | None, prefix: str) -> list[tuple[str, Wanted]]:
    """Return a layer's arrays by what they are called there."""
    layer = placed.layer
    state = layer.state(placed.input_shape)
    found = []
    for name, described in (layer.parameters(placed.input_shape) | state).items():
        there = name
        ways: dict[Shape, Convert] = {described.shape: _same}
        if isinstance(layer, _Norm) and layout in NORM:
            there = NORM[layout][name]
        if layout == "keras" and name == "weight" and isinstance(layer, Affine | _Convolution):
            there = "kernel"
        if layout == "pytorch" and name == "weight" and isinstance(layer, Affine):
            ways = {described.shape[::-1]: _transposed}
        if layout == "keras":
            ways = _keras_ways(layer, placed.input_shape, name, described.shape, order)
        found.append((there, Wanted(prefix + name, described.shape, ways, name in state)))
    return found


def _keras_ways(layer: Layer, input_shape: Shape, name: str, shape: Shape, order: Host | None) -> dict[Shape, Convert]:
    """Return how an array lies in Keras, whose images are (H, W, C)."""
    if isinstance(layer, _Convolution) and name == "weight":
        ways: dict[Shape, Convert] = {(*shape[2:], shape[1], shape[0]): _kernel}
        if isinstance(layer, _Conv) and layer.groups == input_shape[0] > 1:  # as DepthwiseConv2D has it
            channels = input_shape[0]
            ways[(*shape[2:], channels, shape[0] // channels)] = partial(_depthwise, shape=shape)
        return ways
    if isinstance(layer, Affine):  # whose outputs, and so its bias, lie as here
        rows = flattened(input_shape, order) if name == "weight" else None
        return {shape: _same if rows is None else partial(_taken, order=rows)}
    axes = layer.axes if isinstance(layer, LayerNorm) else None
    if axes is not None and 1 not in axes_of("axes", axes, len(input_shape) + 1):  # no channels, which lie last there
        return {shape: _same}
    if isinstance(layer, _Norm) and len(shape) > 1 and shape[0] == input_shape[0]:  # of LayerNorm over whole images
        return {(*shape[1:], shape[0]): partial(np.moveaxis, source=-1, destination=0)}
    if order is not None and shape == (len(order),):
        return {shape: partial(_taken, order=order)}
    return {shape: _same}


def _same(array: Host) -> Host:
    """Return the array."""
    return array


def _transposed(array: Host) -> Host:
    """(out, in) -> (in, out)."""
    return array.T


def _kernel(array: Host) -> Host:
    """(KH, KW, C, F) -> (F, C, KH, KW); of a transposed convolution (KH, KW, F, C) -> (C, F, KH, KW)."""
    return np.moveaxis(array, (-1, -2), (0, 1))


def _depthwise(array: Host, shape: Shape) -> Host:
    """(KH, KW, C, M) -> (C·M, 1, KH, KW): the M filters of a channel come one after another."""
    return np.moveaxis(array, (-2, -1), (0, 1)).reshape(shape)


def _taken(array: Host, order: Host) -> Host:
    """Return the rows in another order."""
    return array[order]
