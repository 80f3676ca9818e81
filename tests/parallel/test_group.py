"""Which process has which part, how a launcher is noticed, and what is said where MPI is not as it should be."""

import os
import subprocess
import sys

import mpi
import pytest

import xpcnn
from xpcnn.errors import BackendError
from xpcnn.parallel import Group, group, launched, share

TALK = """
import os
import numpy as np
import xpcnn
from xpcnn import parallel

g = parallel.world()
assert g is parallel.world()
assert g.gathered({"rank": g.rank}) == [{"rank": r} for r in range(g.size)]
assert g.gathered("ü\\udcff" * g.rank) == ["ü\\udcff" * r for r in range(g.size)]  # names of files may be like this
assert g.first(f"from {g.rank}") == "from 0"
assert g.any(g.rank == g.size - 1) and not g.any(False)
counts = [2 * r for r in range(g.size)]  # none of rank 0's
for dtype in ("float32", "float64", "int64", "uint8"):
    rows = np.full((counts[g.rank], 3), g.rank, dtype)
    whole = g.joined(rows, counts)
    assert whole.dtype == dtype and whole[:, 1].tolist() == [r for r in range(g.size) for _ in range(2 * r)]
total = g.sum(np.arange(4, dtype="float32") + g.rank)
assert total.dtype == np.float32
assert total.tolist() == [g.size * i + g.size * (g.size - 1) / 2 for i in range(4)]
backend = xpcnn.resolve_backend("array_api_strict")
assert backend.to_numpy(g.sum(backend.asarray(np.ones(2, "float32")), backend)).tolist() == [g.size] * 2
assert (g.local_rank, g.local_size) == (g.rank, g.size)
assert g.device("cpu") == "cpu"
os.write(1, f"{g.rank} {g.size}\\n".encode())  # at once, lest lines mix
"""
COUNT = """
import os
import xpcnn
from xpcnn import parallel

parallel.world()
os.write(1, f"{xpcnn.num_threads()}\\n".encode())
"""

needs_mpi = pytest.mark.skipif(not mpi.available(), reason="mpiexec or mpi4py is not installed")


@pytest.mark.parametrize("count", [0, 1, 5, 12, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_rows_once_and_nearly_equal(count, size):
    parts = [share(count, rank, size) for rank in range(size)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_is_a_group_of_its_own():
    alone = Group()
    assert (alone.rank, alone.size, alone.gathered([1]), alone.first("a"), alone.any(True)) == (0, 1, [[1]], "a", True)


def test_a_launcher_is_noticed_by_its_environment(monkeypatch):
    for name in group.SIZES:
        monkeypatch.delenv(name, raising=False)
    assert launched() == 1
    for name in group.SIZES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "6")
            assert launched() == 6


@needs_mpi
@pytest.mark.parametrize("size", [2, 4])
def test_what_ranks_tell_each_other(size, tmp_path):
    (tmp_path / "talk.py").write_text(TALK)
    done = mpi.run(size, [tmp_path / "talk.py"], check=True)
    assert sorted(done.stdout.split("\n")[:-1]) == [f"{rank} {size}" for rank in range(size)]


@needs_mpi
def test_ranks_of_a_machine_share_its_cores(tmp_path):
    (tmp_path / "count.py").write_text(COUNT)
    cores = len(os.sched_getaffinity(0))
    done = mpi.run(2, [tmp_path / "count.py"], check=True, env={"XPCNN_NUM_THREADS": ""})
    assert done.stdout.split() == [str(max(1, cores // 2))] * 2
    done = mpi.run(2, [tmp_path / "count.py"], check=True, env={"XPCNN_NUM_THREADS": "3"})
    assert done.stdout.split() == ["3", "3"]


def alone(code, **environment):
    """Run a program that believes it was started by a launcher."""
    bare = {name: value for name, value in os.environ.items() if name not in group.SIZES}
    return subprocess.run(
        [sys.executable, "-c", code], env=bare | environment, capture_output=True, text=True, timeout=60
    )


def test_without_mpi4py_it_says_what_to_install():
    code = "import sys; sys.modules['mpi4py'] = None; from xpcnn.cli import main; sys.exit(main(['train']))"
    done = alone(code, PMI_SIZE="3")
    assert done.returncode == 2
    assert "3 processes were started together" in done.stderr
    assert "pip install 'xpcnn[mpi]'" in done.stderr
    assert "Traceback" not in done.stderr


@needs_mpi
def test_another_library_than_the_launchers_is_noticed():
    done = alone("import sys; from xpcnn.cli import main; sys.exit(main(['train']))", OMPI_COMM_WORLD_SIZE="3")
    assert done.returncode == 2
    assert "the launcher started 3 processes, but" in done.stderr
    assert "sees 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_mpi_is_not_loaded_without_a_launcher():
    done = alone("import sys, xpcnn.parallel as p; p.world(); print('mpi4py' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("count", "name", "visible", "expected"),
    [
        (4, "cuda", [None] * 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (4, "auto", [None] * 2, ["cuda:0", "cuda:1"]),
        (1, "cuda", ["0", "1", "2"], ["cuda:0"] * 3),  # srun --gpus-per-task=1
        (0, "auto", [None] * 2, ["auto", "auto"]),
        (4, "cpu", [None] * 2, ["cpu", "cpu"]),
        (4, "cuda:3", [None] * 2, ["cuda:3", "cuda:3"]),
    ],
)
def test_each_rank_has_a_gpu_of_its_own(monkeypatch, count, name, visible, expected):
    monkeypatch.setattr(group, "cuda_devices", lambda: (count, "there is none"))
    assert [group.own_gpu(name, rank, visible) for rank in range(len(visible))] == expected


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(group, "cuda_devices", lambda: (2, ""))
    with pytest.raises(BackendError, match="3 ranks on a machine with 2 GPUs"):
        group.own_gpu("cuda", 2, [None] * 3)
    monkeypatch.setattr(group, "cuda_devices", lambda: (0, "CuPy is not installed"))
    with pytest.raises(BackendError, match="cuda was asked for, but CuPy is not installed"):
        group.own_gpu("cuda", 0, [None] * 3)


def test_the_house_knows_it():
    assert xpcnn.parallel.world is group.world
