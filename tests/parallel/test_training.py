"""Several processes train one network: the same as one process does, up to the order of summation."""

import json
import os
import signal
import time

import mpi
import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as L
from xpcnn import models, ops, optim
from xpcnn.data import Augment, Dataset, Loader
from xpcnn.data.dataset import Part

pytestmark = pytest.mark.skipif(not mpi.available(), reason="mpiexec or mpi4py is not installed")

TRAIN = """
import sys
import numpy as np
import xpcnn as xc
from xpcnn import layers as L, models, optim, parallel
from xpcnn.data import Augment

kind, out = sys.argv[1:]
group = parallel.world()
rng = np.random.default_rng(0)
x, t = rng.integers(0, 256, (250, 1, 12, 12)).astype(np.uint8), rng.integers(0, 5, 250)
plain = models.simple_convnet((1, 12, 12), 5)
normed = L.Sequential(
    L.Conv2D(6, 3, padding=1, bias=False), L.BatchNorm(), L.ReLU(), L.Dropout(0.3), L.MaxPool2D(2),
    L.Residual(L.Sequential(L.Conv2D(6, 3, padding=1, bias=False), L.BatchNorm())), L.Flatten(), L.Affine(5),
    input_shape=(1, 12, 12),
)
options = {
    "plain": {}, "tiled": {"max_memory": "1GB"}, "weighted": {"loss": "half_squared_error"},
    "normed": {"sync_batchnorm": True, "ema": 0.9},
}[kind]
net = normed if kind == "normed" else plain
model = xc.Model(net, sys.argv[3] if len(sys.argv) > 3 else "cpu", seed=1, dtype="float64")
optimizer = optim.clip_by_norm(optim.adam(0.003), 5.0)
trainer = xc.Trainer(model, optimizer, group=group, **options)
if kind == "tiled":
    trainer._tiles = dict.fromkeys(range(1, 20), 3)  # as a small limit would have it
if kind == "weighted":  # a loop of one's own; every rank has the whole batch
    targets = np.eye(5)[t]
    losses = [float(trainer.step(x[i : i + 19], targets[i : i + 19])) for _ in range(8) for i in range(0, 250, 19)]
    accuracy = xc.evaluate(model, xc.Dataset(x[:31], t[:31]), group=group)
else:
    augment = Augment(crop=1, flip=True, mixup=0.2, cutmix=0.3) if kind == "normed" else None
    history = trainer.fit((x, t), (x[:31], t[:31]), epochs=8, batch_size=19, augment=augment)
    losses, accuracy = history.losses, [history.epochs[-1].test_accuracy, history.epochs[-1].test_loss]
assert trainer.steps == 112
if group.rank == 0:
    np.savez(out, losses=losses, accuracy=accuracy, **model.parameters(), **model.state())
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Return a function that trains with so many ranks and returns the arrays, each way once."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "train.py").write_text(TRAIN)
    known = {}

    def run(kind, size):
        if (kind, size) not in known:
            out = folder / f"{kind}{size}.npz"
            mpi.run(size, [folder / "train.py", kind, out], check=True)
            known[kind, size] = dict(np.load(out))
        return known[kind, size]

    return run


@pytest.mark.parametrize(("kind", "size"), [("plain", 2), ("tiled", 2), ("weighted", 3), ("normed", 2), ("normed", 4)])
def test_many_steps_of_several_ranks_are_those_of_one(train, kind, size):
    one, several = train(kind, 1), train(kind, size)
    assert set(one) == set(several)
    for name in one:
        assert abs(one[name] - several[name]).max() <= 1e-10, name
    assert one["losses"][-1] != one["losses"][0]


def test_without_synchronising_each_part_has_statistics_of_its_own(tmp_path):
    """The oracle is two models that see a half each, whose gradients and statistics are averaged by hand."""
    script = tmp_path / "half.py"
    script.write_text(
        "import sys, numpy as np, xpcnn as xc\n"
        "from xpcnn import layers as L, optim, parallel\n"
        "group = parallel.world()\n"
        "data = np.load(sys.argv[1])\n"
        "net = L.Sequential(L.Conv2D(3, 3), L.BatchNorm(), L.ReLU(), L.Flatten(), L.Affine(4), input_shape=(1, 6, 6))\n"
        "model = xc.Model(net, 'cpu', dtype='float64')\n"
        "xc.Trainer(model, optim.sgd(1.0), group=group).step(data['x'], data['t'])\n"
        "if group.rank == 0: np.savez(sys.argv[2], **model.parameters(), **model.state())\n"
    )
    rng = np.random.default_rng(3)
    x, t = rng.standard_normal((10, 1, 6, 6)), rng.integers(0, 4, 10)
    np.savez(tmp_path / "data.npz", x=x, t=t)
    mpi.run(2, [script, tmp_path / "data.npz", tmp_path / "out.npz"], check=True)
    net = L.Sequential(L.Conv2D(3, 3), L.BatchNorm(), L.ReLU(), L.Flatten(), L.Affine(4), input_shape=(1, 6, 6))
    model = xc.Model(net, "cpu", dtype="float64")
    params, state = model.parameters(), model.state()
    halves = []
    for rows in (slice(0, 5), slice(5, 10)):
        y, saved, new_state = net.forward(params, state, x[rows], train=True)
        dy = ops.softmax_cross_entropy_backward(ops.softmax_cross_entropy(y, t[rows])[1])
        halves.append((net.backward(params, dy, saved)[1], new_state))
    found = np.load(tmp_path / "out.npz")
    for name, value in params.items():
        np.testing.assert_allclose(
            found[name], value - (halves[0][0][name] + halves[1][0][name]) / 2, rtol=0, atol=1e-12
        )
    for name in state:
        np.testing.assert_allclose(found[name], (halves[0][1][name] + halves[1][1][name]) / 2, rtol=0, atol=1e-12)
        assert abs(halves[0][1][name] - halves[1][1][name]).max() > 1e-3


@pytest.mark.parametrize("augment", [None, Augment(flip=True, crop=1), Augment(mixup=0.4, cutmix=1.0)])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_parts_of_batches_are_the_batches(rng, augment, size):
    data = Dataset(rng.integers(0, 256, (23, 1, 8, 8)).astype(np.uint8), rng.integers(0, 4, 23), tuple("abcd"))
    whole = Loader(data, 7, seed=3, augment=augment)
    parts = [Loader(data, 7, seed=3, augment=augment, part=(rank, size)) for rank in range(size)]
    for batch, pieces in zip(whole.epoch(2), zip(*(part.epoch(2) for part in parts), strict=True), strict=True):
        for number, expected in enumerate(batch):
            np.testing.assert_array_equal(np.concatenate([piece[number] for piece in pieces]), expected)


def test_a_part_of_a_source_is_read_from_it(rng):
    data = Dataset(rng.integers(0, 256, (9, 1, 2, 2)).astype(np.uint8), rng.integers(0, 4, 9), tuple("abcd"))
    part = Part(data, slice(3, 8))
    assert len(part) == 5
    assert (part.image_shape, part.classes) == (data.image_shape, data.classes)
    np.testing.assert_array_equal(part.read(np.array([4, 0])), data.images[[7, 3]])


SETTINGS = [
    "--dataset",
    "npz:{data}",
    "--model",
    "lenet5",
    "--optimizer",
    "adam",
    "--batch-size",
    "16",
    "--dtype",
    "float64",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write a small data set, and return the options of a run with it."""
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    t = rng.integers(0, 4, 200)
    x = (rng.integers(0, 60, (200, 28, 28)) + 40 * t[:, None, None]).astype(np.uint8)
    np.savez(path, x_train=x[:160], y_train=t[:160], x_test=x[160:], y_test=t[160:])
    return [text.format(data=path) for text in SETTINGS]


