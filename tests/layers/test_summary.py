"""The summary's numbers: counted by hand for one network, and receptive fields by moving single rows of pixels."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models

SHAPE = (3, 12, 10)
BODY = la.Sequential(la.Conv2D(8, 3, padding=1, groups=2, bias=False), la.BatchNorm())
NET = la.Sequential(
    la.Conv2D(8, 3, padding=1), la.ReLU(), la.MaxPool2D(2), ("block", la.Residual(BODY)),
    ("up", la.ConvTranspose2D(4, 2, stride=2)), la.Affine(5), input_shape=SHAPE,
)  # fmt: skip
BY_HAND = """
input     (3, 12, 10)
conv1     Conv2D  (8, 12, 10)  224  25,920  3×3  13.0 MB
relu1     ReLU  (8, 12, 10)  0  0  3×3
pool1     MaxPool2D  (8, 6, 5)  0  0  4×4
block     Residual  (8, 6, 5)  304  8,640  8×8  8.6 MB
  body    Sequential  (8, 6, 5)  304  8,640  8×8  8.6 MB
    conv1  Conv2D  (8, 6, 5)  288  8,640  8×8  8.6 MB
    norm1  BatchNorm  (8, 6, 5)  16  0  8×8
  shortcut  Identity  (8, 6, 5)  0  0  4×4
up        ConvTranspose2D  (4, 12, 10)  132  3,840  8×8  1.9 MB
affine1   Affine  (5,)  2,405  2,400  all
total     3,065  40,800  13.0 MB
"""


def rows_of(text):
    """Return each line's indentation and cells, without rules."""
    lines = [line for line in text.strip("\n").split("\n") if set(line) != {"-"}]
    return [(len(line) - len(line.lstrip()), re.split(r"\s{2,}", line.strip())) for line in lines]


def test_a_network_counted_by_hand():
    """Columns of conv1: 3·9 taps of 12·10 outputs of 1000 images in 4 bytes, 12.96 MB."""
    found = rows_of(xc.Model(NET, "cpu").summary(batch_size=1000))
    headings = ["layer", "type", "output shape", "parameters", "multiply-adds", "receptive field", "im2col memory"]
    assert found[0] == (0, headings)
    assert found[1:] == rows_of(BY_HAND)


def test_memory_grows_with_batch_and_itemsize():
    def memory(dtype, batch):
        return rows_of(xc.Model(NET, "cpu", dtype=dtype).summary(batch))[-1][1][-1]

    assert memory("float32", 100) == "1.3 MB"
    assert memory("float64", 1000) == "25.9 MB"
    assert memory("float64", 100_000) == "2,592.0 MB"
    for size in (0, 1.5, "many"):
        with pytest.raises(xc.XpcnnError, match="batch_size"):
            xc.Model(NET, "cpu").summary(size)


def test_columns_are_words_to_the_left_and_numbers_to_the_right():
    head, rule, *lines = xc.Model(NET, "cpu").summary().split("\n")
    assert set(rule) == {"-"} == set(lines[-2])
    assert not any(line != line.rstrip() for line in (head, *lines))
    assert max(map(len, (head, *lines))) == len(rule)
    for word in ("type", "output shape"):
        start = head.index(word)
        assert all(line[start - 1 : start] in ("", " ") for line in lines if set(line) != {"-"})
    for heading, cell in (("parameters", "2,405"), ("multiply-adds", "2,400"), ("receptive field", "all")):
        end = head.index(heading) + len(heading)
        line = next(line for line in lines if line.startswith("affine1"))
        assert line[:end].endswith(" " + cell)


def test_a_single_layer_is_a_network_too():
    text = xc.Model(la.Conv2D(2, 3), "cpu", input_shape=(1, 5, 6)).summary()
    assert rows_of(text)[2] == (0, ["net", "Conv2D", "(2, 3, 4)", "20", "216", "3×3", "0.0 MB"])
    vectors = xc.Model(la.Sequential(la.Affine(3), la.ReLU()), "cpu", input_shape=(4,)).summary()
    assert [cells[0] for _, cells in rows_of(vectors)] == ["layer", "input", "affine1", "relu1", "total"]


@pytest.mark.parametrize("name", models.__all__)
def test_the_total_is_the_sum_of_the_leaves(name):
    net = getattr(models, name)((3, 32, 32), 10)
    placed = list(la.leaves(net, (3, 32, 32)))
    total = rows_of(xc.layers.summary.summarise(net, (3, 32, 32), 100, 4))[-1][1]
    assert total[1] == f"{sum(p.layer.parameter_count(p.input_shape) for p in placed):,}"
    assert total[2] == f"{sum(p.layer.cost(p.input_shape).multiply_adds for p in placed):,}"
    assert total[3] == f"{max(p.layer.cost(p.input_shape).columns for p in placed) * 400 / 1e6:,.1f} MB"


