"""Convolution by cuDNN, through NVIDIA's ``cudnn`` package: no columns in memory, and tensor cores for bf16 and TF32.

Arrays go down by address. cuDNN takes them in either order of memory, with filters in their own, and any number of
channels; results have the channels last. Only plans that give the same bits in every run are used. float32 is convolved
here only where TF32 is allowed: without tensor cores, cuDNN has no plan at all for many shapes.

A plan is made when a shape is first seen, which takes milliseconds and memory, and kept: run work once before recording
it. The choice is cuDNN's own guess or, under a policy that tunes, the fastest of its first few guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Array
from xpcnn.errors import BackendError
from xpcnn.kernels import policy
from xpcnn.kernels.cuda import layout, runtime, stream
from xpcnn.kernels.window import Ints, Window

X, WEIGHT, Y, BIAS = 1, 2, 3, 4  # how cuDNN knows the images, the filters, the convolved images, what is added to them
RESULT = {"forward": Y, "images": X, "filters": WEIGHT}  # by direction
ALIGNED = 16  # bytes: cuDNN's fast plans want addresses to be multiples
TRIED, TIMES = 8, 3  # plans that tuning compares, and runs of each
THREADS = 256
ENOUGH_BLOCKS, ENOUGH_VALUES = 1024, 4096  # blocks that fill a GPU; numbers that are worth a block
INSTALL = "pip install 'xpcnn[cudnn13]' (or 'xpcnn[cudnn12]' with CUDA 12)"


Shapes = tuple[tuple[int, Ints, bool], ...]  # arrays by number: their shapes, and whether the channels are last


class Tensor(NamedTuple):
    """What cuDNN is told about an array."""

    dim: Ints
    stride: Ints  # in elements


class Job(NamedTuple):
    """A convolution in one direction, in cuDNN's terms."""

    direction: str
    dtype: str
    tensors: tuple[tuple[int, Tensor], ...]
    pre_padding: Ints
    post_padding: Ints
    stride: Ints
    dilation: Ints


@dataclass
class Plan:
    """A graph that cuDNN can run, or why it cannot."""

    graph: Any = None
    space: int = 0  # bytes of workspace
    index: int | None = None  # of the plan that tuning chose
    reason: str = ""

    def run(self, addresses: dict[int, int], handle: int) -> None:
        """Compute, on the handle's stream."""
        room = runtime.empty((self.space,), np.uint8) if self.space else None
        at = stream.address(room) if room is not None else 0
        if self.index is None:
            self.graph.execute(addresses, at, handle=handle)
        else:
            self.graph.execute_plan_at_index(addresses, at, self.index, handle=handle)


def fits(x: Array, weight: Array, win: Window, groups: int) -> bool:
    """Whether cuDNN shall convolve such images with such filters, by the policy that holds.

    Raises
    ------
    BackendError
        When the policy demands cuDNN, and it is not there or has no way to do this.
    """
    wanted = policy.current().convolution
    if wanted == "im2col" or 0 in (*x.shape, *weight.shape, *win.out) or not stream.is_on_device(x):
        return False
    depthwise = groups > 1 and weight.shape[1] == 1
    if wanted == "auto" and (depthwise or _unfit(str(x.dtype), win) or _missing()):
        return False
    reason = _unfit(str(x.dtype), win) or _missing() or _forward_plan(x, weight, win).reason
    if reason and wanted == "cudnn":
        raise BackendError(f"cuDNN was asked for, but {reason}.")
    return not reason


def forward(x: Array, weight: Array, bias: Array | None, win: Window, groups: int) -> Array:
    """Return the convolution (N, F, *out) of images (N, C, *size) with filters (F, C / groups, *kernel)."""
    y = layout.empty((x.shape[0], weight.shape[0], *win.out), x.dtype, last=True)
    arrays = {X: _settled(x), WEIGHT: _settled(weight), Y: y}
    if bias is not None:
        arrays[BIAS] = _settled(bias)
    _run("forward", arrays, win)
    return y