def test_the_command_needs_nothing_but_a_launcher(data, tmp_path):
    options = ["train", *data, "--epochs", "3", "--set", "augment.flip=true"]
    for size in (1, 2, 4):
        done = mpi.run(size, [*options, "--out", tmp_path / f"run{size}"], check=True)
        assert done.stdout.count("epoch 3/3") == 1  # rank 0 alone speaks
        assert done.stderr == ""
        assert ("ranks, each with" in done.stdout) == (size > 1)
    one, *several = (xc.Model.load(tmp_path / f"run{size}" / "model.safetensors") for size in (1, 2, 4))
    for model in several:
        for path, value in one.parameters().items():
            np.testing.assert_allclose(model.parameters()[path], value, rtol=0, atol=1e-10)
    texts = [(tmp_path / f"run{size}" / "metrics.jsonl").read_text() for size in (1, 4)]
    lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
    for a, b in zip(*lines, strict=True):
        for name in ("loss", "test_accuracy", "train_accuracy", "test_loss"):
            if isinstance(a.get(name), float):
                assert a[name] == pytest.approx(b[name], abs=1e-10)
            else:
                assert a.get(name) == b.get(name)
    assert "ranks = 4" in (tmp_path / "run4" / "config.toml").read_text()


def test_a_killed_run_goes_on_also_with_other_ranks(data, tmp_path):
    options = ["train", *data, "--epochs", "15"]
    mpi.run(2, [*options, "--out", tmp_path / "whole"], check=True)
    expected = xc.Model.load(tmp_path / "whole" / "model.safetensors").parameters()
    for rank, sizes in ((1, (2, 2)), (0, (3, 1, 2))):
        run = tmp_path / f"run{rank}"
        arguments = [*options, "--out", run, "--checkpoint-every", "0.2s"]
        for size in sizes[:-1]:
            process = mpi.start(size, arguments)
            done = recorded(run)
            wait_for(lambda run=run, done=done: recorded(run) >= done + 2)
            os.kill(mpi.ranks(process)[min(rank, size - 1)], signal.SIGKILL)
            start = time.monotonic()
            _, err = process.communicate(timeout=60)
            assert time.monotonic() - start < 10
            assert process.returncode
            if size > 1:
                assert "has died, so all ranks end; go on with" in err
                assert err.count("xpcnn:") == 1
            arguments = ["train", "--resume", run, "--checkpoint-every", "0.2s"]
        done = mpi.run(sizes[-1], ["train", "--resume", run], check=True)
        assert "going on with" in done.stdout + done.stderr
        found = xc.Model.load(run / "model.safetensors").parameters()
        for path, value in expected.items():
            if set(sizes) == {2}:
                np.testing.assert_array_equal(found[path], value)
            else:
                np.testing.assert_allclose(found[path], value, rtol=0, atol=1e-9)


