"""``mpiexec xpcnn predict --output``: the same bytes with any number of ranks, whoever is killed, and no hanging."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import mpi
import numpy as np
import pytest
from PIL import Image
from runs import small_model

pytestmark = pytest.mark.skipif(not mpi.available(), reason="needs mpi4py and mpiexec")

COUNT, KINDS, BROKEN = 320, 16, 233  # files, which are links to a few pictures; one is none
PARTS = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with models, pictures, and the list of these; as large as they are, each takes a while to read."""
    base = tmp_path_factory.mktemp("predict")
    for seed in range(2):
        small_model((1, 12, 12), ("a", "b", "c"), seed).save(base / f"model{seed}")
    rng = np.random.default_rng(5)
    (base / "pictures" / "more").mkdir(parents=True)
    names = [f"pictures/{'more/' if number >= 250 else ''}{number:03}.png" for number in range(COUNT)]
    for number, name in enumerate(names):
        if number < KINDS:
            large = rng.integers(0, 256, (400, 400), np.uint8)
            Image.fromarray(large).save(base / name, compress_level=1)
        else:
            os.link(base / names[number % KINDS], base / name)
    (base / names[BROKEN]).unlink()
    (base / names[BROKEN]).write_text("no picture")
    return base, names


@pytest.fixture(scope="module")
def whole(made):
    """Return the bytes that one process alone writes."""
    done = subprocess.run(
        [sys.executable, "-m", "xpcnn", *command("alone.csv")], cwd=made[0], capture_output=True, text=True,
        env=os.environ | {"XPCNN_NUM_THREADS": "1"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    return (made[0] / "alone.csv").read_bytes()


def command(output, *options, model="model0"):
    return ["predict", model, "pictures", "--output", str(output), "--device", "cpu", *options]


def fault(names):
    return f"xpcnn: error: {names[BROKEN]} is not a picture in one of the formats PNG, JPEG, BMP, GIF, WEBP.\n"


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_file_once_and_the_bytes_of_one_process(made, whole, tmp_path, ranks):
    base, names = made
    output = tmp_path / "out.csv"
    done = mpi.run(ranks, command(output), cwd=base)
    assert (done.returncode, done.stderr) == (2, fault(names))
    assert done.stdout == f"{output}: {COUNT} pictures, of which 1 could not be read\n"
    assert output.read_bytes() == whole
    with open(output, newline="") as file:
        found = [row["image"] for row in csv.DictReader(file)]
    assert found == [name for number, name in enumerate(names) if number != BROKEN]
    assert os.listdir(tmp_path) == ["out.csv"]


def test_a_list_on_rank_0s_standard_input(made, tmp_path):
    base, names = made
    wanted = [names[300], names[3], names[300], names[7]]
    (tmp_path / "list").write_text("\n".join(wanted))
    with open(tmp_path / "list") as file:
        arguments = ["predict", "model0", "-", "--output", str(tmp_path / "x.json")]
        done = mpi.run(3, arguments, cwd=base, stdin=file)  # the fourth has nothing to do
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("auto chose") <= 1
    found = json.loads((tmp_path / "x.json").read_text())
    assert [result["image"] for result in found] == wanted
    assert found[0] == found[2] != found[1]


def test_what_is_wrong_is_said_once_and_ends_all(made, tmp_path):
    base, _ = made
    (tmp_path / "there.csv").write_text("mine")
    none = [*command("x.csv")[:3], "--device", "cpu"]
    for ranks, arguments, sentence in (
        (4, none, "4 processes predict into one file; name it with --output FILE.csv."),
        (2, command(tmp_path / "there.csv"), f"{tmp_path / 'there.csv'} exists; choose another --output."),
        (2, command(tmp_path / "x.csv", model="lost"), "there is no run lost."),
    ):
        begun = time.monotonic()
        done = mpi.run(ranks, arguments, cwd=base)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"xpcnn: error: {sentence}\n")
        assert time.monotonic() - begun < 30
    assert os.listdir(tmp_path) == ["there.csv"]
    assert (tmp_path / "there.csv").read_text() == "mine"


OTHER = """
import sys
from mpi4py import MPI
from xpcnn.cli import main, parts
arguments, rank = sys.argv[1:], MPI.COMM_WORLD.rank
{change}
sys.exit(main(arguments))
"""


def test_ranks_with_another_model_are_refused(made, tmp_path):
    change = "if rank == 1: arguments[1] = 'model1'"
    done = mpi.run(2, ["-c", OTHER.format(change=change), *command(tmp_path / "out.csv")], cwd=made[0])
    assert done.returncode == 2
    assert "the models of rank 1 differ from those of rank 0" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_full_disk_on_one_rank_ends_all_and_the_rest_is_kept(made, whole, tmp_path):
    change = (
        "def full(self, number, *rest, write=parts.Parts.write):\n"
        "    if number > 30 and rank == 1:\n"
        "        raise OSError(28, 'No space left on device', str(self.output))\n"
        "    write(self, number, *rest)\n"
        "parts.Parts.write = full\n"
    )
    output = tmp_path / "out.csv"
    done = mpi.run(2, ["-c", OTHER.format(change=change), *command(output)], cwd=made[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"xpcnn: error: {output}: No space left on device.\n"
    assert kept(output) >= 15
    mpi.run(2, command(output), cwd=made[0])
    assert output.read_bytes() == whole


def kept(output):
    """Return how many parts there are of an output."""
    folder = output.with_name(output.name + ".parts")
    return sum(name.startswith("part-") for name in os.listdir(folder)) if folder.exists() else 0


def killed(process, output, count, victim):
    """Kill a rank or the launcher as soon as so many parts are there; return when all ranks are gone."""
    limit = time.monotonic() + 60
    while kept(output) < count and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.001)
    ranks = mpi.ranks(process)
    if process.poll() is None:
        os.kill(process.pid if victim == "launcher" else ranks[victim], signal.SIGKILL)
    err = process.communicate(timeout=30)[1]
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks):
        assert time.monotonic() < limit, "ranks outlived their launcher"
        time.sleep(0.01)
    return err


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the ranks in /proc")
@pytest.mark.parametrize("victim", [0, 1, "launcher"])
def test_killed_at_any_moment_it_goes_on_with_any_number_of_ranks(made, whole, tmp_path, victim):
    base, names = made
    output = tmp_path / "out.csv"
    draw = random.Random(str(victim))
    before = 0
    for ranks in (2, 3):
        wanted = before + draw.randint(3, 12)
        err = killed(mpi.start(ranks, command(output), cwd=base), output, wanted, victim)
        before = kept(output)
        assert wanted <= before < PARTS
        if victim == 1:
            assert re.search(rf"rank 1 \(of {ranks}, .*; the same command goes on from what is done\.", err)
    done = mpi.run(4, command(output), cwd=base)
    assert done.returncode == 2, done.stderr
    going_on, rest = done.stderr.split("\n", 1)
    assert re.fullmatch(rf"going on: {5 * before} of {COUNT} pictures are done\.", going_on)
    assert rest == fault(names)
    assert output.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out.csv"]
