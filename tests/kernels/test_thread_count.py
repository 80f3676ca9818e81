"""How many threads compute: what is set, else the environment's, else what BLAS and affinity allow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import xpcnn as xc
from xpcnn.kernels import threads

VARIABLES = ("XPCNN_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOTO_NUM_THREADS")
COUNT = "import xpcnn as xc; print(xc.num_threads())"
WIDTHS = """
import xpcnn as xc, sys
from threadpoolctl import threadpool_info
if len(sys.argv) > 1:
    xc.set_num_threads(int(sys.argv[1]))
print(xc.num_threads(), *{library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
"""


def fresh(code, *arguments, cores=None, **environment):
    """Run code in a process of its own with only these variables of threads, on some cores; return what it did."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if cores is not None:
        code = f"import os; os.sched_setaffinity(0, {cores!r})\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)


def widths():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def unset():
    """Leave the number of threads as it was."""
    yield
    xc.set_num_threads(None)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity here")
def test_without_a_word_it_follows_affinity_and_blas():
    own = sorted(os.sched_getaffinity(0))
    for cores in ({own[0]}, set(own[:2])):
        assert fresh(COUNT, cores=cores).stdout.strip() == str(len(cores))
        assert fresh(COUNT, cores=cores, OPENBLAS_NUM_THREADS="1").stdout.strip() == "1"


def test_the_environment_comes_before_affinity_and_blas():
    assert fresh(WIDTHS, XPCNN_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1").stdout.split() == ["2", "2"]
    assert fresh(WIDTHS, XPCNN_NUM_THREADS=" 1 ").stdout.split() == ["1", "1"]
    assert fresh(COUNT, XPCNN_NUM_THREADS="37").stdout.strip() == "37"
    assert fresh(COUNT, XPCNN_NUM_THREADS="").stdout == fresh(COUNT).stdout


def test_what_is_set_comes_before_the_environment():
    assert fresh(WIDTHS, 1, XPCNN_NUM_THREADS="2").stdout.split() == ["1", "1"]
    assert fresh(WIDTHS, 2, XPCNN_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1").stdout.split() == ["2", "2"]
    assert fresh(WIDTHS, 1, XPCNN_NUM_THREADS="nonsense").stdout.split() == ["1", "1"]


WRONG = ["0", "-1", "two", "1.5", "1e1", "1025", "9" * 5000, "٣", "1 2", "0x2", "+1"]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_environment_is_said_in_one_sentence(text):
    says = "the environment variable XPCNN_NUM_THREADS must be a whole number from 1 to 1024, not "
    model = "import xpcnn as xc; xc.Model(xc.layers.Affine(2), 'cpu', input_shape=(3,))"
    for code in (COUNT, model):
        error = fresh(code, XPCNN_NUM_THREADS=text).stderr.strip().splitlines()[-1]
        assert error.startswith(f"xpcnn.errors.XpcnnError: {says}")
        assert len(error) < 200


@pytest.mark.parametrize("n", [0, -1, 1025, 1.0, "2", True, [2], np.array([2])])
def test_a_wrong_number_changes_nothing(n, unset):
    before = xc.num_threads(), widths()
    with pytest.raises(xc.XpcnnError, match="the number of threads must be a whole number from 1 to 1024, not"):
        xc.set_num_threads(n)
    assert (xc.num_threads(), widths()) == before


def test_none_goes_back(unset):
    before = xc.num_threads(), widths()
    for n in (3, np.int64(1), 5):
        xc.set_num_threads(n)
        assert xc.num_threads() == n
        assert set(widths()) == {n}
    xc.set_num_threads(None)
    assert (xc.num_threads(), widths()) == before


def test_so_many_threads_run_and_no_more(unset):
    """Each task waits for as many others as there are threads; one thread too few would wait in vain."""
    for n in (2, 5, 3, 1):
        xc.set_num_threads(n)
        meeting, seen = threading.Barrier(n), set()

        def task(meeting=meeting, seen=seen):
            meeting.wait(timeout=20)
            seen.add(threading.get_ident())

        threads.run([task] * (2 * n))
        assert len(seen) == n
        assert set(widths()) == {n}


def test_a_number_set_while_blas_is_held_holds_afterwards(unset):
    xc.set_num_threads(2)
    seen = []

    def task():
        xc.set_num_threads(3)
        seen.append(set(widths()))

    threads.run([task, task])
    assert seen == [{1}, {1}]
    assert set(widths()) == {3}


STEPS = """
import hashlib, sys
import numpy as np
import xpcnn as xc
from xpcnn import layers as la, optim
xc.set_num_threads(int(sys.argv[1]))
body = la.Residual(la.Sequential(la.Conv2D(16, 3, padding=1), la.BatchNorm(), la.ReLU(), la.Conv2D(16, 3, padding=1)))
start = la.Conv2D(16, 5), la.ReLU(), la.MaxPool2D(2), body, la.Dropout(0.2), la.AvgPool2D(2)
net = la.Sequential(*start, la.Flatten(), la.Affine(64), la.GELU(), la.Affine(10), input_shape=(3, 28, 28))
trainer = xc.Trainer(xc.Model(net, "cpu"), optim.adam(0.01))
rng = np.random.default_rng(1)
x, t = rng.standard_normal((64, 3, 28, 28), dtype=np.float32), rng.integers(0, 10, 64)
losses = [float(trainer.step(x, t)) for _ in range(5)]
arrays = trainer.model.parameters() | trainer.model.state()
print(losses[-1], hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())).hexdigest())
"""


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_same_number_of_threads_gives_the_same_bits(n, kernels):
    runs = [fresh(STEPS, n, XPCNN_KERNELS=kernels) for _ in range(2)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    loss, digest = runs[0].stdout.split()
    assert 0 < float(loss) < 10
    assert runs[1].stdout.split() == [loss, digest]
