"""``xpcnn train --resume``: killed, stopped, damaged, out of space; the same end, or one clear sentence."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from xpcnn.cli import main
from xpcnn.data import Dataset
from xpcnn.kernels.threads import thread_count

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_and_resume.py"
PATIENCE = 60  # seconds
OPTIONS = (
    *("--model", "lenet5", "--epochs", 2, "--batch-size", 10, "--optimizer", "sgd", "--schedule", "cosine"),
    *("--set", "augment.crop=1", "--set", "augment.mixup=0.3", "--label-smoothing", 0.1, "--ema", 0.9),
    *("--device", "cpu", "--seed", 3),
)
FILES = {"config.toml", "metrics.jsonl", "model.safetensors", "curves.png", "epochs.csv", "checkpoint.safetensors"}
STEPS = 8


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "data.npz")


def write(path, seed=0, count=40):
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (count + 20, 12, 12), np.uint8), np.arange(count + 20) % 3
    np.savez(path, x_train=images[:count], y_train=labels[:count], x_test=images[count:], y_test=labels[count:])
    return path


def command(npz, out, *more):
    return [str(word) for word in ("train", "--dataset", f"npz:{npz}", "--out", out, *OPTIONS, *more)]


def ending(run):
    """Return the arrays and metrics that a run ended with, but for what a clock says."""
    from safetensors.numpy import load_file

    arrays = {
        (name, path): (array.dtype.str, array.shape, array.tobytes())
        for name in ("model", "checkpoint")
        for path, array in load_file(run / f"{name}.safetensors").items()
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{name: value for name, value in line.items() if "second" not in name} for line in lines]


@pytest.fixture(scope="module")
def whole(npz, tmp_path_factory):
    """Return the directory of a run that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(npz, out, "--quiet")) == 0
    return out


@pytest.fixture(scope="module")
def expected(whole):
    return ending(whole)


class Stop(BaseException):
    """What ends a process from within, at a point of the test's choice."""


@pytest.fixture
def stop_after(monkeypatch):
    """Return a context in which a training dies at once after so many steps, with a checkpoint after each of them."""

    @contextlib.contextmanager
    def stop_after(steps):
        from xpcnn.training.run import Run

        with monkeypatch.context() as patch:
            own = Run.step

            def step(run):
                own(run)
                if run.trainer.steps == steps:
                    raise Stop

            patch.setattr(Run, "step", step)
            with pytest.raises(Stop):
                yield

    return stop_after


@pytest.fixture
def half(npz, tmp_path, stop_after):
    """Return the directory of a run that died in its second epoch, after six of eight steps."""
    with stop_after(6):
        main(command(npz, tmp_path / "half", "--quiet", "--checkpoint-every", 0))
    assert {path.name for path in (tmp_path / "half").iterdir()} == FILES - {"curves.png"}
    return tmp_path / "half"


def test_a_run_goes_on_to_the_same_end(call, half, expected):
    status, out, err = call("train", "--resume", half)
    assert (status, err) == (0, "")
    assert f"going on with {half} after step 6." in out
    assert re.search(r"epoch 2/2 +loss", out)
    assert "epoch 1/2" not in out
    assert ending(half) == expected
    assert {path.name for path in half.iterdir()} == FILES


@pytest.mark.parametrize("steps", [1, 4, 5, 7, 8])
def test_from_after_every_step(call, npz, tmp_path, stop_after, expected, steps):
    with stop_after(steps):
        main(command(npz, tmp_path / "run", "--quiet", "--checkpoint-every", 0))
    status, out, err = call("train", "--resume", tmp_path / "run", "--quiet")
    assert (status, out) == (0, f"{tmp_path / 'run'}\n")
    assert err == f"going on with {tmp_path / 'run'} after step {steps}.\n"
    assert ending(tmp_path / "run") == expected


def test_a_finished_run_says_so(call, whole, expected):
    """And gets what it had no time for any more."""
    (whole / "curves.png").unlink()
    status, out, err = call("train", "--resume", whole)
    assert (status, err) == (0, "")
    assert out == f"{whole} is finished: all its 2 epochs are done.\n"
    assert ending(whole) == expected
    assert {path.name for path in whole.iterdir()} == FILES


