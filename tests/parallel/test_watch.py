"""What happens when a rank dies, with real processes: all are gone at once, and one sentence says why."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time

import mpi
import pytest

from xpcnn.parallel import Group
from xpcnn.parallel.watch import Watch
from xpcnn.parallel.watcher import DIED, Line, Watcher

SOON = 3.0  # seconds within which all must be gone
PROGRAM = """
import os, socket, sys, threading, time
import numpy as np
from xpcnn.parallel import watch, world
what, group = sys.argv[1:], world()
if "closed" in what:
    sys.stderr.close()
if "apart" in what:  # as on machines of their own
    group.local_size = 1
if "deaf" in what and group.rank == 1:
    def refuse(*_): raise ConnectionRefusedError
    socket.create_connection = refuse
watched = watch.Watch(group).start()
if group.rank == 0:
    watched.advice = "go on with: xpcnn train --resume 'runs/ä'"
print(f"<{group.rank} {os.getpid()}>", flush=True)
group.any(False)
"""
ENDS = {
    "wait": "str(group.rank) in what and time.sleep(60); group.sum(np.ones(9))",
    "compute": "x = np.ones((300, 300))\nwhile True: x = x @ x * 0",
    "order": "time.sleep(0.15 * ((group.rank + int(what[1])) % group.size)); watched.close(); "
    "assert threading.enumerate() == [threading.main_thread()]",
    "raise": "if group.rank == 1: raise RuntimeError('a fault of its own')\ngroup.sum(np.ones(9))",
    "leave": "if group.rank == 1: sys.exit(0)\ngroup.sum(np.ones(9))",
    "fail": "if group.rank == 1: watched.fail('xpcnn: error: the disk is full.', 2)\ngroup.sum(np.ones(9))",
    "all fail": "watched.fail('xpcnn: error: the disk is full.', 2)",
    "sum": "time.sleep(2 * (group.rank == 1)); print(group.sum(np.ones(2)), flush=True); watched.close()",
}

with_ranks = pytest.mark.skipif(not mpi.available(), reason="there is no MPI to start ranks with")


def start(folder, n, *what):
    """Start ranks; return their launcher and their process ids, once all are being watched."""
    program = folder / "program.py"
    program.write_text(PROGRAM + ENDS[what[0]] + "\n", encoding="utf-8")
    process = mpi.start(n, [program, *what])
    found, text = {}, ""
    while len(found) < n:
        line = process.stdout.readline()
        if not line:
            pytest.fail("".join(process.communicate()))
        text += line
        found = {int(rank): int(pid) for rank, pid in re.findall(r"<(\d+) (\d+)>", text)}
    return process, found


def ended(process, pids):
    """Wait for the end, which must be soon; return the exit status and what was said on standard output and error."""
    late = time.monotonic() + SOON
    try:
        out, err = process.communicate(timeout=SOON)  # the watcher holds standard error, and so is gone then, too
    except subprocess.TimeoutExpired:
        mpi.end(process)
        pytest.fail("somebody is still there")
    while any(map(alive, pids.values())):
        assert time.monotonic() < late
    return process.returncode, out.strip(), err


def own(said):
    """Return the sentences of ours; a launcher may put one into the midst of another rank's line."""
    return re.findall("xpcnn: .*", said)