def recorded(run):
    """Return how many epochs a run has recorded."""
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"epoch"') if metrics.exists() else 0


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def several(*commands):
    """Return what mpiexec is given to start ranks with different options."""
    first, *rest = commands
    arguments = [*first]
    for options in rest:
        arguments += [":", *mpi.command(1, options)[1:]]
    return arguments


@pytest.mark.parametrize(
    ("others", "named"),
    [
        (["--seed", "1"], "settings"),
        (["--set", "augment.flip=true"], "settings"),
        (["--dataset", "mnist"], "data"),
    ],
)
def test_ranks_that_do_not_belong_together_are_noticed(data, tmp_path, others, named):
    options = ["train", *data, "--epochs", "1", "--out", str(tmp_path / "run")]
    done = mpi.run(1, several(options, [*options, *others]))
    assert done.returncode == 2
    assert done.stderr.count("xpcnn:") == 1
    assert f"the {named} of rank 1 differ from those of rank 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_other_data_of_the_same_name_are_noticed(data, tmp_path):
    other = tmp_path / "other.npz"
    path = data[1].removeprefix("npz:")
    arrays = dict(np.load(path))
    arrays["x_train"][0, 0, 0] += 1
    np.savez(other, **arrays)
    options = ["train", *data, "--epochs", "1", "--out", str(tmp_path / "run")]
    done = mpi.run(1, several(options, [*options, "--dataset", f"npz:{other}"]))
    assert done.returncode == 2
    assert "the data of rank 1 differ" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--epochs", "x"], "'x' is not a valid integer"),
        (["train", "--dataset", "nothing"], "dataset must be one of"),
        (["evaluate", "somewhere"], "evaluate runs in one process"),
        (
            ["train", "--lr", "1e12", "--optimizer", "sgd", "--dtype", "float32"],
            "the loss is no longer a number in step",
        ),
    ],
)
def test_a_fault_is_one_sentence_for_all_ranks(data, tmp_path, arguments, said):
    faulty = (
        [*arguments[:1], *data, *arguments[1:], "--out", tmp_path / "run"] if arguments[0] == "train" else arguments
    )
    done = mpi.run(3, faulty)
    assert done.returncode == 2
    assert done.stderr.count("xpcnn:") == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_all_between_two_steps(data, tmp_path):
    run = tmp_path / "run"
    process = mpi.start(2, ["train", *data, "--epochs", "500", "--out", run])
    wait_for(lambda: recorded(run))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "interrupted after step" in err
    assert mpi.run(2, ["train", "--resume", run, "--time-limit", "1s"], check=True)


