"""Schedules against values worked by hand, and PyTorch's schedulers where they agree."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from xpcnn import XpcnnError, optim


def values(schedule, steps):
    found = [schedule(step) for step in range(steps)]
    assert all(type(lr) is float for lr in found)
    return found


def test_values_worked_by_hand():
    assert values(optim.constant(0.5), 3) == [0.5, 0.5, 0.5]
    assert values(optim.step_decay(8.0, 2, 0.5), 6) == [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    assert values(optim.step_decay(8.0, (1, 4), 0.25), 6) == [8.0, 2.0, 2.0, 2.0, 0.5, 0.5]
    assert values(optim.cosine(2.0, 4), 7) == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0, 0, 0])
    assert values(optim.cosine(2.0, 2, 0.5), 4) == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert values(optim.warmup(0.4, 4), 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert values(optim.warmup(0.4, 0), 2) == [0.4, 0.4]


def test_one_cycle_rises_and_falls():
    found = values(optim.one_cycle(10.0, 11, warmup=5 / 11, start=0.2, final=0.4, shape="linear"), 13)
    assert found == pytest.approx([2.0, 4.0, 6.0, 8.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 4.0, 4.0])
    found = values(optim.one_cycle(10.0, 9, warmup=5 / 9, start=0.0, final=0.0), 10)
    half = 10.0 * (1 + math.sqrt(0.5)) / 2
    assert found == pytest.approx([0.0, 2.5, 5.0, 7.5, 10.0, half, 5.0, 10.0 - half, 0.0, 0.0])
    assert values(optim.one_cycle(1.0, 5, warmup=0.0, final=0.0, shape="linear"), 6) == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert values(optim.one_cycle(3.0, 1), 3) == [3.0, 3.0, 3.0]
    assert values(optim.one_cycle(3.0, 2, warmup=0.9, final=0.5), 4) == pytest.approx([0.12, 1.5, 1.5, 1.5])


def test_a_warm_up_goes_along_with_its_schedule():
    both = optim.warmup(optim.cosine(1.0, 10), 4)
    expected = [(1 + math.cos(math.pi * t / 10)) / 2 * min(1.0, (t + 1) / 4) for t in range(10)]
    assert values(both, 10) == pytest.approx(expected)


def theirs(make, lr, steps):
    """Return what a scheduler of PyTorch's gives for each step."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "make", "steps", "falling"),
    [
        (optim.step_decay(0.3, 7), lambda s, o: s.StepLR(o, 7, 0.1), 40, 0),
        (optim.step_decay(0.3, [5, 20], 0.5), lambda s, o: s.MultiStepLR(o, [5, 20], 0.5), 40, 0),
        (optim.cosine(0.3, 50), lambda s, o: s.CosineAnnealingLR(o, 50), 51, 0),
        (optim.cosine(0.3, 50, 0.1), lambda s, o: s.CosineAnnealingLR(o, 50, 0.03), 51, 0),
        (optim.warmup(0.3, 20), lambda s, o: s.LinearLR(o, 1 / 20, 1.0, 19), 40, 0),
        (
            optim.one_cycle(0.3, 60, shape="linear"),
            lambda s, o: s.OneCycleLR(o, 0.3, 60, anneal_strategy="linear", cycle_momentum=False), 60, 0,
        ),
        (
            optim.one_cycle(0.3, 45, warmup=0.35, start=0.1, final=0.01, shape="linear"),
            lambda s, o: s.OneCycleLR(
                o, 0.3, 45, pct_start=0.35, anneal_strategy="linear", div_factor=10, final_div_factor=10, cycle_momentum=False
            ), 45, 0,
        ),
        (optim.one_cycle(0.3, 60), lambda s, o: s.OneCycleLR(o, 0.3, 60, cycle_momentum=False), 60, 17),
    ],
)  # fmt: skip
def test_pytorch_agrees(schedule, make, steps, falling):
    expected = theirs(make, 0.3, steps)
    np.testing.assert_allclose(values(schedule, steps)[falling:], expected[falling:], rtol=1e-12, atol=1e-15)


def test_an_optimizer_follows_a_schedule():
    optimizer, params = optim.sgd(optim.step_decay(1.0, 2, 0.5)), {"p": np.zeros(1, np.float32)}
    for step in range(4):
        params, _ = optimizer.update({"p": np.ones(1, np.float32)}, {}, params, step)
    assert params["p"] == -3.0
    assert params["p"].dtype == np.float32


def test_numpy_numbers_are_numbers():
    schedule = optim.warmup(optim.one_cycle(np.float32(0.5), np.int64(10), warmup=np.float64(0.2)), np.int32(2))
    assert all(type(schedule(step)) is float for step in range(12))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: optim.constant(0), "lr"), (lambda: optim.constant("fast"), "lr"), (lambda: optim.constant(True), "lr"),
        (lambda: optim.constant(lambda step: 0.1), "lr"), (lambda: optim.cosine(float("nan"), 5), "lr"),
        (lambda: optim.step_decay(0.1, 0), "every"), (lambda: optim.step_decay(0.1, [5, 0]), "every"),
        (lambda: optim.step_decay(0.1, "20"), "every"), (lambda: optim.step_decay(0.1, 2.5), "every"),
        (lambda: optim.step_decay(0.1, 5, 0.0), "factor"), (lambda: optim.step_decay(0.1, 5, 1.5), "factor"),
        (lambda: optim.cosine(0.1, 0), "steps"), (lambda: optim.cosine(0.1, 5, 2.0), "final"),
        (lambda: optim.cosine(0.1, 5, -0.1), "final"), (lambda: optim.one_cycle(0.1, 5, warmup=1.0), "warmup"),
        (lambda: optim.one_cycle(0.1, 5, start="low"), "start"), (lambda: optim.one_cycle(0.1, 5, final=True), "final"),
        (lambda: optim.one_cycle(0.1, 5, shape="round"), "shape"), (lambda: optim.one_cycle(0.1, -5), "steps"),
        (lambda: optim.warmup(0.1, -1), "steps"), (lambda: optim.warmup("low", 3), "lr"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, names):
    with pytest.raises(XpcnnError, match=f"^{names} must be .+, not .+\\.$"):
        call()


def test_steps_without_any_step_are_refused():
    with pytest.raises(XpcnnError, match="at least one step"):
        optim.step_decay(0.1, [])
