"""The order of a network's rows of features where images are flattened as (H, W, C), and not as (C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from xpcnn.errors import XpcnnError
from xpcnn.layers.affine import Affine, Reshape
from xpcnn.layers.arithmetic import Join
from xpcnn.layers.base import Layer, Placed, Shape
from xpcnn.layers.graph import Graph
from xpcnn.layers.norm import GroupNorm
from xpcnn.layers.parallel import Parallel
from xpcnn.layers.sequential import Sequential

Order = np.ndarray[Any, Any] | None  # where each feature is elsewhere; None: in the same place


def flattened(shape: Shape, order: Order = None) -> Order:
    """Return the order of an example's features when its image is flattened; rows stay in their own."""
    if len(shape) < 2 or prod(shape[1:]) == 1 or shape[0] == 1:
        return order
    return np.moveaxis(np.arange(prod(shape)).reshape(*shape[1:], shape[0]), -1, 0).reshape(-1)


def row_orders(net: Layer, input_shape: Shape) -> dict[str, Order]:
    """Return by path the order of the features that each layer is given.

    Raises
    ------
    XpcnnError
        Where a layer makes an image of a row, or adds rows of both orders: that is another network elsewhere.
    """
    found: dict[str, Order] = {}
    _follow(Placed("", net, input_shape, net.output_shape(input_shape)), "", None, found)
    return found


def _follow(placed: Placed, path: str, order: Order, found: dict[str, Order]) -> Order:
    """Note the order at a layer's input, and at those inside it; return that at its output."""
    layer, inside = placed.layer, placed.layer.children(placed.input_shape)
    found[path] = order
    if not inside:
        return _after(placed, path, order)

    def follow(child: Placed, order: Order) -> Order:
        return _follow(child, f"{path}/{child.path}" if path else child.path, order, found)

    if isinstance(layer, Sequential):
        for child in inside:
            order = follow(child, order)
        return order
    if not isinstance(layer, Graph):
        orders = [follow(child, order) for child in inside]
        joins = isinstance(layer, Parallel) and layer.joins()
        return _merged(path, orders, [child.output_shape for child in inside], joins=joins)
    orders_of, shapes_of = {"input": order}, {"input": placed.input_shape}
    for (name, node, sources), child in zip(layer.nodes, inside, strict=True):
        orders, shapes = [orders_of[source] for source in sources], [shapes_of[source] for source in sources]
        joins = isinstance(node, Join) and node.how == "concat"
        orders_of[name] = follow(child, _merged(name, orders, shapes, joins=joins))
        shapes_of[name] = child.output_shape
    return orders_of[layer.output]


def _after(placed: Placed, path: str, order: Order) -> Order:
    """Return the order of the features that a layer without others inside gives out."""
    shape, out = placed.input_shape, placed.output_shape
    if isinstance(placed.layer, Affine):
        return None
    is_parted = order is not None and isinstance(placed.layer, GroupNorm) and 1 < placed.layer.groups < shape[0]
    if (out == shape and not is_parted) or isinstance(placed.layer, Join):
        return order
    if len(out) == 1 and prod(out) == prod(shape) and not is_parted:
        return flattened(shape, order)
    becomes_image = len(out) > 1 and (len(shape) == 1 or isinstance(placed.layer, Reshape))
    if order is not None or (becomes_image and prod(out) > max(out)):
        raise XpcnnError(
            f"layer {path} makes {out} of {shape}, which orders numbers otherwise where images are (H, W, C): "
            "weights with layout='keras' cannot be taken over into this network."
        )
    return None


def _merged(path: str, orders: Sequence[Order], shapes: Sequence[Shape], *, joins: bool) -> Order:
    """Return the order of rows that are joined, or added to each other."""
    if all(order is None for order in orders):
        return None
    each = [np.arange(shape[0]) if order is None else order for order, shape in zip(orders, shapes, strict=True)]
    if joins:
        starts = np.cumsum([0, *(len(order) for order in each[:-1])])
        return np.concatenate([order + start for order, start in zip(each, starts, strict=True)])
    if any(not np.array_equal(order, each[0]) for order in each):
        raise XpcnnError(
            f"{path or 'the network'} adds features of flattened images to others, which are not in the same order "
            "where images are (H, W, C): weights with layout='keras' cannot be taken over into this network."
        )
    return each[0]
