"""`xpcnn explain`: what it prints is checked in tests/report; here, how options become what is explained."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from xpcnn import ops


def test_the_issues_command(call):
    options = ("--input", "5x5", "--kernel", "3x3", "--stride", 2, "--center", "1,1", "--mode", "convolution")
    status, out, err = call("explain", "conv", *options)
    assert (status, err) == (0, "")
    assert "output 3x3" in out
    assert out.count("y[") == 9
    # y[1,1] = sum of w[a,b] * x[2 - (a-1), 2 - (b-1)]
    assert "y[1,1] = w[2,2]*x[1,1] + w[2,1]*x[1,2] + w[2,0]*x[1,3]\n" in out
    # y[2,2] has its center at x[4,4], the last pixel
    assert "       + w[1,2]*x[4,3] + w[1,1]*x[4,4] + w[1,0]*pad\n" in out


def test_without_options(call):
    status, out, _ = call("explain")
    assert status == 0
    assert "conv " in out
    assert "input 5x5, kernel 3x3" in call("explain", "conv")[1]
    assert "input 5x5, kernel 2x2\nstride 2x2" in call("explain", "pool")[1]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--padding", "1"], {"padding": 1}),
        (["--padding", "1,2"], {"padding": (1, 2)}),
        (["--padding", "1:2,0"], {"padding": ((1, 2), 0)}),
        (["--padding", "1:2x0:1"], {"padding": ((1, 2), (0, 1))}),
        (["--padding", "same", "--stride", "2,3"], {"padding": "same", "stride": (2, 3)}),
        (["--padding", "valid", "--dilation", "2x1"], {"padding": "valid", "dilation": (2, 1)}),
        (["--center", "2,0", "--mode", "convolution"], {"center": (2, 0), "mode": "convolution"}),
        (["--center", "1"], {"center": 1}),
    ],
)
def test_options_mean_what_the_op_means(call, typed, meant):
    status, out, _ = call("explain", "conv", "--input", "6x7", "--kernel", "3", "--json", *typed)
    facts = json.loads(out)
    weight, image = np.arange(9.0).reshape(1, 1, 3, 3) + 1, np.arange(42.0).reshape(1, 1, 6, 7) ** 2
    y, _ = ops.conv2d(image, weight, **meant)
    assert status == 0
    assert facts["output"] == list(y.shape[2:])
    for row in facts["outputs"]:
        met = [m for m in row["meetings"] if m["inside"]]
        total = sum(weight[0, 0][tuple(m["element"])] * image[0, 0][tuple(m["place"])] for m in met)
        assert total == y[(0, 0, *row["output"])]


def test_padding_of_one_axis_as_a_pair(call):
    facts = json.loads(call("explain", "conv", "--input", "9", "--kernel", 3, "--padding", "1:2", "--json")[1])
    assert facts["padding"] == [[1, 2]]
    assert facts["output"] == [10]


def test_pool_with_values_of_a_file(call, tmp_path):
    (tmp_path / "values").write_text("1, 9,2 3\n-4 5 6 7\n")
    command = ("explain", "pool", "--input", "2x4", "--kernel", 2, "--values", tmp_path / "values")
    out = call(*command)[1]
    assert "       = 9, at x[0,1]\n" in out
    assert "       = 7, at x[1,3]\n" in out
    facts = json.loads(call(*command, "--json")[1])
    assert facts["values"] == [[1, 9, 2, 3], [-4, 5, 6, 7]]
    assert [(row["maximum"], row["at"]) for row in facts["outputs"]] == [(9, [0, 1]), (7, [1, 3])]


def test_pool_with_a_seed(call):
    values = [json.loads(call("explain", "pool", "--seed", seed, "--json")[1])["values"] for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert sorted(np.ravel(values[2])) == list(range(25))


def kind_of(path):
    with Image.open(path) as picture:
        return picture.format


def test_draw(call, tmp_path):
    status, out, _ = call("explain", "conv", "--draw", tmp_path / "windows.png")
    assert status == 0
    assert out.endswith(f"\n9 windows drawn in {tmp_path / 'windows.png'}\n")
    assert kind_of(tmp_path / "windows.png") == "PNG"
    assert json.loads(call("explain", "pool", "--json", "--draw", tmp_path / "pool.png")[1])["op"] == "max_pool"
    assert kind_of(tmp_path / "pool.png") == "PNG"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["conv", "--input", "5x"], "'5x' is not whole numbers"),
        (["conv", "--input", "-1"], "'-1' is not whole numbers"),
        (["conv", "--input", "٣x٣"], "is not whole numbers"),
        (["conv", "--input", "0x5"], "input must be"),
        (["conv", "--input", "9999999999"], "is not whole numbers"),
        (["conv", "--input", "999999999x999999999"], "can be explained"),
        (["conv", "--input", "1x1x1x1"], "1, 2 or 3 axes"),
        (["conv", "--kernel", "7"], "larger than the padded input"),
        (["conv", "--kernel", "3x3x3"], "kernel must be one int or 2 ints"),
        (["conv", "--stride", "0"], "stride must be"),
        (["conv", "--padding", "full"], "'full' is neither same, valid nor numbers"),
        (["conv", "--padding", "1:"], "'1:' is neither"),
        (["conv", "--padding", "1", "--center", "1,1"], "center fixes the padding"),
        (["conv", "--center", "3,3"], "must lie inside the kernel"),
        (["conv", "--mode", "both"], "'both' is not one of"),
        (["conv", "--ceil-mode"], "No such option"),
        (["conv", "--draw", "no/such/folder.png"], "No such file or directory"),
        (["conv", "--input", "4x4x4", "--draw", "x.png"], "drawn over 1 or 2 axes"),
        (["pool", "--padding", "2"], "smaller than the (dilated) kernel"),
        (["pool", "--input", "999999999x999999999", "--seed", "1"], "can be explained"),
        (["pool", "--values", "nowhere"], "nowhere does not exist"),
        (["pool", "--values", "/dev/zero"], "is not a file"),
        (["pool", "--values", "x", "--seed", "1"], "give one of them"),
        (["pool", "--seed", "-1"], "not in the range"),
        (["filter"], "No such command 'filter'"),
    ],
)
def test_refusals(refused, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused("explain", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 2 3", "25 values, but 3 were given"),
        ("1 two", "but has 'two'"),
        ("nan", "but has 'nan'"),
        ("\0\1", "finite"),
    ],
)
def test_files_that_are_no_values(refused, tmp_path, text, says):
    (tmp_path / "values").write_text(text)
    assert says in refused("explain", "pool", "--values", tmp_path / "values")


def test_a_huge_file_is_not_read(refused, tmp_path):
    with open(tmp_path / "values", "wb") as file:
        file.truncate(1 << 40)
    assert "too large" in refused("explain", "pool", "--values", tmp_path / "values")