def test_patience_ends_a_run_for_good(call, npz, tmp_path, stop_after):
    """Nothing can be learnt: some epoch is the best, and two later it ends, broken off or not."""
    patient = ("--epochs", 50, "--patience", 2, "--lr", 1e-6)
    status, out, _ = call(*command(npz, tmp_path / "run", *patient))
    assert status == 0
    assert "no better for 2 evaluations, so it ends here" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["test_accuracy"] for line in lines if line.get("epoch")]
    best = 1 + scores.index(max(scores))
    assert len(scores) == best + 2 < 50
    assert f"after epoch {best}." in out
    status, out, _ = call("train", "--resume", tmp_path / "run")
    assert (status, out) == (0, f"{tmp_path / 'run'} is finished: its patience came to an end.\n")
    with stop_after(4 * (best + 1) + 2):
        main(command(npz, tmp_path / "broken", "--quiet", "--checkpoint-every", 0, *patient))
    assert call("train", "--resume", tmp_path / "broken", "--quiet")[0] == 0
    assert ending(tmp_path / "broken") == ending(tmp_path / "run")


@pytest.mark.parametrize(
    "option",
    [("--epochs", 3), ("--lr", 0.1), ("--seed", 3), ("--no-drop-last",), ("--set", "lr=1"), ("--config", "x.toml"),
     ("--recipe", "mnist-fast"), ("--out", "x"), ("--batch-size", 10)],
    ids=lambda option: option[0],
)  # fmt: skip
def test_what_may_not_change(refused, half, option):
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    says = refused("train", "--resume", half, *option)
    assert f"so --resume takes no {option[0].replace('--no-', '--')}; it takes --device, --threads," in says
    assert {path.name: path.read_bytes() for path in half.iterdir()} == before


def test_what_may_change(call, half, npz, tmp_path, expected):
    shutil.copy(npz, tmp_path / "elsewhere.npz")
    options = ("--threads", 1, "--checkpoint-every", "1h", "--time-limit", "1h", "--capture", "off")
    status, _, _ = call(
        "train",
        "--resume",
        half,
        *options,
        "--device",
        "numpy",
        "--dataset",
        f"npz:{tmp_path / 'elsewhere.npz'}",
        "--quiet",
    )
    assert status == 0
    assert ending(half) == expected


def test_it_may_go_on_on_another_device(call, half, expected):
    pytest.importorskip("array_api_strict")
    assert call("train", "--resume", half, "--device", "array_api_strict", "--quiet")[0] == 0
    found = ending(half)
    for (name, path), (dtype, shape, content) in expected[0].items():
        values, wanted = (np.frombuffer(part, dtype) for part in (found[0][name, path][2], content))
        assert found[0][name, path][1] == shape
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4)


def test_other_data(refused, half, npz, tmp_path):
    """Be they elsewhere, or changed where they were."""
    before = (half / "checkpoint.safetensors").read_bytes()
    write(tmp_path / "other.npz", seed=1)
    says = refused("train", "--resume", half, "--dataset", f"npz:{tmp_path / 'other.npz'}")
    assert "the training data are not those that" in says
    with np.load(npz) as file:
        arrays = dict(file)
    arrays["x_test"] = arrays["x_test"] ^ 1
    np.savez(tmp_path / "other.npz", **arrays)
    says = refused("train", "--resume", half, "--dataset", f"npz:{tmp_path / 'other.npz'}")
    assert "the test data are not those that" in says
    assert (half / "checkpoint.safetensors").read_bytes() == before
    assert "does not exist" in refused("train", "--resume", half, "--dataset", f"npz:{tmp_path / 'none.npz'}")


