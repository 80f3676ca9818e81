"""The facts that the CUDA design rests on, each tried, and gradients beside float64's."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import xpcnn as xc
from xpcnn import kernels, ops
from xpcnn.backend import resolve_backend
from xpcnn.kernels import policy
from xpcnn.kernels.cuda import runtime
from xpcnn.random import Key
from xpcnn.training.tiling import whole_batch
from xpcnn.training.trainer import LOSSES

NETWORKS = {"simple_convnet": xc.models.simple_convnet, "resnet20": xc.models.resnet20}
PRODUCTS = [(30, 25, 57600), (100, 4320, 100), (64, 576, 8192), (33, 7, 1)]  # (m, k, n) of m×k by k×n
CONVOLUTIONS = [(16, 16, 3, 1), (64, 128, 3, 2), (32, 64, 1, 1)]  # channels, filters, kernel, stride
REPLAYS = 30
TF32 = 3e-3  # how far such products may be off, relative to the largest result


def gradients(task):
    """Return how far gradients of one batch in float32 are from float64's of NumPy: of the largest number of each.

    ``cpu`` says the same of xpcnn's float32 on the CPU: what the precision itself costs.
    """
    net = NETWORKS[task["network"]]()
    x, t = _batch(net, task["batch"])
    drawn = xc.Model(net, "cpu")
    values = drawn.parameters() | drawn.state()
    exact = _gradients(xc.Model(net, "cpu", dtype="float64", values=values), x, t)
    found = {}
    for name, device in (("device", task["device"]), ("cpu", "cpu")):
        own = _gradients(xc.Model(net, device, values=values), x, t)
        found[name] = {path: float(np.abs(own[path] - exact[path]).max() / np.abs(exact[path]).max()) for path in exact}
    return {"errors": found, "largest": {name: max(errors.values()) for name, errors in found.items()}}


def _batch(net, count):
    if tuple(net.input_shape) == (1, 28, 28):
        train, _ = xc.load_dataset("mnist")
        return train.images[:count], train.labels[:count]
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *net.input_shape), np.uint8), rng.integers(0, 10, count)


def _gradients(model, x, t):
    backend = model.backend
    with model.computing():
        loss = LOSSES["softmax_cross_entropy"]
        _, grads, _ = whole_batch(model, loss, backend.asarray(x), backend.asarray(t), Key(0))
    return {path: backend.to_numpy(grad).astype(np.float64) for path, grad in grads.items()}


def find(task):
    """Try one fact; on the CPU the tests' emulator stands in for CUDA."""
    with ExitStack() as entered:
        if task["device"] != "cuda":
            sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
            import emulator
            from pytest import MonkeyPatch  # noqa: PT013  no test is run here

            if not emulator.compiler():
                raise SystemExit("a trial on the CPU needs a C++ compiler")
            patch = entered.enter_context(MonkeyPatch.context())
            emulator.install(patch)
        backend = resolve_backend(task["device"])
        entered.enter_context(backend.context())
        return FACTS[task["fact"]](backend, task)


def products(backend, task):
    """Compare products of cuBLAS, recorded and replayed, bit for bit with those computed at once."""
    rng, wrong = np.random.default_rng(0), []
    for m, k, n in PRODUCTS:
        first, second = ([rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n))] for _ in range(2))
        expected = [_product(backend, *pair) for pair in (first, second)]
        a, b = map(runtime.upload, first)
        out = runtime.empty((m, n), a.dtype)
        work = partial(runtime.matmul, a, b, out)
        with runtime.Recorder() as recorder:
            replay = recorder.record(work, work)
        for pair, right in zip((first, second), expected, strict=True):
            a[...], b[...] = map(runtime.upload, pair)
            out[...] = np.nan
            with recorder:
                replay()
            if not _same(backend.to_numpy(out), right):
                wrong.append([m, k, n])
    return {"holds": not wrong, "said": f"{len(PRODUCTS)} shapes, twice each with other factors", "wrong": wrong}


def _product(backend, a, b):
    a, b = map(runtime.upload, (a, b))
    out = runtime.empty((a.shape[0], b.shape[1]), a.dtype)
    runtime.matmul(a, b, out)
    return backend.to_numpy(out)