def alive(pid):
    """Whether a process runs."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def died(rank, n):
    """Return the sentence."""
    where = re.escape(socket.gethostname())
    advice = "go on with: xpcnn train --resume 'runs/ä'"
    return rf"xpcnn: rank {rank} \(of {n}, on {where}\) has died, so all ranks end; {advice}\."


@pytest.fixture(params=["cleanup", "no cleanup"])
def launcher(request, monkeypatch):
    """Let the launcher end the ranks that are left, or leave that to them."""
    if request.param == "no cleanup":
        monkeypatch.setattr(mpi, "_extra", lambda: ["-disable-auto-cleanup"])
        said = subprocess.run([mpi.launcher(), "--version"], capture_output=True, text=True).stdout
        if "HYDRA" not in said.upper():
            pytest.skip("this launcher has no such option")


@with_ranks
@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize(("n", "rank", "what"), [(2, 0, "wait"), (2, 1, "wait"), (4, 0, "compute"), (4, 3, "wait")])
def test_a_killed_rank_ends_all_with_one_sentence(tmp_path, n, rank, what):
    process, pids = start(tmp_path, n, what, str(rank))
    time.sleep(0.1)
    os.kill(pids[rank], signal.SIGKILL)
    status, _, said = ended(process, pids)
    assert status != 0
    (sentence,) = own(said)
    assert re.fullmatch(died(rank, n), sentence)


@with_ranks
@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize("what", ["raise", "leave"])
def test_a_rank_that_ends_without_a_word_counts_as_dead(tmp_path, what):
    process, pids = start(tmp_path, 2, what)
    status, _, said = ended(process, pids)
    assert status == DIED
    (sentence,) = own(said)
    assert re.fullmatch(died(1, 2), sentence)


@with_ranks
@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize("what", ["fail", "all fail"])
def test_a_fault_of_one_rank_is_said_once_and_is_the_status_of_all(tmp_path, what):
    process, pids = start(tmp_path, 3, what)
    assert ended(process, pids) == (2, "", "xpcnn: error: the disk is full.\n")


@with_ranks
@pytest.mark.parametrize("shift", range(3))
def test_ranks_end_in_any_order_without_a_word(tmp_path, shift):
    process, pids = start(tmp_path, 3, "order", str(shift))
    assert ended(process, pids) == (0, "", "")


@with_ranks
def test_a_rank_that_is_stopped_for_a_while_is_not_dead(tmp_path):
    process, pids = start(tmp_path, 2, "sum")
    os.kill(pids[1], signal.SIGSTOP)
    time.sleep(1)
    os.kill(pids[1], signal.SIGCONT)
    status, out, said = ended(process, pids)
    assert (status, out.count("[2. 2.]"), said) == (0, 2, "")


@with_ranks
def test_ranks_on_several_machines_find_the_watcher_by_name(tmp_path):
    process, pids = start(tmp_path, 2, "wait", "1", "apart")
    os.kill(pids[1], signal.SIGKILL)
    (sentence,) = own(ended(process, pids)[2])
    assert re.fullmatch(died(1, 2), sentence)


@with_ranks
def test_a_rank_that_cannot_be_watched_is_named_and_goes_on(tmp_path):
    process, pids = start(tmp_path, 3, "sum", "deaf")
    status, out, said = ended(process, pids)
    assert (status, out.count("[3. 3.]")) == (0, 3)
    assert re.fullmatch("xpcnn: rank 1 cannot be watched from .*\n", said)


@with_ranks
def test_without_standard_error_all_end_as_well(tmp_path):
    process, pids = start(tmp_path, 2, "compute", "closed")
    os.kill(pids[1], signal.SIGKILL)
    assert own(ended(process, pids)[2]) == []


@with_ranks
def test_a_killed_launcher_ends_all(tmp_path):
    process, pids = start(tmp_path, 2, "compute")
    process.kill()
    ended(process, pids)


class Watched:
    """A watcher in a thread, and connections to it."""

    def __init__(self, size):
        own, its = socket.socketpair()
        self.lines = [Line(own)]
        watcher = Watcher(Line(its), token="secret", size=size, host="alpha", local=True)
        self.port = heard(self.lines[0])["port"]
        self.thread = threading.Thread(target=watcher.run)
        self.thread.start()
        for rank in range(1, size):
            self.lines.append(self.connect({"token": "secret", "rank": rank, "host": "beta"}))
            assert heard(self.lines[rank]) == {"welcome": True}

    def connect(self, hello):
        line = Line(socket.create_connection(("127.0.0.1", self.port), SOON))
        line.send(hello)
        return line

    def end(self):
        for line in self.lines:
            line.close()
        self.thread.join(SOON)
        assert not self.thread.is_alive()


@pytest.fixture
def watched():
    found = Watched(3)
    yield found
    found.end()


def heard(line):
    """Return a connection's next message, or None at its end."""
    messages = line.receive()
    return messages[0] if messages else None


def test_the_first_to_die_is_named_and_the_others_are_told(watched, capfd):
    watched.lines[0].send({"advice": "call for help"})
    time.sleep(0.05)
    watched.lines[2].close()
    assert heard(watched.lines[0]) == heard(watched.lines[1]) == {"end": DIED}
    watched.lines[1].close()
    watched.end()
    assert capfd.readouterr().err == "xpcnn: rank 2 (of 3, on beta) has died, so all ranks end; call for help.\n"


def test_of_several_faults_the_first_is_said(watched, capfd):
    watched.lines[1].send({"fail": "there is no room, 日本", "status": 7})
    assert [heard(line) for line in watched.lines] == [{"end": 7}] * 3
    watched.lines[0].send({"fail": "there is no sense", "status": 2})
    watched.end()
    assert capfd.readouterr().err == "there is no room, 日本\n"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_goodbyes_are_answered_by_the_connections_end(watched, capfd, order):
    for rank in order:
        watched.lines[rank].send({"goodbye": True})
        watched.lines[rank].finish()
        assert heard(watched.lines[rank]) is None
    watched.end()
    assert capfd.readouterr().err == ""


def test_strangers_are_sent_away_and_change_nothing(watched, capfd):
    for hello in [{"token": "guess", "rank": 1, "host": "x"}, {"fail": "boo", "status": 0}, [1], "x" * (1 << 21)]:
        stranger = watched.connect(hello)
        assert heard(stranger) is None
        stranger.close()
    watched.lines[0].send({"complete": True})
    time.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", watched.port), SOON)
    test_goodbyes_are_answered_by_the_connections_end(watched, capfd, (1, 2, 0))


def test_one_process_alone_is_not_watched():
    before = threading.enumerate()
    watch = Watch(Group()).start()
    watch.advice = "nothing"
    watch.close()
    assert threading.enumerate() == before
