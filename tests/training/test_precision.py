"""bfloat16 and TF32: what is rounded, what stays in float32, and how large the error may be."""

from __future__ import annotations

import numpy as np
import pytest
from calls import not_compiled
from safetensors import safe_open

import xpcnn as xc
from xpcnn import kernels, layers, models, ops, optim
from xpcnn.kernels import cuda, policy
from xpcnn.layers.precision import Computation
from xpcnn.random import Key
from xpcnn.training.tiling import tiles_of_a_mean, tiles_of_any, whole_batch

SHAPE, CLASSES, COUNT = (2, 12, 12), 4, 24
ULP = 2.0**-8  # of bfloat16, half the distance from 1 to the next number
LOSS = ops.softmax_cross_entropy, ops.softmax_cross_entropy_backward
NETS = {
    "plain": models.simple_convnet(SHAPE, CLASSES, filters=5, kernel_size=3, hidden=8),
    "normalised": layers.Sequential(
        layers.Conv2D(6, 3, padding=1, bias=False), layers.BatchNorm(), layers.ReLU(),
        layers.Residual(layers.Sequential(layers.Conv2D(6, 3, padding=1, bias=False), layers.BatchNorm(), layers.ReLU6())),
        layers.GroupNorm(2), layers.MaxPool2D(2), layers.Flatten(), layers.Affine(CLASSES), input_shape=SHAPE,
    ),
    "graph": layers.Graph([
        ("conv", layers.Conv2D(6, 3, stride=2), "input"), ("act", layers.HardSwish(), "conv"), ("mean", layers.GlobalAvgPool(), "act"),
        ("tall", layers.Reshape((6, 1, 1)), "mean"), ("scale", layers.Scale((6, 1, 1), shift=True), "tall"), ("gate", layers.HardSigmoid(), "scale"),
        ("times", layers.Join("multiply"), ("act", "gate")), ("up", layers.Upsample2D(2), "times"), ("pad", layers.Pad2D(1, 0.5), "up"),
        ("wide", layers.Conv2D(6, 1), "pad"), ("less", layers.Join("subtract"), ("wide", "scale")), ("sum", layers.Join("add"), ("less", "pad", "gate")),
        ("all", layers.Join("concat"), ("sum", "pad")), ("pool", layers.MaxPool2D(4), "all"), ("end", layers.Affine(CLASSES), "pool"),
    ], input_shape=SHAPE),
}  # fmt: skip


@pytest.fixture
def halves(arrays):
    """Return a backend where models may compute in bfloat16; on the others there is a sentence that says so."""
    not_compiled(arrays)
    if kernels.of(arrays.xp).half_dtype(arrays.xp) is None:
        with pytest.raises(xc.BackendError, match=r"^precision bf16 needs a GPU"):
            xc.Model(NETS["plain"], arrays.backend, precision="bf16")
        pytest.skip("it has no bfloat16")
    return arrays


def batch(count=COUNT):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((count, *SHAPE)).astype(np.float32)
    return x, rng.integers(0, CLASSES, count)


def gradients(arrays, net, precision, way=whole_batch, loss=LOSS, **options):
    """Return a batch's loss, gradients and new state on the host."""
    model = xc.Model(net, arrays.backend, 3, precision=precision)
    x, t = batch()
    value, grads, state = way(model, loss, arrays(x), arrays(t), Key(0), **options)
    assert {str(a.dtype).removeprefix("torch.") for a in (value, *grads.values(), *state.values())} == {"float32"}
    assert list(grads) == list(model.parameters())
    host = arrays.backend.to_numpy
    return float(value), *({path: host(a) for path, a in part.items()} for part in (grads, state))


def distance(a, b):
    return np.linalg.norm((a - b).ravel()) / np.linalg.norm(b.ravel())


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_float32s_but_for_rounding(halves, name):
    loss, grads, state = gradients(halves, NETS[name], "bf16")
    exact_loss, exact, exact_state = gradients(halves, NETS[name], "float32")
    assert 0 < abs(loss - exact_loss) < 4 * ULP * exact_loss
    for path in exact:
        assert 0 < distance(grads[path], exact[path]) < 32 * ULP, path
    for path in exact_state:
        assert distance(state[path], exact_state[path]) < 2 * ULP, path
        assert (state[path] != rounded(state[path])).any(), f"{path} has but eight bits"