def test_the_step_of_several_processes_checks_its_batch():
    class Two(xc.parallel.Group):
        size = 2

    model = xc.Model(models.simple_convnet((1, 12, 12), 5), "cpu")
    trainer = xc.Trainer(model, optim.sgd(0.1), group=Two())
    with pytest.raises(xc.XpcnnError, match="6 images, 5 targets"):
        trainer.step(np.zeros((6, 1, 12, 12), np.float32), np.zeros(5, int))


OWN = """
import sys
import numpy as np
import xpcnn as xc
from xpcnn import layers as L, optim, parallel

how, group = sys.argv[1], parallel.world()
rng = np.random.default_rng(1 if how == "data" and group.rank else 0)
x, t = rng.integers(0, 256, (60, 1, 8, 8)).astype(np.uint8), np.arange(60) % 3
net = L.Sequential(L.Conv2D(4, 3), L.ReLU(), L.Flatten(), L.Affine(3), input_shape=(1, 8, 8))
model = xc.Model(net, "cpu", seed=group.rank if how == "seed" else 0, dtype="float64")

def keeps(grads, state, params, step):
    last = state["last"]
    return {p: params[p] - 0.05 * last[p] for p in params}, {"last": dict(grads)}

delayed = optim.Optimizer("delayed", lambda params: {"last": {p: 0 * a for p, a in params.items()}}, keeps)
rule = optim.Optimizer("delayed", delayed.init, keeps, lambda step: (0.05,), lambda n, p, g, last: (p - n[0] * last, g))
trainer = xc.Trainer(model, {"keeps": delayed, "rule": rule}.get(how, optim.sgd(0.1)), group=group)

def on_step(epoch, done):
    if how == "raise" and group.rank == 1 and trainer.steps == 5:
        raise ValueError("on one rank alone")
    return how == "stop" and group.rank == 1 and trainer.steps == 5

history = trainer.fit((x, t), epochs=5, batch_size=10, on_step=on_step)
if group.rank == 0:
    np.savez(sys.argv[2], steps=trainer.steps, **model.parameters())
"""


@pytest.fixture
def own(tmp_path):
    """Return a function that runs a program of one's own."""
    (tmp_path / "own.py").write_text(OWN)
    return lambda size, how: mpi.run(size, [tmp_path / "own.py", how, tmp_path / f"{how}{size}.npz"], timeout=60)


@pytest.mark.parametrize("how", ["keeps", "rule"])
def test_an_optimizer_that_keeps_gradients_finds_them_again(own, tmp_path, how):
    for size in (1, 2):
        assert own(size, how).returncode == 0
    one, two = (dict(np.load(tmp_path / f"{how}{size}.npz")) for size in (1, 2))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-12)


def test_one_rank_that_fails_or_wants_to_stop_ends_all(own, tmp_path):
    done = own(2, "raise")
    assert done.returncode
    assert "ValueError: on one rank alone" in done.stderr
    assert own(2, "stop").returncode == 0
    assert np.load(tmp_path / "stop2.npz")["steps"] == 5


@pytest.mark.parametrize(("how", "said"), [("data", "the training data of rank 1 differ"), ("seed", "another seed")])
def test_a_program_of_ones_own_is_compared_too(own, how, said):
    done = own(2, how)
    assert done.returncode
    assert said in done.stderr


def test_commands_that_differ_are_noticed(data, tmp_path):
    options = ["train", *data, "--epochs", "1", "--out", str(tmp_path / "run")]
    done = mpi.run(1, several(options, ["train", "--resume", str(tmp_path)]))
    assert done.returncode == 2
    assert done.stderr.count("xpcnn:") == 1
    assert "the commands of rank 1 differ" in done.stderr
    done = mpi.run(1, several(options, [*options, "--device", "array_api_strict"]))
    assert done.returncode == 2
    assert "the devices of rank 1 differ" in done.stderr


def test_a_signal_to_any_rank_is_told(data, tmp_path):
    process = mpi.start(2, ["train", *data, "--epochs", "500", "--out", tmp_path / "run"])
    wait_for(lambda: recorded(tmp_path / "run"))
    os.kill(mpi.ranks(process)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert "terminated after step" in err
    assert process.returncode == 128 + signal.SIGTERM
