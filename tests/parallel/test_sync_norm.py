"""A batch in parts is normalised as the whole is: the oracle is `batch_norm`, which has oracles of its own."""

import threading

import numpy as np
import pytest
from array_api_compat import array_namespace

from xpcnn import ops
from xpcnn.errors import XpcnnError
from xpcnn.ops.sync_norm import sync_batch_norm, sync_batch_norm_backward


class Threads:
    """Ranks as threads, of which one computes at a time; their arrays are added up where all have come."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size, timeout=60)
        self._arrays = [None] * size
        self._turn = threading.Lock()

    def total(self, rank):
        def total(array):
            self._arrays[rank] = array
            self._wait()
            result = sum(self._arrays[1:], start=self._arrays[0])
            self._wait()
            return result

        return total

    def _wait(self):
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()

    def run(self, work):
        results, errors = [None] * len(self._arrays), []

        def one(rank):
            try:
                with self._turn:
                    results[rank] = work(rank)
            except BaseException as error:  # noqa: BLE001  so that the others do not wait
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(self._arrays))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


@pytest.mark.parametrize(
    ("shape", "cuts", "learned"),
    [((7, 3, 4, 5), (3, 4), True), ((7, 3, 4, 5), (0, 2), False), ((6, 2), (2, 2), True), ((5, 4, 3), (0, 0), True)],
    ids=["uneven", "one-empty", "dense", "two-empty"],
)
def test_parts_are_normalised_as_the_whole(arrays, dtype, rng, shape, cuts, learned):
    x, dy = (rng.standard_normal(shape) * 3 + 5 for _ in range(2))
    gamma, beta, mean, var = (rng.uniform(0.5, 2, shape[1]) for _ in range(4))
    gamma, beta = (gamma, beta) if learned else (None, None)

    def made(value):
        return None if value is None else arrays(value, dtype)

    y, saved, (new_mean, new_var) = ops.batch_norm(
        made(x), made(gamma), made(beta), made(mean), made(var), train=True, momentum=0.3, eps=1e-3
    )
    dx, dgamma, dbeta = ops.batch_norm_backward(made(dy), saved)
    rows = [slice(0, cuts[0]), slice(*cuts), slice(cuts[1], None)]
    ranks = Threads(3)

    def one(rank):
        given = [made(value) for value in (x[rows[rank]], gamma, beta, mean, var)]
        y, saved, statistics = sync_batch_norm(*given, total=ranks.total(rank), momentum=0.3, eps=1e-3)
        return y, statistics, sync_batch_norm_backward(made(dy[rows[rank]]), saved)

    results = ranks.run(one)
    like, host = made(x), arrays.backend.to_numpy
    xp = array_namespace(like)
    loose = 1e-4 if dtype == "float32" else None
    arrays.check(xp.concat([found[0] for found in results]), host(y), like, loose)
    arrays.check(xp.concat([found[2][0] for found in results]), host(dx), like, loose)
    for _, statistics, _ in results:
        arrays.check(statistics[0], host(new_mean), like, loose)
        arrays.check(statistics[1], host(new_var), like, loose)
    for number, expected in ((1, dgamma), (2, dbeta)):
        found = [gradients[number] for _, _, gradients in results]
        if learned:
            arrays.check(sum(found[1:], start=found[0]), host(expected), like, loose)
        else:
            assert found == [None] * 3


def test_what_does_not_fit_is_refused_before_anything_is_exchanged():
    def total(array):
        raise AssertionError("nobody else would be there")

    ones = np.ones(3)
    with pytest.raises(XpcnnError, match="gamma"):
        sync_batch_norm(np.ones((2, 3)), np.ones(4), ones, ones, ones, total=total)
    with pytest.raises(XpcnnError, match="momentum"):
        sync_batch_norm(np.ones((2, 3)), ones, ones, ones, ones, total=total, momentum=2.0)
