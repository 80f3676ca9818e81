"""What every op promises at the edges: views, empty batches, single pixels, wrong types and shapes, no aliasing."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from calls import ACTIVATIONS, CALLS, not_compiled

from xpcnn import ArrayTypeError, XpcnnError, ops


def _dy(call, y, dtype="float64"):
    return np.array(np.random.default_rng(1).standard_normal(tuple(y.shape)), dtype)


def _there(arrays, call, operands, dtype=None):
    return {key: arrays(host, None if key in call.others else dtype) for key, host in operands.items()}


def _expected(call, operands):
    """Return dy, and y and the gradients of plain NumPy arrays."""
    dy = _dy(call, call.run(operands)[0])
    return dy, [np.array(a) if a is not None else None for a in call.both(operands, dy)]


def test_the_table_holds_every_op():
    every = {name for name in ops.__all__ if not name.endswith("_backward")} - {"conv_output_size"}
    assert {call.op for call in CALLS.values()} >= {name for name in every if hasattr(ops, f"{name}_backward")}
    assert set(ACTIVATIONS) <= every


@pytest.mark.parametrize("name", CALLS)
def test_every_backend_has_numpys_results_and_leaves_the_operands(arrays, dtype, name):
    not_compiled(arrays, name, dtype)
    call = CALLS[name]
    operands = call.operands()
    dy, expected = _expected(call, operands)
    there = _there(arrays, call, operands, dtype)
    y, saved, *_ = call.run(there)
    found = (y, *call.backward(saved, arrays(dy, dtype)))
    for actual, value in zip(found, expected, strict=True):
        arrays.check(actual, value, there[call.first])
    for key, array in there.items():
        np.testing.assert_array_equal(
            arrays.backend.to_numpy(array), np.array(operands[key], arrays.backend.to_numpy(array).dtype)
        )


@pytest.mark.parametrize("name", CALLS)
def test_the_same_call_again_is_the_same_to_the_bit(arrays, name):
    not_compiled(arrays)
    call = CALLS[name]
    there = _there(arrays, call, call.operands(), "float32")
    y, saved, *more = call.run(there)
    dy = arrays(_dy(call, y, "float32"))
    first = (y, *call.backward(saved, dy), *(part for pair in more for part in pair))
    again, saved_again, *more = call.run(there)
    second = (again, *call.backward(saved_again, dy), *(part for pair in more for part in pair))
    third = call.backward(saved, dy)  # what was saved serves more than once
    to_numpy = arrays.backend.to_numpy
    for a, b in zip(first, second, strict=True):
        assert to_numpy(a).tobytes() == to_numpy(b).tobytes()
    for a, b in zip(first[1:], third, strict=False):
        assert to_numpy(a).tobytes() == to_numpy(b).tobytes()


@pytest.mark.parametrize("name", CALLS)
def test_results_are_memory_of_their_own(arrays, name):
    """Writing to one result changes no operand, no other result, and nothing that backward gives."""
    not_compiled(arrays)  # and whose arrays cannot be written to
    call = CALLS[name]
    there = _there(arrays, call, call.operands())
    y, saved, *more = call.run(there)
    dy = arrays(_dy(call, y))
    expected = [arrays.backend.to_numpy(g).copy() for g in call.backward(saved, dy)]
    _overwrite(y)
    for part in (part for pair in more for part in pair if "train" in name):
        _overwrite(part)
    found = call.backward(saved, dy)
    for actual, value in zip(found, expected, strict=True):
        np.testing.assert_array_equal(arrays.backend.to_numpy(actual), value)
    for number, gradient in enumerate(found):
        _overwrite(gradient)
        for actual, value in zip(found[number + 1 :], expected[number + 1 :], strict=True):
            np.testing.assert_array_equal(arrays.backend.to_numpy(actual), value)
    for actual, value in zip(call.backward(saved, dy), expected, strict=True):
        np.testing.assert_array_equal(arrays.backend.to_numpy(actual), value)
    for key, host in call.operands().items():
        np.testing.assert_array_equal(arrays.backend.to_numpy(there[key]), host)
    np.testing.assert_array_equal(arrays.backend.to_numpy(dy), _dy(call, y))


def _overwrite(array):
    if hasattr(array, "__setitem__"):  # NumPy's scalars are their own
        array[...] = 77.0


TRIVIAL = {
    "max_pool2d": ((2, 3, 4, 4), {"kernel_size": 1}),
    "avg_pool2d": ((2, 3, 4, 4), {"kernel_size": 1}),
    "adaptive_avg_pool2d": ((2, 3, 4, 4), {"output_size": None}),
    "global_avg_pool2d": ((2, 3, 1, 1), {}),
    "global_max_pool2d": ((2, 3, 1, 1), {}),
    "leaky_relu": ((2, 3), {"negative_slope": 1.0}),
    "softmax": ((2, 1), {}),
    "log_softmax": ((2, 1), {}),
    "layer_norm": ((2, 3), {"gamma": None, "beta": None, "axes": (1,)}),
    "group_norm": ((2, 4), {"gamma": None, "beta": None, "groups": 2}),
}


@pytest.mark.parametrize("name", TRIVIAL)
def test_ops_that_change_nothing_still_copy(name):
    shape, options = TRIVIAL[name]
    x = np.random.default_rng(0).standard_normal(shape)
    given = x.copy()
    y, saved = getattr(ops, name)(given, **options)
    dy = np.ones_like(y)

    def backward():
        found = getattr(ops, f"{name}_backward")(dy, saved)
        return found[0] if isinstance(found, tuple) else found

    dx = backward()
    assert not np.shares_memory(y, given)
    assert not np.shares_memory(dx, dy)
    assert not np.shares_memory(dx, given)
    y[...] = 5.0
    np.testing.assert_array_equal(backward(), dx)
    np.testing.assert_array_equal(given, x)


def test_dropping_nothing_and_losses_of_each_element_still_copy():
    x, t = np.arange(6.0).reshape(2, 3), np.zeros((2, 3))
    y, saved = ops.dropout(x, np.ones((2, 3), bool), 0.0)
    dx = ops.dropout_backward(x, saved)
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(dx, x)
    for op in ("mean_squared_error", "binary_cross_entropy_with_logits"):
        loss, saved = getattr(ops, op)(x, t, reduction="none")
        backward = getattr(ops, f"{op}_backward")
        first = backward(saved)
        kept = first.copy()
        loss[...] = 9.0
        first[...] = 9.0
        np.testing.assert_array_equal(backward(saved), kept)
    loss, saved = ops.half_squared_error(x[:1], t[:1])  # a batch of one divides by one
    first = ops.half_squared_error_backward(saved)
    first[...] = 9.0
    np.testing.assert_array_equal(ops.half_squared_error_backward(saved), x[:1])


LAYOUTS = {
    "transposed": lambda a: a.copy(order="F"),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1] if a.ndim else a,
    "reversed-everywhere": lambda a: np.flip(np.flip(a).copy()),
    "a-part": lambda a: np.pad(a, 1)[tuple([slice(1, -1)] * a.ndim)],
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_any_layout_of_memory_gives_the_same(name, layout):
    call = CALLS[name]
    operands = call.operands()
    dy, expected = _expected(call, operands)
    laid = {key: LAYOUTS[layout](host) for key, host in operands.items()}
    for key, host in operands.items():
        np.testing.assert_array_equal(laid[key], host)
        laid[key].flags.writeable = False
    found = call.both(laid, LAYOUTS[layout](dy))
    for actual, value in zip(found, expected, strict=True):
        assert np.asarray(actual).dtype.name == "float64"
        np.testing.assert_allclose(actual, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_another_byte_order_is_refused(name):
    call = CALLS[name]
    operands = call.operands()
    for key in call.shapes:
        for dtype in (np.float64, np.float32, np.float16):
            given = {k: a if k in call.others else a.astype(dtype) for k, a in operands.items()}
            with pytest.raises(ArrayTypeError, match=f"{key}.*byte order"):
                call.run(given | {key: given[key].astype(given[key].dtype.newbyteorder())})
    y, saved, *_ = call.run(operands)
    with pytest.raises(ArrayTypeError, match=r"dy.*byte order"):
        call.backward(saved, np.asarray(y, np.dtype(np.float64).newbyteorder()))


@pytest.mark.parametrize("name", CALLS)
def test_permuted_arrays_on_every_backend(arrays, name):
    not_compiled(arrays)
    call = CALLS[name]
    operands = call.operands()
    dy, expected = _expected(call, operands)

    def permuted(host):
        order = tuple(reversed(range(host.ndim)))
        return (
            arrays.xp.permute_dims(arrays(np.ascontiguousarray(host.transpose(order))), order)
            if host.ndim
            else arrays(host)
        )

    found = call.both({key: permuted(host) for key, host in operands.items()}, permuted(dy))
    for actual, value in zip(found, expected, strict=True):
        arrays.check(actual, value, arrays(dy))


@pytest.mark.parametrize("name", CALLS)
def test_one_number_broadcast_is_a_gradient_like_any_other(name):
    call = CALLS[name]
    operands = call.operands()
    y, saved, *_ = call.run(operands)
    expected = call.backward(saved, np.full(np.shape(y), 2.0))
    found = call.backward(saved, np.broadcast_to(np.array(2.0), np.shape(y)))
    for actual, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_an_empty_batch_goes_forward_and_back(arrays, name):
    """Without a warning, which would be an error; parameters get no gradient, the mean of no losses is NaN."""
    not_compiled(arrays)
    call = CALLS[name]
    there = _there(arrays, call, call.emptied(call.operands()))
    y, saved, *more = call.run(there)
    full = call.run(call.operands())[0]
    if np.shape(full):
        assert tuple(y.shape) == (0, *np.shape(full)[1:])
    else:
        assert np.isnan(arrays.backend.to_numpy(y))
    dy = arrays(np.ones(tuple(y.shape)))
    gradient, *others = call.backward(saved, dy)
    arrays.check(gradient, np.zeros(tuple(there[call.first].shape)), there[call.first])
    parameters = [key for key in there if key in ("weight", "bias", "gamma", "beta")]
    for key, other in zip(parameters, others, strict=False):
        arrays.check(other, np.zeros(tuple(there[key].shape)), there[key])
    for old, new in zip(("running_mean", "running_var"), (part for pair in more for part in pair), strict=False):
        arrays.check(new, call.operands()[old], there[call.first], 0.0)


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_of_one_is_a_row_of_a_larger_batch(name):
    call = CALLS[name]
    operands = call.operands()
    y, saved, *_ = call.run(operands)
    if name == "batch_norm-train" or not np.shape(y):
        return  # what ties the batch together
    dy = _dy(call, y)
    gradient = call.backward(saved, dy)[0]
    for row in range(3):
        alone = {key: a[row : row + 1] if key in call.batched else a for key, a in operands.items()}
        found, saved, *_ = call.run(alone)
        np.testing.assert_allclose(found, y[row : row + 1], rtol=1e-12, atol=1e-12)
        back = call.backward(saved, dy[row : row + 1])[0]
        np.testing.assert_allclose(back, gradient[row : row + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_pixel(arrays, axes):
    """A single pixel of value 3 in two channels, under a kernel of 3 padded by 1 whose centre alone meets it."""
    not_compiled(arrays)
    pixel = (1,) * axes
    x = arrays(np.full((1, 2, *pixel), 3.0))
    w = np.ones((4, 2, *(3,) * axes))
    w[(slice(None), slice(None), *(1,) * axes)] = 5.0
    y, saved = getattr(ops, f"conv{axes}d")(x, arrays(w), arrays(np.ones(4)), padding=1)
    arrays.check(y, np.full((1, 4, *pixel), 31.0), x)
    dx, dweight, dbias = getattr(ops, f"conv{axes}d_backward")(y, saved)
    arrays.check(dx, np.full((1, 2, *pixel), 5.0 * 31 * 4), x)
    arrays.check(dbias, np.full(4, 31.0), x)
    assert float(arrays.backend.to_numpy(dweight).sum()) == 8 * 3 * 31
    w = w[:2].transpose(1, 0, *range(2, axes + 2))
    y, saved = getattr(ops, f"conv_transpose{axes}d")(x, arrays(np.ascontiguousarray(w)), padding=1)
    arrays.check(y, np.full((1, 2, *pixel), 30.0), x)
    arrays.check(getattr(ops, f"conv_transpose{axes}d_backward")(y, saved)[0], np.full((1, 2, *pixel), 300.0), x)
    for kind in ("max", "avg"):
        for options, expected in (({}, 3.0), ({"padding": 1, "stride": 2}, 3.0 if kind == "max" else 3.0 / 3**axes)):
            size = 3 if options else 1
            y, saved = getattr(ops, f"{kind}_pool{axes}d")(x, size, **options)
            arrays.check(y, np.full((1, 2, *pixel), expected), x)
            arrays.check(
                getattr(ops, f"{kind}_pool{axes}d_backward")(y, saved), np.full((1, 2, *pixel), expected**2 / 3), x
            )


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_stride_beyond_the_kernel_leaves_pixels_out(arrays, axes):
    """Kernel 1 at stride 3 over 7 pixels meets pixels 0, 3 and 6 alone; the others get no gradient."""
    not_compiled(arrays)
    size = (7, 2, 2)[:axes]
    x = np.arange(float(2 * np.prod(size))).reshape(1, 2, *size)
    given = arrays(x)
    met = (..., *(slice(None, None, 3) for _ in range(axes)))
    expected_dx = np.zeros_like(x)
    expected_dx[met] = 1.0
    for op in ("max_pool", "avg_pool"):
        y, saved = getattr(ops, f"{op}{axes}d")(given, 1, stride=3)
        arrays.check(y, x[met], given, 0.0)
        dx = getattr(ops, f"{op}{axes}d_backward")(arrays(np.ones_like(x[met])), saved)
        arrays.check(dx, expected_dx, given, 0.0)
    w = np.ones((1, 2, *(1,) * axes))
    y, saved = getattr(ops, f"conv{axes}d")(given, arrays(w), stride=3)
    arrays.check(y, x[met].sum(axis=1, keepdims=True), given)
    dx, dweight, _ = getattr(ops, f"conv{axes}d_backward")(arrays(np.ones_like(x[met][:, :1])), saved)
    arrays.check(dx, expected_dx, given, 0.0)
    arrays.check(dweight, x[met].reshape(2, -1).sum(axis=1).reshape(w.shape), given)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("op", ["conv", "max_pool", "avg_pool"])
def test_a_kernel_larger_than_the_image_is_named_with_both_sizes(arrays, op, axes):
    image, kernel = (4, 3, 5)[:axes], (3, 4, 2)[:axes] if axes > 1 else (5,)
    x = arrays(np.ones((1, 2, *image)))
    second = arrays(np.ones((3, 2, *kernel))) if op == "conv" else kernel
    with pytest.raises(XpcnnError) as caught:
        getattr(ops, f"{op}{axes}d")(x, second)
    assert str(kernel) in str(caught.value)
    assert str(image) in str(caught.value)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_a_kernel_without_elements_is_named(op, axes):
    kernel = (2,) * (axes - 1) + (0,)
    with pytest.raises(XpcnnError) as caught:
        getattr(ops, f"{op}{axes}d")(np.ones((1, 2, *(4,) * axes)), np.ones((2, 2, *kernel)))
    assert str(kernel) in str(caught.value) or str((2, 2, *kernel)) in str(caught.value)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("op", ["conv", "conv_transpose", "max_pool", "avg_pool"])
def test_an_image_without_pixels_is_refused_though_padding_would_fill_it(op, axes):
    size = (4,) * (axes - 1) + (0,)
    second = np.ones((2, 2, *(3,) * axes)) if op.startswith("conv") else 3
    padding = 0 if op == "conv_transpose" else 2
    with pytest.raises(XpcnnError) as caught:
        getattr(ops, f"{op}{axes}d")(np.ones((1, 2, *size)), second, padding=padding, stride=1)
    assert str(size) in str(caught.value) or str((1, 2, *size)) in str(caught.value)


@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_padding_may_make_a_small_image_fit(arrays, op):
    """A kernel larger than the image but not than the padded image is fine."""
    not_compiled(arrays)
    x = arrays(np.full((1, 1, 2, 2), 2.0))
    operands = (arrays(np.ones((1, 1, 4, 4))),) if op == "conv2d" else (4,)
    y, saved = getattr(ops, op)(x, *operands, padding=1)
    arrays.check(y, np.full((1, 1, 1, 1), {"conv2d": 8.0, "max_pool2d": 2.0, "avg_pool2d": 0.5}[op]), x)
    assert tuple(y.shape) == (1, 1, 1, 1)
    getattr(ops, f"{op}_backward")(y, saved)


WRONG_CHANNELS = {  # the shape that does not fit, its number, and the other's
    "conv1d": ({"x": (3, 8, 5)}, "8", "4"),
    "conv2d": ({"x": (3, 8, 5, 4)}, "8", "4"),
    "conv3d": ({"x": (3, 8, 3, 4, 3)}, "8", "4"),
    "conv_transpose1d": ({"x": (3, 8, 5)}, "8", "4"),
    "conv_transpose2d": ({"x": (3, 8, 5, 4)}, "8", "4"),
    "conv_transpose3d": ({"x": (3, 8, 3, 4, 3)}, "8", "4"),
    "conv2d_relu_max_pool2d": ({"x": (3, 7, 5, 4)}, "7", "4"),
    "batch_norm-train": ({"x": (3, 7, 5, 4)}, "7", "4"),
    "batch_norm-eval": ({"x": (3, 7)}, "7", "4"),
    "group_norm": ({"gamma": (7,)}, "7", "4"),
    "layer_norm": ({"gamma": (5, 7)}, "7", "4"),
    "affine": ({"x": (3, 7)}, "7", "8"),
}


@pytest.mark.parametrize("name", WRONG_CHANNELS)
def test_wrong_channel_counts_are_both_named(arrays, name):
    call = CALLS[name]
    change, *numbers = WRONG_CHANNELS[name]
    with pytest.raises(XpcnnError) as caught:
        call.run({key: arrays(np.ones(shape)) for key, shape in (call.shapes | change).items()})
    for number in numbers:
        assert number in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_mixed_dtypes_are_refused_and_named(arrays, name):
    not_compiled(arrays, name)
    call = CALLS[name]
    operands = call.operands()
    for key in call.shapes if len(call.shapes) > 1 else ():
        with pytest.raises(TypeError) as caught:
            call.run(_there(arrays, call, operands) | {key: arrays(operands[key], "float32")})
        for part in (key, "float32", "float64"):
            assert part in str(caught.value)
        assert isinstance(caught.value, XpcnnError)
    y, saved, *_ = call.run(_there(arrays, call, operands))
    with pytest.raises(TypeError) as caught:
        call.backward(saved, arrays(_dy(call, y), "float32"))
    for part in ("dy", "float32", "float64"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_integers_are_refused_with_advice(arrays, name):
    not_compiled(arrays, name)
    call = CALLS[name]
    operands = _there(arrays, call, call.operands())
    for key in call.shapes:
        if key == "targets" and "softmax" in name:
            continue  # where integers are labels
        for integer in ("uint8", "int64", "bool"):
            with pytest.raises(TypeError) as caught:
                call.run(operands | {key: arrays(np.ones(call.shapes[key]), integer)})
            advice = "floating" if key in ("t", "targets") else "normalise"  # which are no images
            for part in (key, integer, advice):
                assert part in str(caught.value)
    y, saved, *_ = call.run(operands)
    with pytest.raises(TypeError, match=r"dy.*int64"):
        call.backward(saved, arrays(np.ones(tuple(y.shape)), "int64"))


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_array_is_refused(name):
    call = CALLS[name]
    operands = call.operands()
    for key in (*call.shapes, *call.others):
        for value in (operands[key].tolist(), "array", object()):
            with pytest.raises(TypeError) as caught:
                call.run(operands | {key: value})
            assert key in str(caught.value)
            assert type(value).__name__ in str(caught.value)
    optional = ("bias", "gamma", "beta", "running_mean", "running_var", "weight", "pos_weight", "class_weights")
    for key in (*call.shapes, *call.others):
        if key not in optional or (key == "weight" and not call.is_loss):
            with pytest.raises(TypeError, match=f"{key}.*None"):
                call.run(operands | {key: None})
    _, saved, *_ = call.run(operands)
    with pytest.raises(TypeError, match=r"dy.*got list"):
        call.backward(saved, [[1.0]])
    if not call.is_loss:
        with pytest.raises(TypeError, match=r"dy.*got (NoneType|None)"):
            call.backward(saved, None)


@pytest.mark.parametrize("dtype_of", ["complex64", "complex128", "longdouble", "object", "str"])
@pytest.mark.parametrize("name", CALLS)
def test_other_dtypes_are_refused(name, dtype_of):
    call = CALLS[name]
    operands = call.operands()
    for key in call.shapes:
        with pytest.raises(TypeError, match=key) as caught:
            call.run(operands | {key: operands[key].astype(dtype_of)})
        assert isinstance(caught.value, XpcnnError)


@pytest.mark.parametrize("other", ["array_api_strict", "torch", "jax"])
@pytest.mark.parametrize("name", CALLS)
def test_another_librarys_array_is_refused(name, other):
    pytest.importorskip(other)
    from xpcnn.backend import resolve_backend

    foreign = resolve_backend(other)
    call = CALLS[name]
    operands = call.operands()
    for key in (*call.shapes, *call.others):
        if len(call.shapes) + len(call.others) > 1:
            with pytest.raises(TypeError) as caught:
                call.run(operands | {key: foreign.asarray(operands[key])})
            assert isinstance(caught.value, XpcnnError)
            assert "librar" in str(caught.value) or "numpy" in str(caught.value)
    y, saved, *_ = call.run(operands)
    with pytest.raises(TypeError) as caught:
        call.backward(saved, foreign.asarray(_dy(call, y)))
    assert isinstance(caught.value, XpcnnError)


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_of_the_wrong_shape_is_named_with_both(arrays, name):
    not_compiled(arrays, name)
    call = CALLS[name]
    y, saved, *_ = call.run(_there(arrays, call, call.operands()))
    shape = tuple(y.shape)
    for wrong in ((*shape, 1), (1, *shape), (shape[0] + 1, *shape[1:]) if shape else (1,), () if shape else (2,)):
        with pytest.raises(XpcnnError) as caught:
            call.backward(saved, arrays(np.ones(wrong)))
        for part in ("dy", str(shape), str(wrong)):
            assert part in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_the_namespace_may_be_named(arrays, name):
    not_compiled(arrays, name)
    call = CALLS[name]
    there = _there(arrays, call, call.operands())
    plain = importlib.import_module({"jax": "jax.numpy"}.get(arrays.backend.name, arrays.backend.name))
    for xp in (arrays.xp, plain):
        y, saved, *_ = call.run(there, xp=xp)
        call.backward(saved, arrays(_dy(call, y)), xp=xp)
    wrong = importlib.import_module("array_api_strict" if "numpy" in arrays.id else "numpy")
    with pytest.raises(TypeError, match="xp is"):
        call.run(there, xp=wrong)
    with pytest.raises(TypeError, match="xp is"):
        call.backward(saved, arrays(_dy(call, y)), xp=wrong)


SCALARS = {
    "leaky_relu": {"negative_slope": 0.1},
    "elu": {"alpha": 1.5},
    "softplus": {"beta": 2.0, "threshold": 10.0},
    "dropout": {"rate": 0.5},
    "batch_norm-train": {"momentum": 0.2, "eps": 1e-3},
    "batch_norm-eval": {"momentum": 0.2, "eps": 1e-3},
    "layer_norm": {"eps": 1e-3},
    "group_norm": {"eps": 1e-3},
    "softmax_cross_entropy": {"label_smoothing": 0.1},
}


@pytest.mark.parametrize("kind", ["float64", "float32", "python"])
@pytest.mark.parametrize("name", SCALARS)
def test_a_numpy_scalar_as_an_option_does_not_widen_the_result(name, kind):
    call = CALLS[name]
    operands = {k: a if k in call.others else a.astype(np.float32) for k, a in call.operands().items()}
    make = float if kind == "python" else getattr(np, kind)
    options = call.options | {key: make(value) for key, value in SCALARS[name].items()}
    y, saved, *more = getattr(ops, call.op)(**operands, **options)
    found = (y, *call.backward(saved, _dy(call, y, "float32")), *(part for pair in more for part in pair))
    assert {np.asarray(part).dtype.name for part in found} == {"float32"}
    plain, *_ = getattr(ops, call.op)(**operands, **(call.options | SCALARS[name]))
    np.testing.assert_allclose(y, plain, rtol=1e-6)


def test_numpy_integers_are_integers():
    two, one = np.int64(2), np.int32(1)
    x = np.ones((1, 2, 5, 5))
    assert ops.conv2d(x, np.ones((2, 1, 2, 2)), stride=two, padding=one, dilation=one, groups=two)[0].shape == (
        1,
        2,
        3,
        3,
    )
    assert ops.conv_transpose2d(x, np.ones((2, 1, 2, 2)), stride=two, output_padding=one, groups=two)[0].shape[2:] == (
        11,
        11,
    )
    assert ops.max_pool2d(x, two, stride=(one, two), padding=[one, 0])[0].shape == (1, 2, 6, 2)
    assert ops.avg_pool2d(x, (two, 3), stride=one)[0].shape == (1, 2, 4, 3)
    assert ops.adaptive_avg_pool2d(x, two)[0].shape == (1, 2, 2, 2)
    assert ops.group_norm(x, None, None, groups=two)[0].shape == x.shape
    assert ops.layer_norm(x, None, None, axes=(two, np.int64(3)))[0].shape == x.shape
    assert ops.softmax(x, axis=one)[0].shape == x.shape
    assert ops.softmax_cross_entropy(x, np.ones((1, 5, 5), int), ignore_index=two)[0] == pytest.approx(np.log(2))


def test_threads_do_not_disturb_each_other():
    """Large enough for NumPy's version to use its buffers and threads."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((8, 4, 40, 40)).astype(np.float32), rng.standard_normal((4, 4, 3, 3)).astype(np.float32)

    def work(number):
        a = x * (number % 3 + 1)
        y, conv_saved = ops.conv2d(a, w, padding=1)
        y, norm_saved, _ = ops.batch_norm(y, None, None, None, None, train=True)
        y, gelu_saved = ops.gelu(y)
        y, pool_saved = ops.avg_pool2d(y, 2)
        y, up_saved = ops.conv_transpose2d(y, w, stride=2, padding=1, output_padding=1)
        dx = ops.avg_pool2d_backward(ops.conv_transpose2d_backward(y, up_saved)[0], pool_saved)
        dx = ops.batch_norm_backward(ops.gelu_backward(dx, gelu_saved), norm_saved)[0]
        return y, *ops.conv2d_backward(dx, conv_saved)[:2]

    expected = [work(number) for number in range(3)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(12)))
    for number, found in enumerate(results):
        for actual, value in zip(found, expected[number % 3], strict=True):
            np.testing.assert_array_equal(actual, value)


POSITIONAL = {
    "leaky_relu": ("negative_slope", 0.3),
    "elu": ("alpha", 2.0),
    "softplus": ("beta", 2.0),
    "gelu": ("approximate", "tanh"),
    "softmax": ("axis", 0),
    "log_softmax": ("axis", 1),
}


@pytest.mark.parametrize("op", POSITIONAL)
def test_an_activations_option_may_stand_second(op):
    x, (name, value) = np.arange(-3.0, 3.0).reshape(2, 3), POSITIONAL[op]
    np.testing.assert_array_equal(getattr(ops, op)(x, value)[0], getattr(ops, op)(x, **{name: value})[0])
