"""cuDNN as it is called: a stand-in for NVIDIA's package convolves by the definition, from addresses and strides."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from itertools import product
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import emulator
import numpy as np
import pytest

from xpcnn import BackendError
from xpcnn.kernels import policy
from xpcnn.kernels.cuda import cudnn, stream
from xpcnn.kernels.window import Window

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


class NotSupportedError(Exception):
    """Not a RuntimeError, as in the package itself."""


class FakeTensor:
    def __init__(self, dim=None, stride=None, data_type=None, uid=None):
        self.dim, self.stride, self.kind, self.uid, self.is_output = dim, stride, data_type, uid, False

    def set_uid(self, uid):
        self.uid = uid

    def set_output(self, on):
        self.is_output = on

    def set_dim(self, dim):
        self.dim = dim

    def set_stride(self, stride):
        self.stride = stride

    def set_data_type(self, kind):
        self.kind = kind


class FakeGraph:
    """Takes the arguments that the package's pygraph takes, by its names, and computes what they say."""

    made: ClassVar[list] = []

    def __init__(self, name, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert (intermediate_data_type, compute_data_type) == ("FLOAT", "FLOAT")
        self.kind, self.handle, self.steps, self.tensors, self.runs = io_data_type, handle, [], {}, []
        self.called, self.direction, self.bias_of = [], None, None
        FakeGraph.made.append(self)

    def tensor(self, *, dim, stride, data_type, uid):
        assert data_type == self.kind
        assert {type(n) for n in (*dim, *stride)} == {int}
        assert 4 <= len(dim) == len(stride)
        self.tensors[uid] = FakeTensor(dim, stride, data_type, uid)
        return self.tensors[uid]

    def _convolution(self, direction, inputs, pre_padding, post_padding, stride, dilation):
        self.direction, self.inputs = direction, inputs
        self.geometry = pre_padding, post_padding, stride, dilation
        self.result = FakeTensor()
        return self.result

    def conv_fprop(self, *, image, weight, **geometry):
        return self._convolution("forward", (image, weight), **geometry)

    def conv_dgrad(self, *, loss, filter, **geometry):
        return self._convolution("images", (loss, filter), **geometry)

    def conv_wgrad(self, *, image, loss, **geometry):
        return self._convolution("filters", (image, loss), **geometry)

    def bias(self, *, input, bias):
        assert input is self.result
        self.bias_of, self.result = bias, FakeTensor()
        return self.result

    def __getattr__(self, name):
        if name not in ("validate", "build_operation_graph", "check_support"):
            raise AttributeError(name)
        return lambda: self.called.append(name)

    def create_execution_plans(self, modes):
        assert modes == ["A", "FALLBACK"]
        self.called.append("create_execution_plans")

    def deselect_numeric_notes(self, notes):
        assert notes == ["NONDETERMINISTIC"]
        self.called.append("deselect_numeric_notes")

    def build_plans(self, how):
        assert how == "HEURISTICS_CHOICE"
        assert self.called == ["validate", "build_operation_graph", "create_execution_plans", "deselect_numeric_notes",
                               "check_support"]  # fmt: skip
        if self.direction in FakeGraph.unsupported:
            raise NotSupportedError("No valid engine configs")
        sizes = self.result.dim, self.result.stride
        assert None not in (*sizes, self.result.uid)
        assert self.result.is_output
        assert self.result.kind == self.kind
        self.tensors[self.result.uid] = self.result

    def get_workspace_size(self):
        return 48

    def get_execution_plan_count(self):
        return 5

    def build_plan_at_index(self, index):
        if index == 1:
            raise NotSupportedError("Deselecting execution plan")

    def get_workspace_size_plan_at_index(self, index):
        return 16 * index

    def execute_plan_at_index(self, addresses, workspace, index, handle):
        self.runs.append(index)
        self._compute(addresses, workspace, 16 * index)

    def execute(self, addresses, workspace, handle):
        assert handle == FakeGraph.handle
        self.runs.append(None)
        self._compute(addresses, workspace, 48)

    def _compute(self, addresses, workspace, space):
        assert {type(a) for a in (workspace, *addresses.values())} == {int}
        assert bool(workspace) == bool(space)
        if workspace:
            ctypes.memset(workspace, 0x55, space)
        assert set(addresses) == set(self.tensors)
        assert all(address % 16 == 0 for address in addresses.values())
        arrays = {uid: view(addresses[uid], tensor) for uid, tensor in self.tensors.items()}
        target = arrays[self.result.uid]
        total = np.zeros(target.shape)
        named = {"forward": ("y", "x", "w"), "images": ("x", "y", "w"), "filters": ("w", "x", "y")}[self.direction]
        wide = dict(zip(named[1:], (arrays[t.uid].astype(np.float64) for t in self.inputs), strict=True))
        wide[named[0]] = total
        by_definition(wide["x"], wide["w"], wide["y"], self.direction, *self.geometry)
        if self.bias_of is not None:
            total += arrays[self.bias_of.uid].astype(np.float64)
        target[...] = total.astype(target.dtype)


def view(address, tensor):
    """Return a tensor's memory as an array of its lengths and strides."""
    dtype = DTYPES[{"BFLOAT16": "bfloat16", "FLOAT": "float32"}[tensor.kind]]
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.dim, tensor.stride, strict=True))
    flat = np.frombuffer((ctypes.c_char * (span * dtype.itemsize)).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(flat, tensor.dim, [s * dtype.itemsize for s in tensor.stride])


def by_definition(x, w, y, direction, before, after, stride, dilation):
    """Add to one of the three what the others give: y[n, f, o] = Σ w[f, c, k] · x[n, its group's c, o·s + k·d - p]."""
    each, own = w.shape[1], w.shape[0] // (x.shape[1] // w.shape[1])
    for n, k, p, q, s, d, o in zip(x.shape[2:], w.shape[2:], before, after, stride, dilation, y.shape[2:], strict=True):
        assert o == (n + p + q - d * (k - 1) - 1) // s + 1, "cuDNN infers another size"
    for f, o, k in product(range(w.shape[0]), np.ndindex(*y.shape[2:]), np.ndindex(*w.shape[2:])):
        at = tuple(i * s + j * d - p for i, s, j, d, p in zip(o, stride, k, dilation, before, strict=True))
        if all(0 <= i < n for i, n in zip(at, x.shape[2:], strict=True)):
            c = slice(f // own * each, (f // own + 1) * each)
            if direction == "forward":
                y[(slice(None), f, *o)] += x[(slice(None), c, *at)] @ w[(f, slice(None), *k)]
            elif direction == "images":
                x[(slice(None), c, *at)] += np.outer(y[(slice(None), f, *o)], w[(f, slice(None), *k)])
            else:
                w[(f, slice(None), *k)] += y[(slice(None), f, *o)] @ x[(slice(None), c, *at)]


@pytest.fixture
def api(monkeypatch):
    """The stand-in, and the emulator's memory and kernels, on a stream numbered 99 of device 0."""
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    emulator.install(monkeypatch)
    made = ModuleType("cudnn")
    made.streams, made.handles, made.capturing, made.place = [], 0, False, (0, 99, 0)
    for name, members in {
        "data_type": ("FLOAT", "BFLOAT16"),
        "heur_mode": ("A", "FALLBACK"),
        "numerical_note": ("NONDETERMINISTIC",),
        "build_plan_policy": ("HEURISTICS_CHOICE",),
    }.items():
        setattr(made, name, SimpleNamespace(**{member: member for member in members}))
    made.pygraph, made.cudnnGraphNotSupportedError = FakeGraph, NotSupportedError
    made.backend_version = lambda: 92800
    made.set_stream = lambda handle, stream: made.streams.append((handle, stream))

    def create_handle():
        made.handles += 1
        return FakeGraph.handle

    made.create_handle = create_handle
    FakeGraph.handle, FakeGraph.unsupported, FakeGraph.made = 4711, set(), []
    monkeypatch.setitem(sys.modules, "cudnn", made)
    monkeypatch.setattr(stream, "load", lambda *names: None)
    monkeypatch.setattr(stream, "place", lambda: made.place)
    monkeypatch.setattr(stream, "is_capturing", lambda here: made.capturing)
    monkeypatch.setattr(stream, "is_on_device", lambda x: True)
    monkeypatch.setattr(stream, "address", lambda x: x.__array_interface__["data"][0])
    monkeypatch.setattr(stream, "milliseconds", lambda work: (work(), [5, 9, 2, 4, 3][FakeGraph.made[-1].runs[-1]])[1])
    forget()
    yield made
    forget()


def forget():
    for cached in (cudnn._plan, cudnn._handle_of, cudnn._api, cudnn._missing):
        cached.cache_clear()


def channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def odd_address(x):
    """Return the same array where no multiple of 16 bytes begins it."""
    raw = np.zeros(x.nbytes + 32, np.uint8)
    start = -raw.ctypes.data % 16 + x.itemsize
    moved = raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


ORDERS = {
    "plain": np.ascontiguousarray,
    "channels last": channels_last,
    "neither": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "odd address": odd_address,
}
WINDOWS = {  # size, kernel, stride, dilation, before, out
    "3x3 same": Window((5, 6), (3, 3), (1, 1), (1, 1), (1, 1), (5, 6)),
    "strided": Window((7, 6), (3, 2), (2, 3), (1, 1), (1, 0), (4, 2)),
    "dilated": Window((8, 7), (3, 2), (1, 1), (2, 3), (2, 0), (8, 4)),
    "only after": Window((4, 4), (2, 2), (1, 1), (1, 1), (0, 0), (4, 4)),
    "only before": Window((4, 5), (2, 3), (1, 1), (1, 1), (1, 2), (4, 5)),
    "1x1": Window((3, 4), (1, 1), (1, 1), (1, 1), (0, 0), (3, 4)),
    "whole": Window((3, 4), (3, 4), (1, 1), (1, 1), (0, 0), (1, 1)),
    "one axis": Window((9,), (3,), (2,), (2,), (2,), (5,)),
    "three axes": Window((3, 4, 3), (2, 2, 3), (1, 2, 1), (1, 1, 1), (0, 1, 1), (2, 3, 3)),
}


def numbers(shape, dtype, seed):
    """Return small whole numbers, whose sums of products no rounding changes."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(DTYPES[dtype])


def expected(x, w, dy, b, win):
    """Return y, dx and dweight by the definition, and dbias."""
    after = [e - p - n for e, p, n in zip(win.extent, win.before, win.size, strict=True)]
    geometry = win.before, [max(0, a) for a in after], win.stride, win.dilation
    x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(w)
    by_definition(x, w, y, "forward", *geometry)
    by_definition(dx, w, dy, "images", *geometry)
    by_definition(x, dw, dy, "filters", *geometry)
    y += 0 if b is None else b.astype(np.float64).reshape(1, -1, *[1] * len(win.out))
    return y, dx, dw, dy.sum(axis=(0, *range(2, dy.ndim)))


def case(win, dtype, groups=1, order="plain", channels=3, filters=4, images=2):
    x = ORDERS[order](numbers((images, channels * groups, *win.size), dtype, 0))
    w = ORDERS["plain" if order == "channels last" else order](
        numbers((filters * groups, channels, *win.kernel), dtype, 1)
    )
    dy = ORDERS[order](numbers((images, filters * groups, *win.out), dtype, 2))
    return (
        x,
        w,
        dy,
        ORDERS["odd address" if order == "odd address" else "plain"](numbers((filters * groups,), dtype, 3)),
    )


def check(found, wanted):
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(found.dtype).astype(np.float64))


@pytest.mark.parametrize("real", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WINDOWS)
def test_all_that_is_described_is_the_convolution(api, name, order, real):
    win = WINDOWS[name]
    x, w, dy, b = case(win, real, order=order)
    y, dx, dw, db = expected(x, w, dy, b, win)
    with policy.use(products="tf32"):
        assert cudnn.fits(x, w, win, 1)
        check(cudnn.forward(x, w, b, win, 1), y)
        check(cudnn.forward(x, w, None, win, 1), expected(x, w, dy, None, win)[0])
        found = cudnn.backward(dy, x, w, win, 1, True)
    for one, other in zip(found, (dx, dw, db), strict=True):
        check(one, other)


@pytest.mark.parametrize("order", ["plain", "channels last"])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups(api, groups, order):
    win = WINDOWS["3x3 same"]
    x, w, dy, b = case(win, "bfloat16", groups, order, channels=2, filters=3)
    y, dx, dw, db = expected(x, w, dy, b, win)
    check(cudnn.forward(x, w, b, win, groups), y)
    for one, other in zip(cudnn.backward(dy, x, w, win, groups, True), (dx, dw, db), strict=True):
        check(one, other)


def test_results_have_their_channels_last_and_the_gradient_lies_as_the_images_do(api):
    win = WINDOWS["3x3 same"]
    x, w, dy, b = case(win, "bfloat16")
    assert np.moveaxis(cudnn.forward(x, w, b, win, 1), 1, -1).flags.c_contiguous
    dx, dw, _ = cudnn.backward(dy, x, w, win, 1, True)
    assert dx.flags.c_contiguous
    assert dw.flags.c_contiguous
    assert np.moveaxis(cudnn.backward(dy, channels_last(x), w, win, 1, True)[0], 1, -1).flags.c_contiguous
    assert cudnn.backward(dy, x, w, win, 1, False)[0] is None


def test_a_plan_is_made_once_for_all_that_it_depends_on(api):
    win, other = WINDOWS["3x3 same"], Window((5, 6), (3, 3), (1, 1), (1, 1), (0, 1), (4, 6))
    x, w, dy, b = case(win, "bfloat16")

    def plans(work):
        before = len(FakeGraph.made)
        work()
        return len(FakeGraph.made) - before

    assert plans(lambda: cudnn.forward(x, w, b, win, 1)) == 1
    assert plans(lambda: cudnn.forward(x.copy(), w.copy(), b, win, 1)) == 0
    assert plans(lambda: cudnn.forward(x, w, None, win, 1)) == 1
    assert plans(lambda: cudnn.fits(x, w, win, 1)) == 0
    assert plans(lambda: cudnn.forward(channels_last(x), w, b, win, 1)) == 1
    assert plans(lambda: cudnn.forward(x[:1], w, b, win, 1)) == 1
    assert plans(lambda: cudnn.forward(x, w, b, other, 1)) == 1
    assert plans(lambda: cudnn.backward(dy, x, w, win, 1, True)) == 2
    assert plans(lambda: cudnn.backward(dy, x, w, win, 1, False)) == 0
    api.place = (0, 98, 0)
    assert plans(lambda: cudnn.forward(x, w, b, win, 1)) == 0
    api.place = (1, 98, 0)
    assert plans(lambda: cudnn.forward(x, w, b, win, 1)) == 1
    assert api.handles == 3
    assert set(api.streams) == {(4711, 99), (4711, 98)}


def test_nothing_is_made_while_work_is_recorded(api):
    win = WINDOWS["3x3 same"]
    x, w, _, b = case(win, "bfloat16")
    api.capturing = True
    with pytest.raises(BackendError, match="run it once before"):
        cudnn.forward(x, w, b, win, 1)
    with pytest.raises(BackendError, match="run it once before"):
        cudnn.fits(x, w, win, 1)
    api.capturing = False
    cudnn.forward(x, w, b, win, 1)
    api.capturing = True
    cudnn.forward(x, w, b, win, 1)
    assert [graph.runs for graph in FakeGraph.made] == [[None, None]]


def test_tuning_keeps_the_fastest_plan_that_can_be_built(api):
    win = WINDOWS["3x3 same"]
    x, w, dy, b = case(win, "bfloat16")
    with policy.use(tune=True):
        check(cudnn.forward(x, w, b, win, 1), expected(x, w, dy, b, win)[0])
        runs = FakeGraph.made[-1].runs
        assert set(runs) == {0, 2, 3, 4}  # 1 cannot be built
        assert runs[-1] == 2  # which took the least
        before = len(runs)
        api.capturing = True
        cudnn.forward(x, w, b, win, 1)
        assert runs[before:] == [2]
    api.capturing = False
    cudnn.forward(x, w, b, win, 1)
    assert FakeGraph.made[-1].runs == [None]


@pytest.mark.parametrize(
    ("real", "products", "convolution", "wanted"),
    [
        *(("bfloat16", "float32", "auto", True), ("bfloat16", "float32", "im2col", False)),
        *(("float32", "float32", "auto", False), ("float32", "tf32", "auto", True)),
        *(("float32", "tf32", "im2col", False), ("float32", "tf32", "cudnn", True)),
    ],
)
def test_when_it_fits(api, real, products, convolution, wanted):
    x, w, *_ = case(WINDOWS["3x3 same"], real)
    with policy.use(products=products, convolution=convolution):
        assert cudnn.fits(x, w, WINDOWS["3x3 same"], 1) is wanted


def test_it_must_and_cannot(api):
    win, short = WINDOWS["3x3 same"], Window((5, 6), (3, 3), (1, 1), (1, 1), (1, 1), (5, 2))
    x, w, *_ = case(win, "float32")
    with policy.use(convolution="cudnn"):
        with pytest.raises(BackendError, match="cuDNN was asked for, but it convolves in bf16 or tf32, not in float32"):
            cudnn.fits(x, w, win, 1)
        with policy.use(products="tf32"), pytest.raises(BackendError, match="stop short"):
            cudnn.fits(x, w, short, 1)
        FakeGraph.unsupported = {"forward"}
        with policy.use(products="tf32"), pytest.raises(BackendError, match=r"no plan for forward.*No valid engine"):
            cudnn.fits(x, w, win, 1)
    with policy.use(products="tf32"):
        assert not cudnn.fits(x, w, win, 1)
        assert not cudnn.fits(x, w, short, 1)
        FakeGraph.unsupported = {"images"}
        with pytest.raises(BackendError, match="cannot convolve like this: it has no plan for images"):
            cudnn.backward(x[:, :1].repeat(4, 1), x, w, win, 1, True)


def test_nothing_to_convolve_and_single_channels_are_others_work(api):
    win = WINDOWS["3x3 same"]
    x, w, *_ = case(win, "bfloat16")
    with policy.use(convolution="cudnn"):
        assert not cudnn.fits(x[:0], w, win, 1)
    single, filters = numbers((2, 4, 5, 6), "bfloat16", 0), numbers((4, 1, 3, 3), "bfloat16", 1)
    assert not cudnn.fits(single, filters, win, 4)
    with policy.use(convolution="cudnn"):
        assert cudnn.fits(single, filters, win, 4)


def test_arrays_that_are_not_on_a_device(api, monkeypatch):
    monkeypatch.undo()
    x, w, *_ = case(WINDOWS["3x3 same"], "bfloat16")
    with policy.use(convolution="cudnn"):
        assert not cudnn.fits(x, w, WINDOWS["3x3 same"], 1)


def test_without_the_package(api, monkeypatch):
    win = WINDOWS["3x3 same"]
    x, w, *_ = case(win, "bfloat16")
    monkeypatch.setitem(sys.modules, "cudnn", None)
    forget()
    assert not cudnn.fits(x, w, win, 1)
    with (
        policy.use(convolution="cudnn"),
        pytest.raises(BackendError, match=r"not installed: pip install 'xpcnn\[cudnn"),
    ):
        cudnn.fits(x, w, win, 1)


def test_without_its_library(api):
    def backward_version():
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    api.backend_version = backward_version
    x, w, *_ = case(WINDOWS["3x3 same"], "bfloat16")
    with policy.use(convolution="cudnn"), pytest.raises(BackendError, match="its library cannot be used"):
        cudnn.fits(x, w, WINDOWS["3x3 same"], 1)


@pytest.mark.parametrize("real", [*DTYPES, "float64"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 1, 1, 1), (3, 70, 2, 3), (40, 33, 9, 9), (5, 64, 1, 1), (700, 2, 5)]
)
def test_the_sums_over_all_but_the_filters(monkeypatch, shape, last, real):
    if emulator.compiler() is None:
        pytest.skip("there is no C++ compiler")
    emulator.install(monkeypatch)
    dy = np.random.default_rng(0).integers(-1, 2, shape).astype(DTYPES.get(real, np.float64))
    sums = cudnn._filter_sums(channels_last(dy) if last else dy)
    check(sums, dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim))))
    assert emulator.launches == ["filter_sums"] * 2


@pytest.mark.skipif(importlib.util.find_spec("cudnn") is None, reason="nvidia-cudnn-frontend is not installed")
def test_the_package_has_what_is_called():
    real = importlib.import_module("cudnn")
    graph = real.pygraph
    for method, names in {
        "__init__": ("name", "io_data_type", "intermediate_data_type", "compute_data_type", "handle"),
        "conv_fprop": ("image", "weight", "pre_padding", "post_padding", "stride", "dilation"),
        "conv_dgrad": ("loss", "filter", "pre_padding", "post_padding", "stride", "dilation"),
        "conv_wgrad": ("image", "loss", "pre_padding", "post_padding", "stride", "dilation"),
        "bias": ("input", "bias"),
    }.items():
        assert all(f"{name}:" in getattr(graph, method).__doc__ for name in names)
    for method in ("validate", "build_operation_graph", "create_execution_plans", "deselect_numeric_notes", "check_support",
                   "build_plans", "get_workspace_size", "get_execution_plan_count", "build_plan_at_index",
                   "get_workspace_size_plan_at_index"):  # fmt: skip
        assert callable(getattr(graph, method))
    for function, names in (
        (graph.tensor, {"dim", "stride", "data_type", "uid"}),
        (graph.execute, {"tensor_to_device_buffer", "workspace", "handle"}),
        (graph.execute_plan_at_index, {"tensor_to_device_buffer", "workspace", "index", "handle"}),
    ):
        assert names <= set(function.__code__.co_varnames[: function.__code__.co_argcount])
    assert all(hasattr(real.tensor, f"set_{what}") for what in ("uid", "output", "dim", "stride", "data_type"))
    assert "handle: int, stream: int" in real.set_stream.__doc__
    assert callable(real.create_handle)
    assert callable(real.backend_version)
    for enumeration, member in (("data_type", "FLOAT"), ("data_type", "BFLOAT16"), ("heur_mode", "A"),
                                ("heur_mode", "FALLBACK"), ("numerical_note", "NONDETERMINISTIC"),
                                ("build_plan_policy", "HEURISTICS_CHOICE")):  # fmt: skip
        assert hasattr(getattr(real, enumeration), member)
    assert issubclass(real.cudnnGraphNotSupportedError, Exception)