def backward(
    dy: Array, x: Array, weight: Array, win: Window, groups: int, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Return (dx, dweight, dbias); dx lies in memory as x does."""
    arrays = {X: _settled(x), WEIGHT: _settled(weight), Y: _settled(dy)}
    dweight = runtime.empty(weight.shape, weight.dtype)
    _run("filters", {**arrays, WEIGHT: dweight}, win)
    dx = None
    if need_dx:
        dx = layout.empty(x.shape, x.dtype, layout.is_channels_last(x))
        _run("images", {**arrays, X: dx}, win)
    return dx, dweight, _filter_sums(arrays[Y])


def _run(direction: str, arrays: dict[int, Array], win: Window) -> None:
    """Compute one of the arrays from the others."""
    inputs = {X, WEIGHT, Y, BIAS} - {RESULT[direction]}
    here = stream.place()
    shapes = tuple((uid, tuple(array.shape), layout.is_channels_last(array)) for uid, array in arrays.items())
    plan = _plan(direction, str(arrays[X].dtype), shapes, win, here[0], policy.current().tune)
    if plan.reason:
        raise BackendError(f"cuDNN cannot convolve like this: {plan.reason}.")
    assert all(arrays[uid].dtype == arrays[X].dtype for uid in inputs & set(arrays))
    addresses = {uid: stream.address(array) for uid, array in arrays.items()}
    if policy.current().tune and plan.index is None:
        _tune(plan, addresses, _handle(here))
    plan.run(addresses, _handle(here))


def _unfit(dtype: str, win: Window) -> str:
    """Return why cuDNN is not to convolve such arrays, or nothing."""
    if dtype != "bfloat16" and not (dtype == "float32" and policy.current().products == "tf32"):
        return f"it convolves in bf16 or tf32, not in {dtype}"
    padding = zip(win.size, win.before, _after(win), win.span, win.stride, win.out, strict=True)
    if min(win.before) < 0 or any((n + b + a - span) // s + 1 != o for n, b, a, span, s, o in padding):
        return "it has no windows that stop short of the image's end"
    return ""


def _after(win: Window) -> Ints:
    """Return the padding after the image."""
    return tuple(max(0, e - b - n) for e, b, n in zip(win.extent, win.before, win.size, strict=True))


def _forward_plan(x: Array, weight: Array, win: Window) -> Plan:
    """Return the plan of a forward convolution without a bias."""
    last = layout.is_channels_last(x)
    y = (x.shape[0], weight.shape[0], *win.out)
    shapes = (X, tuple(x.shape), last), (WEIGHT, tuple(weight.shape), False), (Y, y, True)
    return _plan("forward", str(x.dtype), shapes, win, stream.place()[0], policy.current().tune)


def _described(direction: str, dtype: str, shapes: Shapes, win: Window) -> Job:
    """Put a convolution in cuDNN's terms, which has images of two or three axes."""
    missing = max(0, 2 - len(win.size))
    tensors = []
    for uid, shape, last in shapes:
        dim = (1, *shape, *(1,) * len(win.out)) if uid == BIAS else shape
        tensors.append((uid, _tensor((*dim[:2], *(1,) * missing, *dim[2:]), last)))
    fields = zip((0, 0, 1, 1), (win.before, _after(win), win.stride, win.dilation), strict=True)
    return Job(direction, dtype, tuple(tensors), *((filler,) * missing + values for filler, values in fields))


def _tensor(dim: Ints, last: bool) -> Tensor:
    """Return a tensor's lengths and strides, in the order of its axes or with the channels last."""
    order = (0, *range(2, len(dim)), 1) if last else tuple(range(len(dim)))
    stride = [prod(dim[axis] for axis in order[place + 1 :]) for place in range(len(dim))]
    return Tensor(dim, tuple(stride[order.index(axis)] for axis in range(len(dim))))


def _settled(x: Array) -> Array:
    """Return x in one of the two orders and where cuDNN's fast plans can read it: as it is, or copied."""
    last = layout.is_channels_last(x)
    x = layout.settled(x, last)
    if stream.address(x) % ALIGNED == 0:
        return x
    copy = layout.empty(x.shape, x.dtype, last)
    text = runtime.text("cudnn.cu", **runtime.types(x), INDEX="count", SOURCE="float")
    runtime.launch(text, "duplicate", runtime.blocks_for(x.size), x, copy, x.size)
    return copy


def _filter_sums(dy: Array) -> Array:
    """Return dY's sums over all but the filters: first in parts, then those."""
    filters, plane = dy.shape[1], prod(dy.shape[2:])
    if layout.is_channels_last(dy):
        plane = 1
    pixels = dy.size // filters
    apart = layout.power_of_two(filters, 32) if plane == 1 else 1
    chunks = max(1, min(ENOUGH_BLOCKS * apart // filters, pixels * apart // ENOUGH_VALUES))
    parts = runtime.empty((chunks, filters), np.float64 if str(dy.dtype) == "float64" else np.float32)
    sums = runtime.empty((filters,), dy.dtype)
    _add_up(dy, parts, pixels, plane, apart)
    _add_up(parts, sums, chunks, 1, layout.power_of_two(filters, 8))
    return sums


def _add_up(values: Array, sums: Array, pixels: int, plane: int, apart: int) -> None:
    """Write sums of values to an array of (chunks, F) or (F,)."""
    filters = sums.shape[-1]
    chunks = sums.size // filters
    blocks = -(-filters // apart) * chunks
    macros = {"SOURCE": runtime.NAMES[str(values.dtype)], "INDEX": "int" if values.size < 1 << 30 else "count"}
    text = runtime.text("cudnn.cu", **runtime.types(sums), **macros)
    runtime.launch(text, "filter_sums", blocks, values, sums, pixels, filters, plane, apart, chunks, threads=THREADS)


@lru_cache(4096)
def _plan(direction: str, dtype: str, shapes: Shapes, win: Window, device: int, tune: bool) -> Plan:
    """Let cuDNN choose how to convolve on a device; a plan that is tuned is another one."""
    here, job = stream.place(), _described(direction, dtype, shapes, win)
    stream.refuse_capture(here, "a cuDNN plan")
    api = _api()
    try:
        graph = _graph(api, job, _handle(here))
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([api.heur_mode.A, api.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([api.numerical_note.NONDETERMINISTIC])
        graph.check_support()
        graph.build_plans(api.build_plan_policy.HEURISTICS_CHOICE)
        return Plan(graph, graph.get_workspace_size())
    except (api.cudnnGraphNotSupportedError, RuntimeError) as error:
        if isinstance(error, BackendError):
            raise
        return Plan(reason=f"it has no plan for {job.direction} of {dict(job.tensors)} ({_first_line(error)})")


def _graph(api: Any, job: Job, handle: int) -> Any:
    """Describe a convolution, in cuDNN's own words."""
    kind = api.data_type.BFLOAT16 if job.dtype == "bfloat16" else api.data_type.FLOAT
    types = {
        "io_data_type": kind,
        **dict.fromkeys(("intermediate_data_type", "compute_data_type"), api.data_type.FLOAT),
    }
    graph = api.pygraph(name=job.direction, handle=handle, **types)
    found = dict(job.tensors)
    target = found.pop(RESULT[job.direction])
    given = {
        uid: graph.tensor(dim=list(t.dim), stride=list(t.stride), data_type=kind, uid=uid) for uid, t in found.items()
    }
    how = {name: list(getattr(job, name)) for name in ("pre_padding", "post_padding", "stride", "dilation")}
    if job.direction == "forward":
        result = graph.conv_fprop(image=given[X], weight=given[WEIGHT], **how)
        if BIAS in given:
            result = graph.bias(input=result, bias=given[BIAS])
    elif job.direction == "images":
        result = graph.conv_dgrad(loss=given[Y], filter=given[WEIGHT], **how)
    else:
        result = graph.conv_wgrad(image=given[X], loss=given[Y], **how)
    result.set_uid(RESULT[job.direction])
    result.set_output(True)
    result.set_dim(list(target.dim))
    result.set_stride(list(target.stride))
    result.set_data_type(kind)
    return graph


def _tune(plan: Plan, addresses: dict[int, int], handle: int) -> None:
    """Run the first few plans and keep the fastest: its choice, and so the last bits, may differ between runs."""
    stream.refuse_capture(stream.place(), "a comparison of cuDNN's plans")
    api, best = _api(), float("inf")
    for index in range(min(TRIED, plan.graph.get_execution_plan_count())):
        try:
            plan.graph.build_plan_at_index(index)
        except (api.cudnnGraphNotSupportedError, RuntimeError):  # not for this GPU, or deselected
            continue
        trial = Plan(plan.graph, plan.graph.get_workspace_size_plan_at_index(index), index)
        trial.run(addresses, handle)
        took = min(stream.milliseconds(partial(trial.run, addresses, handle)) for _ in range(TIMES))
        if took < best:
            best, plan.space, plan.index = took, trial.space, index


def _handle(here: stream.Place) -> int:
    """Return cuDNN's handle of a device and stream."""
    api, handle = _api(), _handle_of(here)
    api.set_stream(handle=handle, stream=here[1])
    return handle


@cache
def _handle_of(here: stream.Place) -> int:
    stream.refuse_capture(here, "cuDNN's handle")
    return int(_api().create_handle())


def missing() -> str:
    """Return why there is no cuDNN, or nothing."""
    return _missing()


@cache
def _missing() -> str:
    """Return why there is no cuDNN, or nothing."""
    try:
        _api().backend_version()
    except ImportError:
        return f"it is not installed: {INSTALL}"
    except (OSError, RuntimeError) as error:
        return f"its library cannot be used ({_first_line(error)}): {INSTALL}"
    return ""


@cache
def _api() -> Any:
    """Return NVIDIA's package; the parts of CUDA that cuDNN looks for are loaded first, from where CuPy has them."""
    stream.load("cudart", "nvrtc", "cublas")
    import cudnn

    return cudnn


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
