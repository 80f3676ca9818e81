"""What is remembered between calls to save time must never let through, or confuse, what would not pass afresh."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from xpcnn import ArrayTypeError, XpcnnError, ops
from xpcnn.layers.container import naming, split
from xpcnn.ops import _check, half


@pytest.fixture
def seen():
    """Return a function that is remembered, and the list of what it was really called with."""
    calls = []

    @_check.remembered
    def function(value, *, option=0):
        """Say so."""
        calls.append((value, option))
        if value == -1:
            raise XpcnnError("no.")
        return [value, option]

    return function, calls


def test_a_plain_call_is_made_once(seen):
    function, calls = seen
    assert function.__doc__ == "Say so."
    for value in (3, (1, 2), ((0, 1), (2, 3)), "same", None):
        assert function(value, option=5) is function(value, option=5)
    assert len(calls) == 5


def test_equal_values_of_other_types_are_told_apart(seen):
    """1 == True == 1.0, and tuples of them are equal too; NumPy's numbers and lists are not kept at all."""
    function, _ = seen
    same = [1, True, 1.0, np.int64(1), np.True_]
    for value in same:
        assert type(function(value)[0]) is type(value)
        assert type(function(value)[0]) is type(value)
    for value in same:
        assert type(function((value, 2))[0][0]) is type(value)
        assert type(function(((0, value), 2))[0][0][1]) is type(value)
    assert function((1, 2))[0] == (1, 2)
    assert function([1, 2])[0] == [1, 2]
    assert function(1, option=True)[1] is True
    assert function(1, option=1)[1] == 1
    assert function(1, option=1)[1] is not True


def test_a_refusal_is_not_kept(seen):
    function, calls = seen
    for _ in range(2):
        with pytest.raises(XpcnnError, match="no"):
            function(-1)
    assert len(calls) == 2


@pytest.mark.parametrize("option", ["stride", "padding", "dilation"])
def test_an_op_refuses_what_equals_what_it_took_before(option, rng):
    x, weight = rng.standard_normal((1, 2, 6, 6)), rng.standard_normal((3, 2, 2, 2))
    for good in (1, (1, 1)):
        expected = ops.conv2d(x, weight, **{option: good})[0]
        for bad in (True, 1.0, (1, True), (1.0, 1)):
            with pytest.raises(XpcnnError, match=option):
                ops.conv2d(x, weight, **{option: bad})
        for also in ([1, 1], np.int64(1), (np.int32(1), 1)):
            np.testing.assert_array_equal(ops.conv2d(x, weight, **{option: also})[0], expected)


def test_arrays_that_passed_let_no_others_through(rng):
    x, weight = rng.standard_normal((2, 3)), rng.standard_normal((3, 4))
    single = x.astype(np.float32)

    class Odd(np.ndarray):
        """An array of NumPy's by another name, which passes as well."""

    with pytest.warns(PendingDeprecationWarning):
        matrix = np.asmatrix(x)
    for _ in range(2):
        ops.affine(x, weight)
        ops.affine(single, weight.astype(np.float32))
        for wrong in (single, x.astype(int), x.astype(">f8"), x.tolist(), None, 3.0, SimpleNamespace(dtype=x.dtype)):
            with pytest.raises(ArrayTypeError):
                ops.affine(wrong, weight)
            with pytest.raises(ArrayTypeError):
                ops.affine(x, weight, wrong if wrong is not None else "none")
        with pytest.raises(ArrayTypeError):
            ops.affine(matrix, weight)
        with pytest.raises(ArrayTypeError):
            ops.relu(x.astype(int))
        np.testing.assert_array_equal(ops.affine(x.view(Odd), weight)[0], ops.affine(x, weight)[0])


def test_a_namespace_that_is_named_is_checked_each_time(rng):
    strict = pytest.importorskip("array_api_strict")
    x = rng.standard_normal(3)
    for _ in range(2):
        ops.relu(x)
        ops.relu(x, xp=np)
        with pytest.raises(ArrayTypeError, match="array_api_strict"):
            ops.relu(x, xp=strict)


def test_libraries_are_told_apart(rng):
    strict = pytest.importorskip("array_api_strict")
    x, weight = rng.standard_normal((2, 3)), rng.standard_normal((3, 4))
    for _ in range(2):
        ops.affine(x, weight)
        assert type(ops.affine(strict.asarray(x), strict.asarray(weight))[0]) is type(strict.asarray(x))
        for pair in ((x, strict.asarray(weight)), (strict.asarray(x), weight)):
            with pytest.raises(ArrayTypeError, match="one library"):
                ops.affine(*pair)


@pytest.mark.parametrize(
    "kind", ["float16", "float32", "float64", "int16", "uint16", "bool", "complex64", "V2", "M8[s]"]
)
def test_half_precision_is_known_by_its_name(kind):
    assert half.is_half(np.zeros(2, kind)) == (kind == "float16")


def test_what_has_no_dtype_of_an_array_is_not_half_precision():
    for value in (None, 3, "float16", [1.0], SimpleNamespace(dtype=[]), SimpleNamespace(dtype={}), SimpleNamespace()):
        assert not half.is_half(value)


def test_bfloat16_is_half_precision():
    torch = pytest.importorskip("torch")
    assert half.is_half(torch.zeros(2, dtype=torch.bfloat16))
    assert half.is_half(torch.zeros(2, dtype=torch.float16))
    assert not half.is_half(torch.zeros(2, dtype=torch.int16))


def test_names_are_put_before_complaints_and_nothing_else():
    with pytest.raises(ArrayTypeError) as caught, naming("a"), naming("b"):
        raise ArrayTypeError("wrong.")
    assert str(caught.value) == "layer a: layer b: wrong."
    assert caught.value.__suppress_context__
    with pytest.raises(KeyError, match="gone"), naming("a"):
        raise KeyError("gone")


def test_arrays_are_grouped_by_name_each_time_anew():
    first = {"a/w": 1, "ab/w": 2, "a/b/c": 3, "plain": 4}
    second = dict.fromkeys(first, 0)
    assert split(first) == {"a": {"w": 1, "b/c": 3}, "ab": {"w": 2}, "plain": {"": 4}}
    assert split(second) == {"a": {"w": 0, "b/c": 0}, "ab": {"w": 0}, "plain": {"": 0}}
    split(first)["a"]["w"] = 9
    assert split(first)["a"]["w"] == 1
    assert split({"b": 1, "a/x": 2}) == {"b": {"": 1}, "a": {"x": 2}}
    assert list(split({"b": 1, "a/x": 2})) == ["b", "a"]
    assert split({}) == {}