def test_what_is_no_run(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, says in (
        ("none", "there is no run"), ("file", "there is no run"), ("empty", "so there is nothing to go on from"),
    ):  # fmt: skip
        assert says in refused("train", "--resume", tmp_path / path)
    assert not list((tmp_path / "empty").iterdir())


def test_a_lost_checkpoint(refused, half):
    """A run that has made steps does not begin anew."""
    (half / "checkpoint.safetensors").unlink()
    assert "has no checkpoint.safetensors, so there is nothing to go on from" in refused("train", "--resume", half)
    assert (half / "metrics.jsonl").read_text().count("\n") == 6


def test_a_run_that_died_before_its_first_checkpoint(call, npz, tmp_path, monkeypatch, expected):
    from xpcnn.training.run import Run

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda run: exec("raise Stop", {"Stop": Stop}))
        with pytest.raises(Stop):
            main(command(npz, tmp_path / "run", "--quiet"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.toml"]
    status, _, err = call("train", "--resume", tmp_path / "run", "--quiet")
    assert (status, err) == (0, f"going on with {tmp_path / 'run'} at the beginning, since no step had been made.\n")
    assert ending(tmp_path / "run") == expected


def test_a_damaged_configuration_does_not_matter(call, half, expected):
    """The checkpoint has the settings, too."""
    (half / "config.toml").write_text('[train]\nepochs = 1\nseed = "')
    assert call("train", "--resume", half, "--quiet")[0] == 0
    assert ending(half) == expected


def test_a_damaged_configuration_without_a_checkpoint(refused, half):
    for name in ("checkpoint.safetensors", "metrics.jsonl"):
        (half / name).unlink()
    (half / "config.toml").write_text("[train]\nepochs = ")
    assert "is not a run's configuration" in refused("train", "--resume", half)


def test_a_checkpoint_of_another_run(refused, call, half, npz, tmp_path):
    """Its settings are the run's then; but not its metrics."""
    assert call(*command(npz, tmp_path / "other", "--seed", 9, "--quiet"))[0] == 0
    shutil.copy(tmp_path / "other" / "model.safetensors", half / "checkpoint.safetensors")
    assert "is not a checkpoint of xpcnn" in refused("train", "--resume", half)
    shutil.copy(tmp_path / "other" / "checkpoint.safetensors", half)
    assert "lacks some of the epochs before the checkpoint" in refused("train", "--resume", half)


def resumed(run, capsys):
    """Go on with a run whose files may be damaged; return the exit status and the sentence."""
    capsys.readouterr()
    status = main(["train", "--resume", str(run), "--quiet"])
    err = capsys.readouterr().err
    if status:
        assert status == 2
        assert re.fullmatch(r"xpcnn: error: [^\n]+\.\n", err), err
    return status, err


@pytest.fixture
def copy_of(half, tmp_path):
    """Return a function that gives a fresh copy of the run each time."""

    def copy_of():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(half, tmp_path / "copy"))

    return copy_of


def test_a_checkpoint_cut_short(copy_of, capsys):
    """Wherever; nothing of the run is changed by the attempt."""
    run = copy_of()
    content = (run / "checkpoint.safetensors").read_bytes()
    metrics = (run / "metrics.jsonl").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    chosen = random.Random(0)
    places = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(content) - 1, len(content) // 2}
    for length in sorted(places | {chosen.randrange(len(content)) for _ in range(30)}):
        (run / "checkpoint.safetensors").write_bytes(content[:length])
        status, err = resumed(run, capsys)
        assert status == 2, length
        assert "checkpoint.safetensors" in err
        assert (run / "metrics.jsonl").read_bytes() == metrics
        assert (run / "checkpoint.safetensors").read_bytes() == content[:length]


@pytest.mark.parametrize("part", ["header", "arrays"])
def test_a_flipped_bit(copy_of, capsys, expected, part):
    """It is found; or it was where nothing is said, and the end is the right one."""
    run = copy_of()
    content = (run / "checkpoint.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    chosen, unharmed = random.Random(1), 0
    for trial in range(200 if part == "header" else 100):
        place = chosen.randrange(header) if part == "header" else chosen.randrange(header, len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << chosen.randrange(8)
        (run / "checkpoint.safetensors").write_bytes(damaged)
        status, _ = resumed(run, capsys)
        if status == 0:
            assert ending(run) == expected, (trial, place)
            unharmed += 1
            run = copy_of()
    assert unharmed <= 5
    assert part == "header" or not unharmed


def test_metrics_cut_short(copy_of, capsys, expected):
    """What lies after the checkpoint may be lost, the epochs before it may not."""
    run = copy_of()
    content = (run / "metrics.jsonl").read_bytes()
    chosen = random.Random(2)
    lengths = {0, 1, len(content) - 1, len(content) - 2, *(chosen.randrange(len(content)) for _ in range(8))}
    for length in lengths:
        (run / "metrics.jsonl").write_bytes(content[:length])
        status, err = resumed(run, capsys)
        if status:
            assert "metrics.jsonl lacks some of the epochs before the checkpoint" in err
            assert (run / "metrics.jsonl").read_bytes() == content[:length]
        else:
            assert length == len(content) - 1  # but for the end of its last line, it is whole
            assert ending(run) == expected
            run = copy_of()
    more = ('{"update": 5, "loss": 1.5}\n', '{"update": 5, "loss": 1.5}\n{"upda', '{"update": 5, "loss": 1.', "\0" * 50)
    for text in more:  # of an epoch that was not recorded to its end
        (run / "metrics.jsonl").write_bytes(content + text.encode())
        assert resumed(run, capsys)[0] == 0
        assert ending(run) == expected
        run = copy_of()


def test_metrics_with_a_flipped_bit(copy_of, capsys):
    """They have no checksum, but are never a traceback."""
    run, chosen = copy_of(), random.Random(3)
    content = (run / "metrics.jsonl").read_bytes()
    refusals = 0
    for _ in range(30):
        damaged = bytearray(content)
        damaged[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        (run / "metrics.jsonl").write_bytes(damaged)
        status, err = resumed(run, capsys)
        refusals += status == 2
        if status:
            assert "metrics.jsonl" in err
        else:
            run = copy_of()
    assert refusals > 10


@pytest.mark.parametrize(("call_name", "every"), [("os.fsync", 4), ("os.replace", 5)])
def test_no_space_at_any_moment(npz, tmp_path, capsys, monkeypatch, expected, call_name, every):
    """From some file that is to be flushed or renamed on, all fail; what was saved before is whole, and leads to the end."""
    for moment in range(1, 100, every):
        run, count = tmp_path / f"run{moment}", [0]
        own = getattr(os, call_name.partition(".")[2])

        def full(*arguments, own=own, count=count, moment=moment):
            if isinstance(arguments[0], int) and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
                return own(*arguments)  # directories are flushed where that is possible
            count[0] += 1
            if count[0] >= moment:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return own(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(call_name, full)
            capsys.readouterr()
            status = main(command(npz, run, "--quiet", "--checkpoint-every", 0))
            err = capsys.readouterr().err
        if count[0] < moment:
            assert status == 0
            break
        assert status == 2
        assert re.fullmatch(r"xpcnn: error: [^\n]*No space left on device\.\n", err)
        assert not list(run.glob(".*.part"))
        if not (run / "config.toml").exists():
            continue
        assert resumed(run, capsys)[0] == 0, moment
        assert ending(run) == expected, moment
    assert moment > 10


def full_disk(path):
    """Mount a file system of one megabyte, or return None."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True)
    return path if made.returncode == 0 else None


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="needs Linux's mount")
def test_a_full_disk(npz, tmp_path, expected, call, refused):
    """A real one, on which something else takes the space meanwhile; and one that can only be read."""
    disk = full_disk(tmp_path / "disk")
    if disk is None:
        pytest.skip("mounting needs more rights")
    try:
        assert call(*command(npz, disk / "run", "--time-limit", 0, "--quiet"))[0] == 0
        before = (disk / "run" / "checkpoint.safetensors").read_bytes()
        with contextlib.suppress(OSError), open(disk / "other", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        says = refused("train", "--resume", disk / "run", "--time-limit", "1h", "--quiet")
        assert says.endswith("No space left on device.")
        assert (disk / "run" / "checkpoint.safetensors").read_bytes() == before
        (disk / "other").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert refused("train", "--resume", disk / "run", "--time-limit", "1h").endswith("Read-only file system.")
        assert "Read-only file system" in refused(*command(npz, disk / "another", "--quiet"))
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert (disk / "run" / "checkpoint.safetensors").read_bytes() == before
        assert call("train", "--resume", disk / "run", "--time-limit", "1h", "--quiet")[0] == 0
        assert ending(disk / "run") == expected
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_limit_of_file_sizes(npz, tmp_path, expected, call):
    """Where nothing can be mounted: checkpoints are larger than files may be, from the second on."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    run = tmp_path / "run"
    assert call(*command(npz, run, "--time-limit", 0, "--quiet"))[0] == 0
    before = (run / "checkpoint.safetensors").read_bytes()
    assert len(before) > 50_000
    words = [sys.executable, "-m", "xpcnn", "train", "--resume", run, "--time-limit", "1h", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limited, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("File too large.")
    assert "Traceback" not in done.stderr
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert call("train", "--resume", run, "--time-limit", "1h", "--quiet")[0] == 0
    assert ending(run) == expected


def test_a_time_limit(call, npz, tmp_path, expected):
    """Each time it is given next to nothing, until it is done; each time it makes a step or ends an epoch."""
    limit = ("--time-limit", "0.000001s")
    status, _, err = call(*command(npz, tmp_path / "run", *limit, "--quiet"))
    for _ in range(1 + STEPS + 1):
        assert status == 0
        assert re.search(r"the time limit is reached after step \d+; go on with: .* train --resume .*run\.\n", err)
        assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
        status, _, err = call("train", "--resume", tmp_path / "run", *limit, "--quiet")
        if "the time limit" not in err:
            break
    assert (status, err) == (0, f"going on with {tmp_path / 'run'} after step 8.\n")
    assert ending(tmp_path / "run") == expected


def test_a_time_limit_is_for_one_call(call, npz, tmp_path, expected):
    assert call(*command(npz, tmp_path / "run", "--time-limit", 0, "--quiet"))[0] == 0
    status, _, err = call("train", "--resume", tmp_path / "run", "--quiet")
    assert (status, err) == (0, f"going on with {tmp_path / 'run'} after step 0.\n")
    assert ending(tmp_path / "run") == expected


def wait_for(condition, process):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


LONG = ("--epochs", 12, "--checkpoint-every", "1h")


@pytest.fixture(scope="module")
def long_ending(npz, tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "run"
    assert main(command(npz, out, "--quiet", *LONG)) == 0
    return ending(out)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_save(start, call, npz, tmp_path, long_ending, number, status, word):
    """Wherever it is, also between two checkpoints; what follows ends with the same bits."""
    run = tmp_path / "run"
    with start(*command(npz, run, *LONG)) as process:
        wait_for(lambda: (run / "metrics.jsonl").exists() and "update" in (run / "metrics.jsonl").read_text(), process)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    steps = re.fullmatch(rf"xpcnn: {word} after step (\d+); go on with: .*xpcnn train --resume {run}\.\n", err)
    assert steps, err
    assert 4 <= int(steps[1]) < 48
    assert call("train", "--resume", run, "--quiet")[2] == f"going on with {run} after step {steps[1]}.\n"
    assert ending(run) == long_ending


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_second_interrupt_waits_for_nothing(npz, tmp_path, monkeypatch, call, capsys, long_ending):
    """A step that hangs is left at once; then the last checkpoint is where it goes on."""
    from xpcnn.training import Trainer

    run, own = tmp_path / "run", Trainer.step

    def hangs(trainer, x, t):
        if trainer.steps == 10:
            signal.raise_signal(signal.SIGINT)
            assert trainer.is_busy
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second was not heeded")
        return own(trainer, x, t)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", hangs)
            status, _, err = call(*command(npz, run, "--quiet", *LONG))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert re.fullmatch(rf"xpcnn: interrupted after step 10; go on with: .*xpcnn train --resume {run}\.\n", err)
    _, _, err = call("train", "--resume", run, "--quiet")
    assert err == f"going on with {run} after step 8.\n"  # the end of the second epoch
    assert ending(run) == long_ending


@pytest.mark.parametrize("moment", ["before", "evaluating", "after"])
def test_an_interrupt_between_steps(npz, tmp_path, monkeypatch, call, long_ending, moment):
    """In an evaluation, while the averages are shown, and at the very end of an epoch."""
    from xpcnn.training import fitting
    from xpcnn.training.run import Run

    run, count = tmp_path / "run", [0]
    owner, name = {
        "before": (fitting, "evaluate"), "evaluating": (fitting, "evaluate"), "after": (Run, "_table"),
    }[moment]  # fmt: skip
    own = getattr(owner, name)

    def interrupted(*arguments, **more):
        count[0] += 1
        if count[0] == {"before": 1, "evaluating": 6, "after": 3}[moment]:
            signal.raise_signal(signal.SIGINT)
        return own(*arguments, **more)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            status, _, err = call(*command(npz, run, "--quiet", *LONG))
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert f"interrupted after step {0 if moment == 'before' else 8}; go on with" in err
    assert call("train", "--resume", run, "--quiet")[0] == 0
    assert ending(run) == long_ending


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_at_the_very_end(npz, tmp_path, monkeypatch, call, expected, number, status, word):
    """While curves are drawn: nothing is lost, and they are drawn when it goes on."""
    from xpcnn.cli import train

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "draw_curves", lambda *_: signal.raise_signal(number))
        found, out, err = call(*command(npz, run, "--quiet"))
    assert (found, out) == (status, "")
    assert re.fullmatch(rf"xpcnn: {word} after step 8; go on with: .*xpcnn train --resume {run}\.\n", err)
    assert call("train", "--resume", run)[1] == f"{run} is finished: all its 2 epochs are done.\n"
    assert {path.name for path in run.iterdir()} == FILES
    assert ending(run) == expected


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(refused, npz, tmp_path):
    """And going on leads there again."""
    run = tmp_path / "run"
    options = ("--lr", 1e30, "--checkpoint-every", 0, "--quiet")
    says = refused(*command(npz, run, *options))
    found = re.search(r"(no longer a number in step|no longer finite after step) (\d+), in epoch \d", says)
    assert found
    again = refused_after(run)
    assert found[0] in again


def refused_after(run):
    """Go on with a run that fails again, and return its sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "xpcnn", "train", "--resume", run, "--quiet"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.skipif(not SCRIPT.exists() or sys.platform == "win32", reason="the scripts are not part of this tree")
def test_killed_at_random_instants(monkeypatch, capsys):
    """Real processes and SIGKILL; the script does it fifty times."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("kill_and_resume")
    monkeypatch.setattr(sys, "argv", ["kill_and_resume.py", "--times", "3", "--images", "50", "--seed", "1"])
    assert script.main() == 0
    assert "3 of 3 killed and resumed runs" in capsys.readouterr().out


def test_the_comparison_would_see_a_difference(whole, tmp_path, expected):
    """Or all of the above would say nothing."""
    from safetensors.numpy import load_file, save_file

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    arrays = load_file(run / "checkpoint.safetensors")
    name = next(name for name in arrays if name.startswith("moments/"))
    arrays[name] = np.nextafter(arrays[name], np.float32(9))
    save_file(arrays, run / "checkpoint.safetensors")
    assert ending(run) != expected
    assert Dataset(np.zeros((1, 1, 2, 2), np.uint8), np.zeros(1, int)).fingerprint()


def test_another_number_of_threads_is_said(call, half):
    assert "threads instead of" not in call("train", "--resume", half, "--time-limit", 0)[1]
    says = call("train", "--resume", half, "--threads", 1, "--time-limit", 0)[1]
    assert ("with 1 threads instead of" in says) == (thread_count() != 1)