C, P = la.Conv2D, la.MaxPool2D
WIDE = la.Parallel([C(1, 1), C(1, 3, padding=1), C(1, 3, padding=2, dilation=2)])
GRAPH = la.Graph([
    ("down", P(2), "input"), ("one", C(1, 1), "down"), ("three", C(1, 3, padding=1), "one"),
    ("long", C(1, 3), "three"), ("short", C(1, 3), "one"), ("both", la.Join("multiply"), ("long", "short")),
    ("all", la.Join("concat"), ("both", "long")), ("end", la.ReLU(), "all"),
])  # fmt: skip
STACKS = {
    "conv": (C(1, (3, 4)), (3, 4), (1, 1)),
    "dilated": (C(1, 3, dilation=(2, 3)), (5, 7), (1, 1)),
    "strided": (C(1, 3, stride=2), (3, 3), (2, 2)),
    "convs": (la.Sequential(C(2, 3), la.ReLU(), C(2, 3), la.BatchNorm(), C(1, 3)), (7, 7), (1, 1)),
    "conv-pool-conv-pool": (la.Sequential(C(1, 5), P(2), C(1, 5), P(2)), (16, 16), (4, 4)),
    "overlapping-pool": (la.Sequential(C(1, 3, stride=2, padding=1), P(3, stride=2, padding=1), C(1, 3)), (15, 15), (4, 4)),
    "dilated-after-stride": (la.Sequential(C(1, 2, stride=(2, 1)), C(1, 3, dilation=(1, 3)), la.AvgPool2D(2)), (8, 9), (4, 2)),
    "centered": (la.Sequential(C(1, 4, center=(0, 3)), P(2, center=(1, 0), stride=3)), (5, 5), (3, 3)),
    "padded": (la.Sequential(C(1, 3, padding="same", stride=2), C(1, (1, 5), padding=((0, 0), (4, 0)))), (3, 11), (2, 2)),
    "strides-alone": (la.Sequential(C(1, 3), la.AvgPool2D(1, stride=3), C(1, 2)), (6, 6), (3, 3)),
    "residual": (la.Sequential(C(1, 3), la.Residual(la.Sequential(C(1, 3, padding=1), C(1, 3, padding=1)))), (7, 7), (1, 1)),
    "projection": (la.Sequential(la.Residual(C(1, 3, stride=2, padding=1), C(1, 1, stride=2)), C(1, 3)), (7, 7), (2, 2)),
    "parallel": (la.Sequential(P(2), WIDE, C(1, 3)), (14, 14), (2, 2)),
    "crossed": (la.Parallel([C(1, (1, 5), padding=(0, 2)), C(1, (3, 1), padding=(1, 0))]), (3, 5), (1, 1)),
    "crossed-added": (la.Sequential(la.Parallel([C(1, (7, 1), padding=(3, 0)), C(1, (1, 5), padding=(0, 2))], "add"), C(1, 2)), (8, 6), (1, 1)),
    "graph": (GRAPH, (10, 10), (2, 2)),
    "graph-crossed": (la.Graph([("a", C(1, (1, 5), padding=(0, 2)), "input"), ("b", C(1, (3, 1), padding=(1, 0)), "input"), ("c", la.Join("add"), ("a", "b"))]), (3, 5), (1, 1)),
    "upsampled": (la.Sequential(la.Upsample2D((2, 1)), C(1, (1, 3))), (1, 3), (0.5, 1)),
    "upsampled-padded": (la.Sequential(C(1, 3, stride=2), la.Upsample2D(2), la.Pad2D(1)), (3, 3), (1, 1)),
    "up": (la.Sequential(la.ConvTranspose2D(1, 4, stride=2), C(1, 3)), (3, 3), (0.5, 0.5)),
    "down-up": (la.Sequential(C(1, 3, stride=2), la.ConvTranspose2D(1, 2, stride=2)), (3, 3), (1, 1)),
    "adaptive": (la.AdaptiveAvgPool2D((6, 8)), (8, 6), (8, 6)),
    "adaptive-uneven": (la.AdaptiveAvgPool2D((10, 7)), (6, 8), (4.8, 48 / 7)),
    "adaptive-kept": (la.Sequential(C(1, 3, padding=1), la.AdaptiveAvgPool2D((None, 12))), (3, 6), (1, 4)),
}  # fmt: skip
PIXELS = 48