def rounded(x):
    """Round float32 numbers to bfloat16, by their bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("name", NETS)
def test_the_error_is_of_the_size_of_pytorchs(halves, name):
    """PyTorch's own autocast to bfloat16 on the same network and batch, both against PyTorch in float64."""
    torch = pytest.importorskip("torch")
    import torch_mirror

    net, (x, t) = NETS[name], batch()
    model = xc.Model(net, "cpu", 3)
    params, state = model.parameters(), model.state()

    def run(dtype, autocast):
        leaves = {path: torch.tensor(p, dtype=dtype, requires_grad=True) for path, p in params.items()}
        kept = {path: torch.tensor(p, dtype=dtype) for path, p in state.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = torch_mirror.run(net, leaves, kept, torch.tensor(x, dtype=dtype), train=True)
        loss = torch.nn.functional.cross_entropy(y.to(torch.float32 if autocast else dtype), torch.tensor(t))
        return dict(zip(leaves, (g.numpy() for g in torch.autograd.grad(loss, list(leaves.values()))), strict=True))

    exact, theirs = run(torch.float64, False), run(torch.float32, True)
    _, ours, _ = gradients(halves, net, "bf16")
    for path in exact:
        assert distance(theirs[path], exact[path]) > ULP / 16, f"autocast rounds nothing on the way to {path}"
        assert distance(ours[path], exact[path]) < 3 * distance(theirs[path], exact[path]), path


@pytest.mark.parametrize(("way", "tile"), [(tiles_of_a_mean, 7), (tiles_of_any, 7), (tiles_of_any, 12)])
def test_tiles_add_up_in_float32(halves, way, tile, monkeypatch):
    rounds = []
    usual = Computation.parameters
    monkeypatch.setattr(Computation, "parameters", lambda self, params: rounds.append(1) or usual(self, params))
    value, grads, _ = gradients(halves, NETS["plain"], "bf16", way, tile=tile)
    assert len(rounds) == 1, "the parameters are rounded once in a step"
    whole, expected, _ = gradients(halves, NETS["plain"], "bf16")
    assert value == pytest.approx(whole, rel=1e-4)
    for path in expected:
        assert distance(grads[path], expected[path]) < 4 * ULP


def test_a_loss_of_ones_own_sees_float32(halves):
    seen = []

    def forward(y, t):
        seen.append(y.dtype)
        return LOSS[0](y, t)

    gradients(halves, NETS["plain"], "bf16", loss=(forward, LOSS[1]))
    assert seen == [halves.xp.float32]


def test_small_steps_are_not_lost(halves):
    """A step of a 4096th of a weight is nothing to bfloat16; the weights that are trained keep it."""
    model = xc.Model(NETS["plain"], halves.backend, 3, precision="bf16")
    x, t = batch()
    before = {path: halves.backend.to_numpy(p).copy() for path, p in model.parameters().items()}
    _, grads, _ = whole_batch(model, LOSS, halves(x), halves(t), Key(0))
    grads = {path: halves.backend.to_numpy(g).copy() for path, g in grads.items()}
    trainer = xc.Trainer(model, optim.sgd(1e-4, momentum=0.0))
    trainer.step(x, t)
    for path, p in model.parameters().items():
        assert p.dtype == halves.xp.float32
        expected = before[path].astype(np.float64) - 1e-4 * grads[path].astype(np.float64)
        np.testing.assert_allclose(halves.backend.to_numpy(p), expected, rtol=3e-7, atol=1e-9, err_msg=path)
        moved = np.abs(1e-4 * grads[path]) < ULP / 4 * np.abs(before[path])
        assert path.endswith("bias") or moved.any()


@pytest.mark.parametrize("name", NETS)
def test_predictions_come_back_in_float32(halves, name):
    x, _ = batch()
    exact = xc.Model(NETS[name], halves.backend, 3).predict(x)
    model = xc.Model(NETS[name], halves.backend, 3, precision="bf16")
    found = model.predict(x, batch_size=7)
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    assert 0 < distance(found, exact) < 8 * ULP
    there = model.predict(halves(x))
    halves.check(there, found, halves(x), 1e-6 if halves.id == "torch" else 1e-2)
    np.testing.assert_array_equal(model.predict(x[:0]), np.zeros((0, CLASSES), np.float32))


def test_it_learns(halves):
    x, t = batch(48)
    x[np.arange(48), 0, 2 * t, :] += 3.0
    model = xc.Model(NETS["normalised"], halves.backend, precision="bf16")
    history = xc.Trainer(model, optim.adam(0.01)).fit((x, t), epochs=8, batch_size=16)
    assert history.epochs[-1].train_accuracy > 0.95
    assert all(str(p.dtype).endswith("float32") for p in (*model.parameters().values(), *model.state().values()))


def test_recorded_steps_are_the_same(graphs):
    """On CUDA the steps of `fit` are recorded as a graph, the rounding of the parameters within it."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (40, *SHAPE), np.uint8), rng.integers(0, CLASSES, 40)
    ends = []
    for capture in ("auto", "off"):
        model = xc.Model(NETS["plain"], graphs.backend, precision="bf16")
        trainer = xc.Trainer(model, optim.adagrad(0.02), capture=capture)
        history = trainer.fit(data, epochs=2, batch_size=16)
        assert trainer.capture_note == ""
        ends.append((history.losses, {path: graphs.backend.to_numpy(p) for path, p in model.parameters().items()}))
    assert ends[0][0] == ends[1][0]
    for path in ends[0][1]:
        np.testing.assert_array_equal(ends[0][1][path], ends[1][1][path], err_msg=path)


def test_parameters_of_normalisations_are_not_rounded():
    class Shift(layers.Layer):
        wide_parameters = True

        def output_shape(self, input_shape):
            return input_shape

        def parameters(self, input_shape):
            return {"by": layers.Parameter((1,), 1, optim.Zeros())}

        def forward(self, params, state, x, *, train=False, key=None):
            raise NotImplementedError

        def backward(self, params, dy, saved, *, need_dx=True):
            raise NotImplementedError

    pytest.importorskip("torch")
    net = layers.Sequential(
        layers.Parallel(
            [models.resnet20((3, 8, 8), 4), layers.Sequential(layers.Flatten(), layers.Affine(4), Shift())]
        ),
        layers.LayerNorm(),
    )
    model = xc.Model(net, "torch", input_shape=(3, 8, 8), precision="bf16")
    given = model.computation.parameters(model.parameters())
    assert list(given) == list(model.parameters())
    for path, p in given.items():
        wide = path.endswith(("/gamma", "/beta", "/by"))
        assert str(p.dtype) == ("torch.float32" if wide else "torch.bfloat16"), path


def test_a_model_of_one_layer_can_be_a_normalisation():
    pytest.importorskip("torch")
    model = xc.Model(layers.BatchNorm(), "torch", input_shape=(2, 3), precision="bf16")
    assert {str(p.dtype) for p in model.computation.parameters(model.parameters()).values()} == {"torch.float32"}


def test_what_is_saved_is_float32_whatever_computed_it(halves, tmp_path):
    model = xc.Model(NETS["normalised"], halves.backend, precision="bf16")
    xc.Trainer(model, optim.adam(0.01)).step(*batch())
    model.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118
    plain = xc.Model.load(tmp_path / "m.safetensors", "cpu") if halves.id == "torch" else None
    again = xc.Model.load(tmp_path / "m.safetensors", halves.backend, precision="bf16")
    assert (again.precision, again.conv_engine) == ("bf16", "auto")
    x, _ = batch()
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    if plain is not None:
        assert plain.precision == "float32"
        for path, p in plain.parameters().items():
            np.testing.assert_array_equal(p, halves.backend.to_numpy(model.parameters()[path]))


def test_plans_count_the_copies(halves):
    model = xc.Model(NETS["plain"], halves.backend, precision="bf16")
    plan, plain = model.plan(100), xc.Model(NETS["plain"], halves.backend).plan(100)
    count = model.net.parameter_count(SHAPE)
    assert plan.parameters == plain.parameters == 4 * count
    assert plan.gradients == 6 * count
    assert plan.kept >= plain.kept // 2


@pytest.mark.parametrize(
    ("device", "options", "says"),
    [
        ("cpu", {"precision": "bf16"}, "precision bf16 needs a GPU (or --device torch, on the CPU), but"),
        ("array_api_strict", {"precision": "bf16"}, "precision bf16 needs a GPU"),
        ("cpu", {"precision": "tf32"}, "precision tf32 needs CUDA and a GPU of compute capability 8.0 or higher"),
        ("torch", {"precision": "tf32"}, "precision tf32 needs CUDA and a GPU of compute capability 8.0 or higher"),
        ("torch", {"precision": "bf16", "dtype": "float64"}, "precision bf16 is for models of dtype float32, not"),
        ("cpu", {"precision": "tf32", "dtype": "float64"}, "precision tf32 is for models of dtype float32, not"),
        ("cpu", {"precision": "half"}, "precision must be one of float32, tf32, bf16, not 'half'."),
        ("cpu", {"precision": None}, "precision must be one of float32, tf32, bf16, not None."),
        ("cpu", {"precision": ["bf16"]}, "precision must be one of float32, tf32, bf16, not ['bf16']."),
        ("cpu", {"conv_engine": "cudnn"}, "conv_engine cudnn needs CUDA, but the device is numpy on cpu."),
        ("torch", {"conv_engine": "cudnn"}, "conv_engine cudnn needs CUDA, but the device is torch on cpu."),
        ("cpu", {"conv_engine": "fft"}, "conv_engine must be one of auto, im2col, cudnn, not 'fft'."),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(device, options, says, tmp_path):
    pytest.importorskip(device if device != "cpu" else "numpy")
    with pytest.raises(xc.XpcnnError) as caught:
        xc.Model(NETS["plain"], device, **options)
    assert str(caught.value).startswith(says)
    dtype = options.pop("dtype", "float32")
    xc.Model(NETS["plain"], "cpu", dtype=dtype).save(tmp_path / "m.safetensors")
    with pytest.raises(xc.XpcnnError) as caught:
        xc.Model.load(tmp_path / "m.safetensors", device, **options)
    assert str(caught.value).startswith(says)
    assert not isinstance(caught.value, xc.DataError)


@pytest.fixture
def gpu(graphs, monkeypatch):
    """Return CUDA's kernels with a GPU that has all it takes."""
    if graphs.id != "cupy":
        monkeypatch.setattr(cuda, "capability", lambda device: 90)
    return graphs


def test_cudnn_is_refused_before_anything_is_computed(graphs, monkeypatch):
    with pytest.raises(xc.BackendError, match="tf32 or bf16, not at float32"):
        xc.Model(models.lenet5(), graphs.backend, conv_engine="cudnn")
    monkeypatch.setattr(kernels.of(graphs.xp), "without_cudnn", lambda: "it is on holiday")
    with pytest.raises(xc.BackendError, match="cuDNN was asked for, but it is on holiday"):
        xc.Model(models.lenet5(), graphs.backend, precision="bf16", conv_engine="cudnn")


@pytest.mark.parametrize("options", [{"precision": "tf32"}, {"conv_engine": "im2col"}, {"precision": "bf16"}, {}])
def test_steps_and_predictions_hold_the_kernels_to_it(gpu, options, monkeypatch):
    seen = []
    engine = cuda.engine("convolution", gpu(np.zeros(1, np.float32)))
    for name in ("forward", "backward"):
        usual = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *given, usual=usual: seen.append(policy.current()) or usual(*given))
    net = layers.Sequential(layers.Conv2D(3, 3), layers.Flatten(), layers.Affine(CLASSES))
    model = xc.Model(net, gpu.backend, input_shape=SHAPE, **options)
    x, t = batch()
    xc.Trainer(model, optim.sgd(0.1)).step(x, t)
    model.predict(x)
    expected = policy.Policy("tf32" if "tf32" in options.values() else "float32", options.get("conv_engine", "auto"))
    assert seen == [expected] * 3
    assert policy.current() == policy.Policy()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_old_gpus_are_refused(graphs, precision, monkeypatch):
    monkeypatch.setattr(cuda, "capability", lambda device: 75)
    with pytest.raises(xc.BackendError, match=r"^precision \w+ needs a GPU of compute capability 8.0 .* has 7\.5\.$"):
        xc.Model(NETS["plain"], graphs.backend, precision=precision)
    xc.Model(NETS["plain"], graphs.backend)
