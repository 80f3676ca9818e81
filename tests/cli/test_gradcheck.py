"""``xpcnn gradcheck``."""

from __future__ import annotations

import pytest

from xpcnn import cli, ops


def test_a_model_is_checked_layer_by_layer(capsys):
    assert cli.main(["gradcheck", "two_conv_net", "--input-shape", "1x16x16", "--classes", "3", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["conv1", "conv1", "conv1"]
    assert lines[-1] == "All gradients are right."
    assert lines[-2].startswith("all layers together")
    assert all(line.endswith("ok") for line in lines[2:-1])


def test_a_wrong_gradient_exits_with_1(capsys, monkeypatch):
    real = ops.max_pool2d_backward
    monkeypatch.setattr(ops, "max_pool2d_backward", lambda dy, saved: real(dy, saved) * 1.001)
    assert cli.main(["gradcheck", "lenet5", "--device", "cpu"]) == 1
    wrong = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
    assert wrong == ["pool1", "pool2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lenet6"], "lenet6"),
        (["lenet5", "--input-shape", "28x28"], "three numbers"),
        (["lenet5", "--input-shape", "1x4x4"], "conv2"),
        (["lenet5", "--device", "tpu"], "tpu"),
        (["lenet5", "--batch-size", "1"], "batch-size"),
    ],
)
def test_bad_input_is_one_sentence(arguments, says, capsys):
    assert cli.main(["gradcheck", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
