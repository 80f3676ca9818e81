"""One case on one backend: values against the definition's, gradients by the identity ⟨dy, D⟩ = ⟨gradient, u⟩.

D is the definition's derivative in the direction u. Besides: namespace, device, dtype and shape are kept, no argument
is changed, and the same call gives the same bits twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from xpcnn import ops
from xpcnn.backend import Backend
from xpcnn.verify.cases import ELEMENTWISE, LOSSES
from xpcnn.verify.draw import Case
from xpcnn.verify.expected import Expected, differentiable

Array = Any
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest value, or absolute where all are below 1
FEW = 100  # elements of a gradient: the rounding errors of more add up like the root of their number


class Check:
    """A case run on a backend in one dtype: how far the op is from its definition, and what is wrong in words.

    Attributes
    ----------
    forward, gradient : float
        The largest errors of results and of gradients; infinite where there is no number to compare.
    faults : list of str
        Empty if all is well.
    """

    def __init__(self, case: Case, expected: Expected, backend: Backend, dtype: str) -> None:
        self.case, self.expected, self.backend, self.dtype = case, expected, backend, dtype
        self.forward = self.gradient = 0.0
        self.faults: list[str] = []
        try:
            with backend.context():
                self._run()
        except Exception as error:  # noqa: BLE001  whatever a library raises, the case has failed
            self.faults.append(f"{type(error).__name__}: {str(error).strip()}")

    def _run(self) -> None:
        """Run forward and backward twice and compare."""
        hosts = {**self.case.arrays, **self.case.options}
        given = {name: self._put(host) for name, host in hosts.items()}
        dy = self._put(self.expected.dy)
        results, saved = self._call(given)
        gradients = self._call_backward(dy, saved)
        self._compare_results(results, like=next(iter(given.values())))
        self._compare_gradients(gradients, given)
        self._compare_bits([*results, *gradients], [*self._call(given)[0], *self._call_backward(dy, saved)])
        for name, host in {**hosts, "dy": self.expected.dy}.items():
            array = dy if name == "dy" else given[name]
            if isinstance(host, np.ndarray) and not np.array_equal(self.backend.to_numpy(array), host):
                self.faults.append(f"{name} was changed")

    def _put(self, host: Any) -> Any:
        """Return an array's values on the backend, in memory of their own that NumPy may not write to."""
        if not isinstance(host, np.ndarray):
            return host
        host = host.astype(self.dtype) if host.dtype == np.float64 else host.copy()
        strided = self.case.strided and host.ndim > 0
        host = np.repeat(host, 2, axis=-1) if strided else host
        host.flags.writeable = False
        array = self.backend.asarray(host)
        return array[..., ::2] if strided else array

    def _call(self, given: dict[str, Any]) -> tuple[list[Array], Any]:
        """Return an op's results (y; then statistics, or indices where the definition has them) and what it saved."""
        y, saved, *more = getattr(ops, self.case.op)(**given)
        more = list(more[0]) if more else [saved.indices] if len(self.expected.results) > 1 else []
        return [y, *more], saved

    def _call_backward(self, dy: Array, saved: Any) -> list[Array]:
        """Return an op's gradients."""
        run, options = getattr(ops, f"{self.case.op}_backward"), self.case.backward
        gradients = run(saved, options.get("dy", dy)) if self.case.op in LOSSES else run(dy, saved, **options)
        return list(gradients) if isinstance(gradients, tuple) else [gradients]

    def _compare_results(self, results: list[Array], like: Array) -> None:
        """Compare what forward returned with the definition."""
        for number, (found, value) in enumerate(zip(results, self.expected.results, strict=True)):
            name = f"result {number}" if number else "y"
            if self._is_there(name, found, value is not None):
                is_float = value.dtype.kind == "f"
                host = self._kept(name, found, value.shape, like, is_float)
                error = self._error(host, value) if is_float else _miss(host, value)
                self.forward = max(self.forward, self._judged(name, error))

    def _compare_gradients(self, gradients: list[Array], given: dict[str, Any]) -> None:
        """Compare ⟨gradient, u⟩ with the definition's derivative in the direction u."""
        for name, found in zip(differentiable(self.case), gradients, strict=True):
            is_wanted = given[name] is not None and (name != "x" or self.case.backward.get("need_dx", True))
            if self._is_there(f"the gradient of {name}", found, is_wanted):
                host = self._kept(f"the gradient of {name}", found, given[name].shape, given[name])
                scale = max(1.0, np.abs(host).max(initial=0.0)) * max(1.0, host.size / FEW) ** 0.5
                error = abs((host * self.expected.directions[name]).sum() - self.expected.slopes[name]) / scale
                self.gradient = max(self.gradient, self._judged(f"the gradient of {name}", error))

    def _compare_bits(self, results: list[Array], again: list[Array]) -> None:
        """Compare the bits of two calls."""
        for one, two in zip(results, again, strict=True):
            if one is not None and self.backend.to_numpy(one).tobytes() != self.backend.to_numpy(two).tobytes():
                self.faults.append("the same call made other bits the second time")

    def _is_there(self, name: str, found: Array | None, wanted: bool) -> bool:
        """Whether a result is there; a fault if it is not wanted, or wanted and not there."""
        if wanted is (found is None):
            self.faults.append(f"{name} is {'missing' if wanted else 'there, but should be None'}")
        return wanted and found is not None

    def _kept(self, name: str, found: Array, shape: Any, like: Array, is_float: bool = True) -> Array:
        """Return an array's values on the host, NaN if of a wrong shape; say what is not as it must be."""
        pairs = {"shape": (tuple(found.shape), tuple(shape)), "device": (device(found), device(like))}
        pairs["namespace"] = array_namespace(found), array_namespace(like)
        if is_float:
            pairs["dtype"] = found.dtype, like.dtype
        for what, (one, two) in pairs.items():
            if one != two:
                self.faults.append(f"{name} has the {what} {one}, not {two}")
        host = self.backend.to_numpy(found).astype(np.float64)
        return host if host.shape == tuple(shape) else np.full(shape, np.nan)

    def _judged(self, name: str, error: float) -> float:
        """Return an error, infinite if it is not a number; a fault if it is beyond the tolerance."""
        error = float(error) if np.isfinite(error) else np.inf
        if error > TOLERANCE[self.dtype]:
            self.faults.append(f"{name} is off by {error:.1e}")
        return error

    def _error(self, found: Array, expected: Array) -> float:
        """Return the largest error, relative to the largest value (elementwise: to each value) if that is above 1."""
        with np.errstate(invalid="ignore"):
            off = np.where((found == expected) | (np.isnan(found) & np.isnan(expected)), 0.0, np.abs(found - expected))
        scale = np.abs(np.where(np.isfinite(expected), expected, 0.0))
        scale = scale if self.case.op in ELEMENTWISE else scale.max(initial=0.0)
        return float((off / np.maximum(1.0, scale)).max(initial=0.0))


def _miss(found: Array, expected: Array) -> float:
    """Return 0 for the right indices, wherever the definition has one (not -1), else infinity."""
    return 0.0 if np.array_equal(found[expected >= 0], expected[expected >= 0]) else np.inf
