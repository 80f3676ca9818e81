"""The geometry of sliding windows in N dimensions: plain integers, no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Where the windows of a convolution or pooling lie, one integer per spatial axis in each field.

    Output ``o`` with kernel element ``k`` looks at input ``o * stride + k * dilation - before``; positions outside
    the input are padding. The padding after the input follows from ``out``.
    """

    size: Ints  # of the input, unpadded
    kernel: Ints
    stride: Ints
    dilation: Ints
    before: Ints  # padding before the input
    out: Ints  # number of windows

    def __hash__(self) -> int:
        """Return what is found once: windows are keys of many caches."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.size, self.kernel, self.stride, self.dilation, self.before, self.out))

    @cached_property
    def extent(self) -> Ints:
        """Length of the padded input that the windows cover."""
        return tuple((o - 1) * s + span for o, s, span in zip(self.out, self.stride, self.span, strict=True))

    @cached_property
    def span(self) -> Ints:
        """Length of a dilated kernel."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @cached_property
    def taps(self) -> int:
        """Number of kernel elements."""
        return prod(self.kernel)

    @cached_property
    def offsets(self) -> tuple[Ints, ...]:
        """Every kernel element's index, in C order."""
        return tuple(product(*map(range, self.kernel)))

    @cached_property
    def slices(self) -> tuple[tuple[slice, ...], ...]:
        """For every kernel element, the strided slice of the padded input that it meets."""
        return tuple(
            tuple(
                slice(k * d, k * d + (o - 1) * s + 1, s)
                for k, d, o, s in zip(offset, self.dilation, self.out, self.stride, strict=True)
            )
            for offset in self.offsets
        )

    @cached_property
    def is_padded(self) -> bool:
        """Whether any window reaches outside the input."""
        return any(self.before) or any(e > n for e, n in zip(self.extent, self.size, strict=True))

    @cached_property
    def inside(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of the padded input that is input: its slice of the padded array and of the input."""
        lengths = [max(0, min(n, e - b)) for n, e, b in zip(self.size, self.extent, self.before, strict=True)]
        padded = tuple(slice(b, b + m) for b, m in zip(self.before, lengths, strict=True))
        return padded, tuple(slice(0, m) for m in lengths)

    def as_three_axes(self) -> Ints:
        """Return size, kernel, stride, dilation, before and out of three axes each: missing ones come first."""
        missing = 3 - len(self.size)
        fields = (self.size, self.kernel, self.stride, self.dilation, self.before, self.out)
        fillers = (1, 1, 1, 1, 0, 1)
        return tuple(n for values, filler in zip(fields, fillers, strict=True) for n in (filler,) * missing + values)
