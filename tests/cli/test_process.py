"""The command line in a process of its own: interrupts, terminals, pipes that close."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import xpcnn as xc
import xpcnn.__main__ as xpcnn_main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")

PATIENCE = 60  # seconds


def interrupted(process):
    """Send what Ctrl-C sends and return the exit status and what was printed on standard error."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    return process.returncode, err


def read_until(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was not printed: {process.communicate()}")


def test_an_interrupt_keeps_the_best_model_so_far(start, data, tmp_path):
    out = tmp_path / "run"
    with start("train", "--data-dir", data, "--epochs", 1000, "--device", "cpu", "--out", out) as process:
        read_until(process, "epoch    2/1000")
        status, err = interrupted(process)
    assert status == 130
    assert re.fullmatch(rf"xpcnn: interrupted after step \d+; go on with: .*xpcnn train --resume {out}.\n", err)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    accuracies = [record["test_accuracy"] for record in records if record.get("epoch")]
    assert len(accuracies) >= 2
    assert {path.name for path in out.iterdir()} == {
        "config.toml", "metrics.jsonl", "model.safetensors", "curves.png", "epochs.csv", "checkpoint.safetensors",
    }  # fmt: skip
    with start("evaluate", out, "--device", "cpu", "--json") as process:
        found = json.loads(process.communicate(timeout=PATIENCE)[0])
    assert found["accuracy"] == max(accuracies)


@pytest.mark.parametrize("moment", ["3,000 training", "before training"])
def test_an_interrupt_before_the_first_epoch_ends(start, data, tmp_path, moment):
    """It comes while the untrained network is measured, and in the first epoch."""
    out = tmp_path / "run"
    with start("train", "--data-dir", data, "--batch-size", 1, "--device", "cpu", "--out", out) as process:
        read_until(process, moment)
        status, err = interrupted(process)
    assert status == 130
    assert re.fullmatch(rf"xpcnn: interrupted after step \d+; go on with: .*xpcnn train --resume {out}.\n", err)
    assert xc.Model.load(out / "model.safetensors", "cpu").output_shape == (10,)
    assert (out / "curves.png").exists()


def test_an_interrupt_of_another_command(start, run):
    with start(
        "evaluate", run, "--dataset", "mnist", "--data-dir", xc.data.dataset.SHIPPED, "--split", "train"
    ) as process:
        assert "auto chose" in process.stderr.readline()
        time.sleep(0.2)
        status, err = interrupted(process)
    assert status == 130
    assert err.strip().endswith("xpcnn: interrupted.")


def on_a_terminal(start, environment, *arguments, interrupt_at=None):
    """Run a command whose standard output is a terminal; return its exit status and what it wrote there."""
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 30, 120, 0, 0))
    written = b""
    try:
        with start(*arguments, stdout=follower, env=environment) as process:
            os.close(follower)
            while True:
                try:
                    piece = os.read(leader, 1 << 16)
                except OSError:  # how Linux ends a terminal without writers
                    piece = b""
                if not piece:
                    break
                written += piece
                if interrupt_at and interrupt_at in written:
                    process.send_signal(signal.SIGINT)
                    interrupt_at = None
            process.wait(timeout=PATIENCE)
    finally:
        os.close(leader)
    return process.returncode, written.decode()


def test_an_interrupt_while_it_is_imported(monkeypatch, capsys):
    own = builtins.__import__

    def interrupted(name, *arguments):
        if name == "xpcnn.cli":
            raise KeyboardInterrupt
        return own(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert xpcnn_main.start() == 130
    assert capsys.readouterr().err == "xpcnn: interrupted.\n"


def test_a_terminal_shows_a_live_bar(start, environment, data, tmp_path):
    command = (
        "train",
        "--data-dir",
        data,
        "--epochs",
        3,
        "--batch-size",
        25,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    status, text = on_a_terminal(start, environment, *command)
    assert status == 0
    assert "\x1b[2K" in text  # lines are written over
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert len(set(re.findall(r"epoch \d/3 [━╸╺ ]+ +(\d+) %", plain))) >= 2
    assert re.search(r"epoch 3/3 +loss [\d.]+ +train +[\d.]+ % +test", plain)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_an_interrupt_gives_the_terminal_back(start, environment, data, tmp_path):
    command = ("train", "--data-dir", data, "--epochs", 1000, "--device", "cpu", "--out", tmp_path / "run")
    status, text = on_a_terminal(start, environment, *command, interrupt_at=b"epoch    1/1000   loss")
    assert status == 130
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_pipe_gets_plain_lines(start, few, tmp_path):
    command = ("train", "--data-dir", few, "--epochs", 2, "--device", "cpu", "--out", tmp_path / "run")
    with start(*command, env=os.environ | {"FORCE_COLOR": "1"}) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert "\x1b" not in out
    assert "\r" not in out
    assert [line[:9] for line in out.splitlines()[3:6]] == ["before tr", "epoch 1/2", "epoch 2/2"]


def test_faults_of_a_process(start, tmp_path):
    with start("train", "--data-dir", tmp_path / "none") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert err == f"xpcnn: error: the data directory {tmp_path / 'none'} does not exist.\n"


def test_training_goes_on_when_its_reader_goes_away(start, few, tmp_path):
    with start("train", "--data-dir", few, "--epochs", 5, "--device", "cpu", "--out", tmp_path / "run") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=PATIENCE) == 0
        assert process.stderr.read() == ""
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] == 5
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(start):
    with open("/dev/full", "w") as full, start("info", stdout=full) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err == "xpcnn: error: No space left on device.\n"


def test_a_closed_standard_output(few, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "xpcnn",
        "train",
        "--data-dir",
        few,
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--out",
        out,
    ]
    shell = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *map(str, command)]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "model.safetensors").exists()


def test_a_name_that_is_no_text(start, run, digits, tmp_path):
    """File systems take bytes that no encoding has; the name is shown with escapes."""
    name = os.fsencode(tmp_path) + b"/seven\xff.png"
    try:
        os.link(digits[0][0], name)
    except OSError:
        pytest.skip("this file system takes no such names")
    environment = os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    with start("predict", run, os.fsdecode(name), "--device", "cpu", env=environment) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert "seven\\udcff.png   7" in out