def seen(mirror, net, axis):
    """Return, for every output along an axis, which rows of the input it depends on: (outputs, rows).

    All weights are positive and every layer monotone, so that a larger row makes every output larger that sees it.
    """
    torch = pytest.importorskip("torch")
    shape = (1, PIXELS, 24) if axis == 0 else (1, 24, PIXELS)

    def ones(described):
        values = {path: float(not path.endswith(("mean", "beta", "bias"))) for path in described}
        return {path: torch.full(p.shape, values[path], dtype=torch.float64) for path, p in described.items()}

    images = torch.ones((PIXELS + 1, *shape), dtype=torch.float64)
    for row in range(PIXELS):
        images.select(2 + axis, row)[row] = 1000.0
    y = mirror.run(net, ones(net.parameters(shape)), ones(net.state(shape)), images)
    changed = (y[:-1] - y[-1:]).abs().amax(dim=(1, 3 - axis)) > 1e-9  # (rows, outputs)
    return changed.numpy().T


@pytest.mark.parametrize("name", STACKS)
def test_receptive_fields_are_what_outputs_depend_on(name):
    mirror = pytest.importorskip("torch_mirror")
    net, span, step = STACKS[name]
    cost = net.cost((1, PIXELS, PIXELS))
    for axis in (0, 1):
        patches = [np.flatnonzero(rows) for rows in seen(mirror, net, axis)]
        ends = [(patch.min(), patch.max()) for patch in patches if patch.size]
        widest = max(last - first + 1 for first, last in ends)
        assert span[axis] == widest, "the table of expectations is wrong"
        inside = [first for first, last in ends if first > 0 and last < PIXELS - 1]
        moved = [b - a for a, b in pairwise(inside)]
        assert step[axis] == pytest.approx(np.mean(moved), abs=1.5 / len(moved))
    assert tuple(cost.span) == span
    assert cost.step == pytest.approx(step)
    text = xc.layers.summary.summarise(la.Sequential(("whole", net)), (1, PIXELS, PIXELS), 1, 4)
    assert "×".join(map(str, span)) in next(cells for _, cells in rows_of(text) if cells[0] == "whole")


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (la.GlobalAvgPool(), "all"),
        (la.Sequential(la.Conv2D(1, 3), la.Affine(2), la.ReLU()), "all"),
        (la.Parallel([la.Affine(3), la.GlobalMaxPool()]), "all"),
        (la.Residual(la.Conv2D(1, 9, padding=4, dilation=1)), "7×6"),  # no larger than the image
        (la.Sequential(la.ConvTranspose2D(1, 2, stride=2), la.Conv2D(1, 2)), "2×2"),  # one or two of them
        (la.Sequential(), "1×1"),
        (la.Sequential(la.ReLU(), la.BatchNorm(), la.PadChannels(3)), "1×1"),
    ],
)
def test_fields_end_with_the_image(net, says):
    text = xc.layers.summary.summarise(la.Sequential(("whole", net)), (1, 7, 6), 1, 4)
    assert says in next(cells for _, cells in rows_of(text) if cells[0] == "whole")


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds", "columns"),
    [
        (la.Conv1D(6, 3, stride=2, groups=2), (4, 9), 6 * 2 * 3 * 4, 4 * 3 * 4),
        (la.Conv2D(6, (3, 2), padding=1), (4, 5, 5), 6 * 4 * 6 * 5 * 6, 4 * 6 * 5 * 6),
        (la.Conv2D(4, 3, groups=4), (4, 5, 5), 4 * 9 * 9, 4 * 9 * 9),
        (la.Conv3D(2, 2), (3, 4, 4, 4), 2 * 3 * 8 * 27, 3 * 8 * 27),
        (la.ConvTranspose2D(6, 3, stride=2, groups=2), (4, 5, 4), 4 * 3 * 9 * 20, 6 * 9 * 20),
        (la.Affine(7), (4, 5), 140, 0),
        (la.MaxPool2D(3), (4, 9, 9), 0, 0),
        (la.BatchNorm(), (4, 9, 9), 0, 0),
        (la.Parallel([la.Conv2D(2, 1), la.Conv2D(3, 3, padding=1)]), (4, 5, 5), (2 * 4 + 3 * 4 * 9) * 25, 4 * 9 * 25),
    ],
)
def test_costs_are_those_of_the_definition(layer, shape, multiply_adds, columns):
    cost = layer.cost(shape)
    assert (cost.multiply_adds, cost.columns) == (multiply_adds, columns)
