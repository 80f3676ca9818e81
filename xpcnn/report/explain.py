"""Which kernel element meets which input element: the windows of a convolution or a max pooling, one by one.

Nothing here has a geometry of its own: the windows are those that the ops compute with, and the maxima are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from xpcnn import ops
from xpcnn.errors import XpcnnError
from xpcnn.kernels import Window
from xpcnn.ops.pool import pool_window
from xpcnn.ops.window import AXES, MODES, conv_window, ints, padding_pairs

Ints = tuple[int, ...]
Host = np.ndarray[Any, Any]

MOST = 1_000_000  # input elements, and meetings of a kernel element with an input element
MAX_POOLS = (ops.max_pool1d, ops.max_pool2d, ops.max_pool3d)


class Meeting(NamedTuple):
    """A kernel element and the input element that it meets."""

    element: Ints  # of the kernel
    place: Ints  # in the input, or outside it: in the padding
    inside: bool


@dataclass(frozen=True)
class Explanation:
    """The windows of one convolution or max pooling.

    Parameters
    ----------
    win : Window
        Where they lie.
    pairs : sequence of (before, after), or None
        The padding per axis; None where ``center`` fixes it.
    mode : {"cross-correlation", "convolution"}
        "convolution" flips the kernel.
    center : tuple of int, optional
        The kernel's central element.
    ceil_mode : bool
        Whether a last window that hangs over the edge is kept (pooling).
    values, maxima, indices : array, optional
        A max pooling's input (*size), output (*out) and each maximum's flat position in the input.
    """

    win: Window
    pairs: Sequence[tuple[int, int]] | None = None
    mode: str = MODES[0]
    center: Ints | None = None
    ceil_mode: bool = False
    values: Host | None = None
    maxima: Host | None = None
    indices: Host | None = None

    def outputs(self) -> Iterator[Ints]:
        """Yield every output element's index, in C order."""
        return product(*map(range, self.win.out))

    def meetings(self, output: Ints) -> list[Meeting]:
        """Return what meets for one output element, in the order of the image: for "convolution" the last first."""
        win = self.win
        start = tuple(o * s - b for o, s, b in zip(output, win.stride, win.before, strict=True))
        found = []
        for offset in win.offsets:
            place = tuple(p + k * d for p, k, d in zip(start, offset, win.dilation, strict=True))
            flipped = tuple(n - 1 - k for k, n in zip(offset, win.kernel, strict=True))
            inside = all(0 <= p < n for p, n in zip(place, win.size, strict=True))
            found.append(Meeting(flipped if self.mode == "convolution" else offset, place, inside))
        return found

    def maximum(self, output: Ints) -> tuple[float, Ints | None]:
        """Return a window's maximum and its place in the input; no place if the window misses the input."""
        assert self.maxima is not None
        assert self.indices is not None
        value = float(self.maxima[output])
        place = np.unravel_index(int(self.indices[output]), self.win.size) if value > -np.inf else None
        return value, None if place is None else tuple(map(int, place))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        win, pool = self.win, self.values is not None
        facts: dict[str, Any] = {"op": "max_pool" if pool else "conv", "input": win.size, "kernel": win.kernel}
        facts |= {"stride": win.stride, "dilation": win.dilation, "padding": self.pairs, "center": self.center}
        facts |= {"mode": self.mode, "output": win.out}
        if self.values is not None:
            facts |= {"ceil_mode": self.ceil_mode, "values": self.values.tolist()}
        facts["outputs"] = [self._output(output, pool) for output in self.outputs()]
        return facts

    def _output(self, output: Ints, pool: bool) -> dict[str, Any]:
        """Return one output element as JSON's types."""
        row: dict[str, Any] = {"output": output, "meetings": [m._asdict() for m in self.meetings(output)]}
        if pool:
            value, place = self.maximum(output)
            row |= {"maximum": None if place is None else value, "at": place}
        return row


def explain_conv(
    size: Sequence[int],
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mode: str = MODES[0],
    center: Any = None,
) -> Explanation:
    """Explain a convolution of one channel with one filter.

    Parameters
    ----------
    size : (L,), (H, W) or (D, H, W)
        Of the input.
    kernel : int or one per axis
        Size of the kernel.
    stride, padding, dilation, mode, center
        As in `xpcnn.ops.conv2d`.

    Raises
    ------
    XpcnnError
        When sizes or options do not fit together, or there is more to explain than anybody reads.
    """
    size = _checked(size)
    kernel = ints("kernel", kernel, len(size), 1)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "mode": mode, "center": center}
    win = _readable(conv_window(size, kernel, **options))
    return Explanation(win, **_placed(win, padding, center), mode=mode)


def explain_pool(
    size: Sequence[int],
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    mode: str = MODES[0],
    center: Any = None,
    values: Host | None = None,
) -> Explanation:
    """Explain a max pooling of one channel.

    Parameters
    ----------
    size, kernel
        As in `explain_conv`.
    stride, padding, dilation, ceil_mode, mode, center
        As in `xpcnn.ops.max_pool2d`.
    values : array (*size), optional
        The input; 0, 1, 2, ... by default.

    Raises
    ------
    XpcnnError
        As `explain_conv`.
    """
    size = _checked(size)
    win = _readable(pool_window(size, kernel, stride, padding, dilation, ceil_mode, mode, center))
    x = np.arange(prod(size)) if values is None else np.asarray(values)
    if x.size != prod(size):
        raise XpcnnError(f"an input of {'x'.join(map(str, size))} has {prod(size)} values, but {x.size} were given.")
    x = np.reshape(x, size).astype(np.float64)
    options = {"stride": win.stride, "padding": padding, "dilation": dilation, "mode": mode, "center": center}
    y, saved = MAX_POOLS[len(size) - 1](x[None, None], win.kernel, ceil_mode=ceil_mode, **options)
    shown = {"values": x, "maxima": y[0, 0], "indices": np.asarray(saved.indices)[0, 0]}
    return Explanation(win, **_placed(win, padding, center), mode=mode, ceil_mode=ceil_mode, **shown)


def _checked(size: Sequence[int]) -> Ints:
    """Return an input's size, or raise unless it has one to three axes and can be shown."""
    if len(size) not in AXES:
        raise XpcnnError(f"an input has 1, 2 or 3 axes, not {len(size)}: for example 9, 5x5 or 4x4x4.")
    size = ints("input", tuple(size), len(size), 1)
    if prod(size) > MOST:
        raise XpcnnError(f"the input has {prod(size):,} elements; at most {MOST:,} can be explained.")
    return size


def _readable(win: Window) -> Window:
    """Return windows, or raise if there are too many to list or they reach over too much padding."""
    if prod(win.out) * win.taps > MOST or prod(win.extent) > MOST:
        raise XpcnnError(
            f"{prod(win.out):,} windows of {win.taps:,} elements over {prod(win.extent):,} padded input elements are "
            f"too much to list (at most {MOST:,} of each); use a smaller input."
        )
    return win


def _placed(win: Window, padding: Any, center: Any) -> dict[str, Any]:
    """Return the padding in pairs, or the center that fixes it."""
    if center is not None:
        return {"pairs": None, "center": ints("center", center, len(win.size), 0)}
    return {"pairs": padding_pairs(padding, win.size, win.kernel, win.stride, win.dilation), "center": None}
