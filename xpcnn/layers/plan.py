"""How much memory a training step takes, and how many images at a time fit a limit.

What a network keeps for its backward is not guessed: its forward is run on two images and on three, and the arrays it
saves are counted, each once, however many layers share it. What is in use for a while is estimated from shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

from array_api_compat import array_namespace

from xpcnn import kernels
from xpcnn.backend import Array, Namespace
from xpcnn.errors import XpcnnError, whole
from xpcnn.kernels import threads
from xpcnn.layers.base import Arrays, Layer, Shape, leaves
from xpcnn.layers.conv import Conv1D, Conv2D
from xpcnn.layers.fused import ConvReLUPool, fuse
from xpcnn.layers.graph import Graph
from xpcnn.layers.norm import _Norm
from xpcnn.layers.sequential import Sequential
from xpcnn.optim import Optimizer
from xpcnn.random import Key

RUNTIME = 12_000_000  # bytes that code loaded at the first step and threads take
TEMPORARIES, NORM_TEMPORARIES = 2, 4  # arrays of a layer's input and output that are in use at once, backward
LOSS_TEMPORARIES = 8  # arrays like the network's output
UNITS = {"": 1, "b": 1} | {f"{k}b": 1000**n for n, k in enumerate("kmgt", 1)}
UNITS |= {f"{k}ib": 1024**n for n, k in enumerate("kmgt", 1)}


@dataclass(frozen=True)
class Plan:
    """What a training step takes in memory, in bytes, on top of the process, the data set and the batch itself.

    Attributes
    ----------
    batch_size : int
        Images in a step.
    tile : int
        Images that are computed at a time; their gradients are added up.
    parameters, optimizer : int
        The parameters (and running statistics) and the optimizer's state.
    gradients : int
        The parameters' gradients; with several tiles those of one, and their sum before and after it.
    kept : int
        What the layers keep of a tile's forward until its backward.
    working : int
        What is in use for a while: layers' temporary arrays, the new parameters and optimizer's state.
    max_memory : int or None
        The limit that the tile was chosen for.
    """

    batch_size: int
    tile: int
    parameters: int
    gradients: int
    optimizer: int
    kept: int
    working: int
    max_memory: int | None = None

    @property
    def tiles(self) -> int:
        """How many tiles a batch is cut into."""
        return ceil(self.batch_size / self.tile)

    @property
    def total(self) -> int:
        """All of it together: the most that a step takes at any moment."""
        return self.parameters + self.gradients + self.optimizer + self.kept + self.working

    def __str__(self) -> str:
        """Return it in words and MB."""
        names = ("parameters", "gradients", "optimizer", "kept", "working")
        parts = ", ".join(f"{name} {megabytes(asdict(self)[name])}" for name in names)
        cut = f"{self.tiles} tiles of up to {self.tile}" if self.tiles > 1 else "one tile"
        limit = "" if self.max_memory is None else f" of {megabytes(self.max_memory)} allowed"
        return f"a step of {self.batch_size} images in {cut} takes about {megabytes(self.total)}{limit}: {parts}"


@dataclass(frozen=True)
class Footprint:
    """What a network takes in memory, by image and in any case, in bytes."""

    parameters: int  # trained or not
    gradients: int
    optimizer: int
    kept: int  # for backward, by image
    fixed: int  # for backward, in any case
    temporaries: int  # by image, of the layer that has most
    blocks: tuple[int, ...]  # by image, of each kind of layer that works in blocks
    block_limit: int  # of each of them
    blocks_limit: int  # of all of them
    whole: str  # the layer that needs all images of a batch at once; "" if there is none

    def plan(self, batch_size: int, max_memory: int | str | None = None) -> Plan:
        """Return the plan with the fewest tiles that fits, or raise saying how much the smallest one takes."""
        batch_size, limit = whole("batch_size", batch_size, 1), memory_size(max_memory)
        plan = self._tiled(batch_size, 1, limit)
        if limit is None or plan.total <= limit:
            return plan
        if self.whole:
            raise XpcnnError(
                f"max_memory of {megabytes(limit)} is too small: {self.whole} needs the whole batch at once, and "
                f"{batch_size} images take {megabytes(plan.total)}; allow that or take a smaller batch size."
            )
        least = self._tiled(batch_size, batch_size, limit)
        if least.total > limit:
            raise XpcnnError(
                f"max_memory of {megabytes(limit)} is too small: even one image at a time takes "
                f"{megabytes(min(plan.total, least.total))}."
            )
        low, high = 1, batch_size  # of the number of tiles: too few, enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._tiled(batch_size, middle, limit).total <= limit else (middle, high)
        return self._tiled(batch_size, high, limit)

    def images_that_fit(self, limit: int) -> int:
        """Return how many images a step may have at once, 0 if not even one fits."""
        low, high = 0, 1 << 24
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._tiled(middle, 1, limit).total <= limit else (low, middle)
        return low

    def images_in_prediction(self, limit: int) -> int:
        """Return how many images at a time can be predicted, beside the parameters and the optimizer's state."""
        room = limit - RUNTIME - self.parameters - self.optimizer
        return max(1, room // (2 * self.temporaries + sum(self.blocks)))  # twice: the last batch is of another size

    def _tiled(self, batch_size: int, tiles: int, limit: int | None) -> Plan:
        """Return the plan with a number of tiles, as equal as can be."""
        tile = ceil(batch_size / tiles)
        kept = self.fixed + self.kept * tile
        blocks = min(self.blocks_limit, sum(min(self.block_limit, block * tile) for block in self.blocks))
        update = self.parameters + self.optimizer  # made new while the old are there
        working = RUNTIME + self.temporaries * tile + blocks + update  # memory once used stays at hand
        gradients = self.gradients * (1 if tile == batch_size else 3)
        return Plan(batch_size, tile, self.parameters, gradients, self.optimizer, kept, working, limit)


def footprint(net: Layer, params: Arrays, state: Arrays, optimizer: int, example: Array, xp: Namespace) -> Footprint:
    """Return what a network takes; ``example`` (3, *input_shape) is run through it, and its first two images."""
    input_shape = tuple(example.shape[1:])
    two, three = (_kept(net, params, state, example[:n, ...]) for n in (2, 3))
    itemsize = bytes_of(example) // prod(example.shape)
    steps = list(_steps(net, input_shape))
    temporaries = [_temporaries(layer) * (prod(before) + prod(after)) for layer, before, after in steps]
    temporaries.append(LOSS_TEMPORARIES * prod(net.output_shape(input_shape)))
    sizes = {prod(after) for _, _, after in steps}  # memory of each size stays at hand
    compiled = (Conv1D, Conv2D, ConvReLUPool) if kernels.of(xp).engine("pooled", example) else ()  # no columns
    columns = {step: _columns(*step) for step in steps if not isinstance(step[0], compiled)}
    packed = sum({_weights(layer, before) for layer, before, _ in steps if isinstance(layer, compiled)}) * itemsize
    blocks, all_blocks = _limits(xp)
    trained = sum(map(bytes_of, params.values()))
    return Footprint(
        parameters=trained + sum(map(bytes_of, state.values())),
        gradients=trained,
        optimizer=optimizer,
        kept=max(0, three - two),
        fixed=max(0, two - 2 * max(0, three - two)) + packed,
        temporaries=itemsize * (max(temporaries) + 2 * (sum(sizes) - max(sizes)) + _held(net, input_shape)),
        blocks=tuple(itemsize * count for counts in columns.values() for count in counts),
        block_limit=blocks,
        blocks_limit=all_blocks,
        whole=_needs_whole(net, input_shape),
    )


def optimizer_bytes(optimizer: Optimizer, params: Arrays) -> int:
    """Return the bytes of an optimizer's state, known from the state for one number of each parameter."""
    few = {path: array_namespace(p).reshape(p, (-1,))[:1] for path, p in params.items()}
    each = sum(map(bytes_of, few.values()))
    state = sum(map(bytes_of, arrays_in(optimizer.init(few))))
    return state * sum(map(bytes_of, params.values())) // max(1, each)


def arrays_in(saved: Any) -> Iterator[Array]:
    """Yield the arrays in what a forward saved: in tuples, lists, dicts and dataclasses."""
    if hasattr(saved, "shape") and hasattr(saved, "dtype"):
        yield saved
    elif isinstance(saved, Mapping):
        saved = list(saved.values())
    elif hasattr(saved, "__dataclass_fields__"):
        saved = [getattr(saved, name) for name in saved.__dataclass_fields__]
    if isinstance(saved, tuple | list):
        for part in saved:
            yield from arrays_in(part)


def memory_size(size: int | str | None) -> int | None:
    """Return a number of bytes from one or from a text such as ``300MB`` or ``2GiB``, or raise."""
    if size is None:
        return None
    says = f"max_memory must be a size above 0 such as 300MB, 2GiB or a number of bytes, not {str(size)[:40]!r}."
    if not isinstance(size, str):
        try:
            return whole("max_memory", size, 1)
        except XpcnnError:
            raise XpcnnError(says) from None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([a-z]*)", size.strip().lower())
    if match is None or match[2] not in UNITS or ("." in match[1] and UNITS[match[2]] == 1):
        raise XpcnnError(says)
    count = int(match[1]) * UNITS[match[2]] if "." not in match[1] else int(float(match[1]) * UNITS[match[2]])
    if count < 1:
        raise XpcnnError(says)
    return count


def megabytes(size: int) -> str:
    """Return bytes in MB, rounded up so that the figure is enough."""
    return f"{ceil(size / 1e5) / 10:.1f}MB"


def _kept(net: Layer, params: Arrays, state: Arrays, x: Array) -> int:
    """Return the bytes of the arrays that a batch's forward keeps, other than the parameters."""
    _, saved, _ = net.forward(params, state, x, train=True, key=Key(0))
    return _counted(arrays_in(saved), {id(_owner(array)) for array in (*params.values(), *state.values())})


def _counted(arrays: Iterable[Array], without: set[int]) -> int:
    """Return the bytes of arrays, those that share memory once."""
    sizes: dict[int, int] = {}
    for array in arrays:
        owner = _owner(array)
        if id(owner) not in without:
            sizes[id(owner)] = max(sizes.get(id(owner), 0), min(bytes_of(array), bytes_of(owner)))
    return sum(sizes.values())


def _owner(array: Array) -> Array:
    """Return the array whose memory this one looks at."""
    while hasattr(getattr(array, "base", None), "dtype"):
        array = array.base
    return array


def bytes_of(array: Array) -> int:
    """Return the bytes that an array's elements take."""
    bits = re.search(r"(\d+)$", str(array.dtype))
    return prod(array.shape) * (int(bits[1]) // 8 if bits else 1)


def _steps(layer: Layer, input_shape: Shape) -> Iterator[tuple[Layer, Shape, Shape]]:
    """Yield the layers as they run, some of them fused, with their input and output shapes."""
    if isinstance(layer, Sequential):
        for _, step in fuse(layer.layers):
            yield from _steps(step, input_shape)
            input_shape = step.output_shape(input_shape)
        return
    if isinstance(layer, Graph):
        for (step, before, after), _ in _placed(layer, input_shape):
            yield from _steps(step, before[0]) if len(before) == 1 else [(step, (sum(map(prod, before)),), after)]
        return
    for child in layer.children(input_shape):
        yield from _steps(child.layer, child.input_shape)
    yield layer, input_shape, layer.output_shape(input_shape)


def _placed(graph: Graph, input_shape: Shape) -> Iterator[tuple[tuple[Layer, list[Shape], Shape], list[Shape]]]:
    """Yield a graph's steps with their shapes, and the shapes of what is kept meanwhile for steps to come."""
    shapes = [input_shape]
    alive = {0}
    for (_, layer), sources, done in graph.laid(fuse):
        before = [shapes[source] for source in sources]
        after = layer.output_shape(before[0] if len(before) == 1 else tuple(before))  # type: ignore[arg-type]
        yield (layer, before, after), [shapes[number] for number in alive - set(sources)]
        alive = (alive - set(done)) | {len(shapes)}
        shapes.append(after)


def _held(layer: Layer, input_shape: Shape) -> int:
    """Return the most numbers that an image's values take while they wait in a graph for other steps."""
    inside = max((_held(child.layer, child.input_shape) for child in layer.children(input_shape)), default=0)
    if not isinstance(layer, Graph):
        return inside
    return inside + max(sum(map(prod, waiting)) for _, waiting in _placed(layer, input_shape))


def _temporaries(layer: Layer) -> int:
    """Return how many arrays of its input and its output a layer uses at once."""
    return NORM_TEMPORARIES if isinstance(layer, _Norm) else TEMPORARIES


def _columns(layer: Layer, before: Shape, after: Shape) -> tuple[int, ...]:
    """Return how many numbers a layer lays out in columns for an image, once for each size of block."""
    if isinstance(layer, ConvReLUPool):  # the patches of pooled pixels, and the products with every place in a window
        unpooled = layer.conv.output_shape(before)
        patch = layer.conv.cost(before).columns // prod(unpooled[1:]) * 3 // 2
        count = (patch + prod(unpooled) // prod(after[1:])) * prod(after[1:])
        return count, count
    count = 0 if layer.children(before) else layer.cost(before).columns
    return (count,) if count else ()


def _weights(layer: Layer, before: Shape) -> int:
    """Return how many numbers a convolution's weight has, which its kernel lays out anew."""
    return (layer.conv if isinstance(layer, ConvReLUPool) else layer).parameter_count(before)


def _limits(xp: Namespace) -> tuple[int, int]:
    """Return the most bytes that one kind of layer's blocks take, and all kinds together."""
    k = kernels.of(xp)
    size = k.BLOCK_BYTES
    return size * threads.thread_count(), 1 << 28


def _needs_whole(net: Layer, input_shape: Shape) -> str:
    """Name the first layer whose result for an image depends on the others of its batch: those with a state do."""
    for placed in leaves(net, input_shape):
        if placed.layer.state(placed.input_shape) or placed.layer.couples_batch:
            return f"layer {placed.path} ({type(placed.layer).__name__})"
    return ""