def cudnn(backend, task):
    """Record a convolution and both of its gradients by plans of cuDNN, without PyTorch."""
    if task["device"] == "cuda" and find_spec("cudnn") is None:
        return {"holds": None, "said": "not tried: nvidia-cudnn-frontend is not installed"}
    on_gpu = task["device"] == "cuda"
    worst, differing = 0.0, 0
    chosen = {"convolution": "cudnn", "products": "tf32"} if on_gpu else {}  # it has no float32 without TF32
    with policy.use(**chosen):
        for case in CONVOLUTIONS:
            apart, same = _convolution(backend, *case)
            worst, differing = max(worst, apart), differing + (not same)
    alone, used = "torch" not in sys.modules, "cudnn" in sys.modules or not on_gpu
    said = f"{len(CONVOLUTIONS)} convolutions, at most {worst:.0e} from float64, {differing} replayed with other bits"
    said += "" if used else "; cuDNN was not used"
    holds = alone and used and not differing and worst < (TF32 if on_gpu else 1e-5)
    return {"holds": holds, "said": said, "without_torch": alone, "worst": worst}


def _convolution(backend, channels, filters, kernel, stride):
    """Return how far a recorded convolution and its gradients are from float64's, and whether bits are as eager's."""
    rng, options = np.random.default_rng(0), {"stride": stride, "padding": kernel // 2}
    size = (16 + 2 * options["padding"] - kernel) // stride + 1
    shapes = (32, channels, 16, 16), (filters, channels, kernel, kernel), (32, filters, size, size)
    host = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    wide = _forward_and_backward(*(array.astype(np.float64) for array in host), options)
    x, weight, dy = map(runtime.upload, host)
    results = [runtime.empty(array.shape, x.dtype) for array in wide]
    keep = kernels.of(backend.xp).engine("capture", x).replace

    def work():
        for target, source in zip(results, _forward_and_backward(x, weight, dy, options), strict=True):
            keep(target, source)

    work()
    eager = [backend.to_numpy(array).copy() for array in results]
    with runtime.Recorder() as recorder:
        replay = recorder.record(work, work)
    for array in results:
        array[...] = np.nan
    with recorder:
        replay()
    found = [backend.to_numpy(array) for array in results]
    apart = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, wide, strict=True))
    return apart, all(map(_same, found, eager))


def _forward_and_backward(x, weight, dy, options):
    y, saved = ops.conv2d(x, weight, None, **options)
    return [y, *(grad for grad in ops.conv2d_backward(dy, saved) if grad is not None)]


def pool(backend, task):
    """Replay while memory is taken, written to and let go of in between: neither may disturb the other."""
    rng, xp = np.random.default_rng(0), backend.xp
    x = runtime.upload(rng.standard_normal((64, 8, 32, 32), dtype=np.float32))
    weights = [runtime.upload(0.1 * rng.standard_normal((8, 8, 3, 3), dtype=np.float32)) for _ in range(4)]
    out = runtime.empty(x.shape, x.dtype)
    keep = kernels.of(xp).engine("capture", x).replace

    def work():
        y = x
        for weight in weights:
            y = ops.conv2d(y, weight, None, padding=1)[0]
        keep(out, y)

    work()
    expected = backend.to_numpy(out).copy()
    with runtime.Recorder() as recorder:
        replay = recorder.record(work, work)
    held, wrong = [], 0
    for number in range(REPLAYS if task["device"] == "cuda" else 2):
        held += [xp.full((int(rng.integers(1, 1 << 21)),), float(number), dtype=xp.float32) for _ in range(8)]
        out[...] = np.nan
        with recorder:
            replay()
        wrong += not _same(backend.to_numpy(out), expected)
        marks = [float(array[-1]) for array in held[-8:]]
        wrong += any(mark != number for mark in marks)
        held = held[4:]  # and let go of the rest
    return {"holds": not wrong, "said": f"{wrong} of {REPLAYS} replays and memory beside them disturbed"}


def training(backend, task):
    """Compare parameters after recorded training bit for bit with those after single steps; the last batch is short."""
    images, labels = _batch(xc.models.simple_convnet(), 950 if task["device"] == "cuda" else 50)
    found, note = [], ""
    for chosen in ("off", "auto"):
        model = xc.Model(xc.models.simple_convnet(), backend)
        trainer = xc.Trainer(model, xc.optim.adagrad(0.06), capture=chosen)
        losses = trainer.fit((images, labels), epochs=2, batch_size=len(images) // 9).losses
        found.append([np.asarray(losses), *map(backend.to_numpy, model.parameters().values())])
        note = trainer.capture_note
    same = all(map(_same, *found))
    said = f"not recorded: {note}" if note else f"{len(found[0][0])} updates, {'same' if same else 'other'} bits"
    return {"holds": same and not note, "said": said}


def _same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


FACTS = {"products": products, "cudnn": cudnn, "pool": pool, "training": training}
