"""The policy of CUDA's kernels holds for a ``with`` in one thread, and nowhere else."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError

import pytest

from xpcnn import XpcnnError
from xpcnn.kernels import policy


def test_nothing_is_rounded_unless_asked_for():
    assert policy.current() == policy.Policy("float32", "auto", tune=False)


def test_what_is_not_given_stays_as_it_was():
    with policy.use(products="tf32") as outer:
        assert policy.current() is outer
        assert outer == policy.Policy("tf32", "auto")
        with policy.use(convolution="im2col"):
            assert policy.current() == policy.Policy("tf32", "im2col")
            with policy.use(products="float32", tune=True):
                assert policy.current() == policy.Policy("float32", "im2col", tune=True)
        assert policy.current() is outer
    assert policy.current() == policy.Policy()


def test_it_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), policy.use(products="tf32"):
        raise ZeroDivisionError
    assert policy.current() == policy.Policy()


def test_other_threads_do_not_see_it():
    seen = []
    with policy.use(products="tf32", convolution="cudnn"):
        thread = threading.Thread(target=lambda: seen.append(policy.current()))
        thread.start()
        thread.join()
    assert seen == [policy.Policy()]


@pytest.mark.parametrize(("name", "value"), [("products", "bf16"), ("convolution", "winograd"), ("products", 32)])
def test_a_value_that_does_not_exist_is_named(name, value):
    with pytest.raises(XpcnnError, match=f"{name} must be one of .*{value}"), policy.use(**{name: value}):
        pass
    assert policy.current() == policy.Policy()


def test_it_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        policy.current().products = "tf32"
