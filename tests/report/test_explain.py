"""What an explanation prints is what the ops compute: every printed pair, size and maximum is checked against them."""

from __future__ import annotations

import json
import math
import re
from itertools import product

import numpy as np
import oracles
import pytest

import xpcnn as xc
from xpcnn import ops
from xpcnn.report.explain import explain_conv, explain_pool
from xpcnn.report.explain_text import text_lines

CONVS = (ops.conv1d, ops.conv2d, ops.conv3d)
FLIP = {"mode": "convolution"}
CONV_CASES = [
    ((9,), (3,), {}),
    ((9,), (3,), {"stride": 2, "padding": "same"}),
    ((8,), (4,), {"padding": "same", **FLIP}),
    ((7,), (3,), {"stride": 3, "padding": ((1, 2),), "dilation": 2}),
    ((5,), (4,), {"center": 3, "stride": 2}),
    ((5,), (4,), {"center": 0, **FLIP}),
    ((6,), (3,), {"center": 2, "dilation": 2, **FLIP}),
    ((2,), (2,), {"center": 1, "stride": 3, "dilation": 4}),  # the second window lies around the input
    ((5, 5), (3, 3), {"stride": 2, "center": (1, 1), **FLIP}),
    ((5, 5), (3, 3), {"stride": 2, "center": (1, 1)}),
    ((4, 6), (2, 3), {"center": (0, 2), "stride": (1, 2), **FLIP}),
    ((4, 6), (2, 3), {"stride": (3, 1), "padding": ((0, 1), (2, 0)), **FLIP}),
    ((5, 4), (3, 2), {"dilation": (2, 1), "padding": 1}),
    ((3, 4, 2), (2, 2, 1), {"stride": (1, 2, 1), "padding": (1, 0, 0), **FLIP}),
    ((3, 3, 3), (2, 2, 2), {"center": (1, 0, 1)}),
]
POOL_CASES = [
    ((9,), 3, {}),
    ((7,), 3, {"stride": 2, "padding": 1, "ceil_mode": True}),
    ((4, 4), 2, {}),
    ((5, 5), 3, {"stride": 2, "padding": 1}),
    ((5, 6), (2, 3), {"stride": (2, 1), "padding": "same"}),
    ((5, 5), 2, {"ceil_mode": True}),
    ((2, 3), 2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    ((6, 5), 2, {"dilation": 3, "stride": 1}),
    ((5, 5), 3, {"stride": 2, "center": (1, 1)}),
    ((5, 5), 3, {"center": (0, 2), **FLIP}),
    ((3, 3, 4), 2, {"stride": 1}),
]


def numbers(text):
    return tuple(int(number) for number in text.split(","))


def heading_and_body(told):
    heading, _, body = "\n".join(text_lines(told)).partition("\ny[")
    return heading, "y[" + body


def printed_terms(told):
    """Yield (output, term) for every term that the text prints."""
    _, body = heading_and_body(told)
    for block in re.split(r"^(?=y\[)", body, flags=re.MULTILINE)[1:]:
        output = numbers(re.match(r"y\[([\d,]+)\]", block)[1])
        for term in re.findall(r"w\[[\d,]+\]\*(?:x\[[\d,]+\]|pad)|x\[[\d,]+\]=\S+|\bpad\b", block):
            yield output, term


def one_hots(shape):
    """Return an image (N, 1, *shape) for every element, with a one there alone."""
    return np.eye(math.prod(shape)).reshape(-1, 1, *shape)


@pytest.mark.parametrize(("size", "kernel", "options"), CONV_CASES)
def test_every_printed_pair_of_a_convolution_is_what_the_op_multiplies(size, kernel, options):
    """The op, given one-hot images and one-hot kernels, is 1 exactly where the text prints that the two meet."""
    y, _ = CONVS[len(size) - 1](one_hots(size), one_hots(kernel), **options)  # (image, kernel element, *out)
    told = explain_conv(size, kernel, **options)
    printed, pads = np.zeros_like(y), 0
    for output, term in printed_terms(told):
        element, place = re.fullmatch(r"w\[([\d,]+)\]\*(?:x\[([\d,]+)\]|pad)", term).groups()
        pads += place is None
        if place is not None:
            image = np.ravel_multi_index(numbers(place), size)
            printed[(image, np.ravel_multi_index(numbers(element), kernel), *output)] += 1
    np.testing.assert_array_equal(printed, y)
    assert pads == math.prod(told.win.out) * math.prod(kernel) - y.sum()


@pytest.mark.parametrize(("size", "kernel", "options"), CONV_CASES)
def test_json_says_the_same(size, kernel, options):
    y, _ = CONVS[len(size) - 1](one_hots(size), one_hots(kernel), **options)
    facts = json.loads(json.dumps(explain_conv(size, kernel, **options).as_dict()))
    assert facts["output"] == list(y.shape[2:])
    said = np.zeros_like(y)
    for row in facts["outputs"]:
        assert len(row["meetings"]) == math.prod(kernel)
        for meeting in row["meetings"]:
            assert meeting["inside"] == all(0 <= p < n for p, n in zip(meeting["place"], size, strict=True))
            if meeting["inside"]:
                image, element = (
                    np.ravel_multi_index(meeting[name], shape) for name, shape in (("place", size), ("element", kernel))
                )
                said[(image, element, *row["output"])] += 1
    np.testing.assert_array_equal(said, y)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("mode", ["cross-correlation", "convolution"])
def test_center_in_the_words_of_the_contract(mode, stride):
    """Output i looks at inputs i·stride + (a - center), or i·stride - (a - center), while any lies in the image."""
    size, kernel, sign = (4, 5), (3, 2), 1 if mode == "cross-correlation" else -1
    for center in product(range(3), range(2)):
        told = explain_conv(size, kernel, stride=stride, mode=mode, center=center)
        pixels = np.arange(20.0).reshape(size)
        assert told.win.out == oracles.centered_conv(pixels, np.ones(kernel), stride, center, mode).shape
        for output in told.outputs():
            expected = {
                (a, tuple(o * s + sign * (e - c) for o, s, e, c in zip(output, stride, a, center, strict=True)))
                for a in product(range(3), range(2))
            }
            assert {(m.element, m.place) for m in told.meetings(output)} == expected


@pytest.mark.parametrize(("size", "kernel", "options"), POOL_CASES)
def test_every_printed_element_of_a_pooling_is_in_the_ops_window(size, kernel, options):
    """The op, given one-hot images, is 1 exactly where the text prints that the window holds the element."""
    pool = (ops.max_pool1d, ops.max_pool2d, ops.max_pool3d)[len(size) - 1]
    y = pool(one_hots(size), kernel, **options)[0][:, 0]  # (image, *out)
    told = explain_pool(size, kernel, **options)
    printed, pads = np.zeros_like(y), 0
    for output, term in printed_terms(told):
        pads += term == "pad"
        if term != "pad":
            place, value = re.fullmatch(r"x\[([\d,]+)\]=(\S+)", term).groups()
            printed[(np.ravel_multi_index(numbers(place), size), *output)] += 1
            assert float(value) == np.ravel_multi_index(numbers(place), size)  # 0, 1, 2, ... are the default values
    np.testing.assert_array_equal(printed, y)
    assert pads == math.prod(told.win.out) * told.win.taps - y.sum()


@pytest.mark.parametrize(("size", "kernel", "options"), [c for c in POOL_CASES if "center" not in c[2]])
def test_maxima_and_their_coordinates(size, kernel, options, rng):
    values = rng.integers(-3, 3, size).astype(float)  # many are equal
    told = explain_pool(size, kernel, values=values, **options)
    win = told.win
    maxima, index = oracles.max_pool(
        values[None, None], win.kernel, win.stride, told.pairs, win.dilation, told.ceil_mode
    )
    _, body = heading_and_body(told)
    found = re.findall(r"^ *= (\S+), at x\[([\d,]+)\]$", body, re.MULTILINE)
    assert [float(value) for value, _ in found] == maxima.ravel().tolist()
    assert [np.ravel_multi_index(numbers(place), size) for _, place in found] == index.ravel().tolist()
    assert [row["at"] for row in told.as_dict()["outputs"]] == [numbers(place) for _, place in found]
    assert [row["maximum"] for row in told.as_dict()["outputs"]] == maxima.ravel().tolist()


def test_of_equal_elements_the_first_or_read_backwards_the_last():
    values = np.array([[7.0, 7.0], [7.0, 7.0]])
    for mode, word, place in (("cross-correlation", "first", "x[0,0]"), ("convolution", "last", "x[1,1]")):
        text = "\n".join(text_lines(explain_pool((2, 2), 2, values=values, mode=mode)))
        assert f"the {word} counts" in text
        assert f"= 7, at {place}" in text


@pytest.mark.parametrize("explain", [explain_conv, explain_pool])
@pytest.mark.parametrize(("size", "kernel", "options"), CONV_CASES + POOL_CASES)
def test_the_heading_is_true_arithmetic(explain, size, kernel, options):
    """The closed form, evaluated, is the output's size, and the rule, evaluated, is what meets."""
    if explain is explain_conv and "ceil_mode" in options:
        return
    told = explain(size, kernel, **options)
    heading, _ = heading_and_body(told)
    sizes = re.findall(r"^  \w+: ((?:min|floor|ceil)\(.*) = (\d+)(, but .*: (\d+))?$", heading, re.MULTILINE)
    assert len(sizes) == len(size)
    for (formula, result, dropped, rest), out in zip(sizes, told.win.out, strict=True):
        assert eval(formula, {"floor": math.floor, "ceil": math.ceil}) == int(result)
        assert int(rest if dropped else result) == out
    rules = re.findall(r"^  \w+: (i.*)$", heading, re.MULTILINE)
    assert len(rules) == len(size)
    for output in told.outputs():
        for element, place, _ in told.meetings(output):
            for axis, rule in enumerate(rules):
                assert eval(rule, {"i": output[axis], "a": element[axis]}) == place[axis]


def test_a_dropped_window_is_said():
    """PyTorch's rule: in ceil mode a window that would start in the padding after the input is dropped."""
    told = explain_pool((3,), 2, stride=3, padding=1, ceil_mode=True)  # starts at -1 and 2; with 4 it would be 3
    assert told.win.out == (2,)
    told = explain_pool((2,), 2, stride=3, padding=1, ceil_mode=True)  # starts at -1; 2 lies after the input
    assert told.win.out == (1,)
    heading, _ = heading_and_body(told)
    assert (
        "ceil((2 + 1 + 1 - 1*(2 - 1) - 1) / 3) + 1 = 2, but the last window would start after the input: 1" in heading
    )


def test_a_window_around_the_input_is_said():
    heading, _ = heading_and_body(explain_conv((2,), 2, center=1, stride=3, dilation=4))  # places -1 and 3 of 0, 1
    assert "min(2, floor((2 - 1 + 4) / 3) + 1) = 2, but window 1 would lie around the input, not on it: 1" in heading


def test_a_pooling_window_that_misses_the_input_has_no_maximum():
    told = explain_pool((1,), 2, stride=1, dilation=3, padding=2)  # places -2 and 1, then -1 and 2, of 0
    assert list(text_lines(told))[-4:] == [
        "y[0] = max of pad  pad",
        "     = -inf: the window misses the input",
        "y[1] = max of pad  pad",
        "     = -inf: the window misses the input",
    ]
    assert [(row["maximum"], row["at"]) for row in told.as_dict()["outputs"]] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("explain", "arguments", "options", "says"),
    [
        (explain_conv, ((4,), 5), {}, "larger than the padded input"),
        (explain_conv, ((4, 4), (3,)), {}, "kernel must be one int or 2 ints"),
        (explain_conv, ((), 1), {}, "an input has 1, 2 or 3 axes, not 0"),
        (explain_conv, ((2, 2, 2, 2), 1), {}, "an input has 1, 2 or 3 axes, not 4"),
        (explain_conv, ((0, 2), 1), {}, "input must be"),
        (explain_conv, ((5, 5), 0), {}, "kernel must be"),
        (explain_conv, ((5, 5), 3), {"stride": 0}, "stride must be"),
        (explain_conv, ((5, 5), 3), {"center": (3, 0)}, "must lie inside the kernel"),
        (explain_conv, ((5, 5), 3), {"center": (1, 1), "padding": 1}, "center fixes the padding"),
        (explain_conv, ((5, 5), 3), {"mode": "correlation"}, "mode must be"),
        (explain_conv, ((1001, 1000), 3), {}, "1,001,000 elements"),
        (explain_conv, ((999, 999), 9), {}, "too much to list"),
        (explain_conv, ((3,), 2), {"dilation": 10**9, "padding": 10**9}, "too much to list"),
        (explain_pool, ((3,), 2), {"dilation": 10**9, "padding": 10**9}, "too much to list"),
        (explain_pool, ((5, 5), 2), {"padding": 2}, "smaller than the (dilated) kernel"),
        (explain_pool, ((5, 5), 2), {"values": np.arange(24)}, "an input of 5x5 has 25 values, but 24 were given"),
    ],
)
def test_refusals(explain, arguments, options, says):
    with pytest.raises(xc.XpcnnError, match=re.escape(says)):
        explain(*arguments, **options)
