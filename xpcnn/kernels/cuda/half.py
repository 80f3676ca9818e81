"""bfloat16 on CUDA: which ops' kernels read and write it themselves, and arrays of one floating type in another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from xpcnn.backend import Array, Namespace
from xpcnn.kernels import cuda, reference
from xpcnn.kernels.cuda import runtime

AT_ONCE = 8  # arrays to a launch
OLDEST = "2.1.2"  # NumPy with which CuPy 14 takes ml_dtypes' numbers
ENGINES = {  # ops that an engine does all of, by the work it has
    "conv1d": "convolution",
    "conv2d": "convolution",
    "conv3d": "convolution",
    "conv2d_relu_max_pool2d": "pooled",
    "batch_norm": "norm",
    **{f"{kind}_pool{n}d": "pool" for kind in ("max", "avg") for n in (1, 2, 3)},
    "global_avg_pool2d": "pool",
}
STEPS = {  # ops put together of steps that all take it
    "affine", "relu", "relu6", "clip", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "hard_swish",
    "hard_sigmoid", "sigmoid", "tanh", "dropout",
}  # fmt: skip


def capability(device: Any) -> int | None:
    """Return a GPU's compute capability times 10, such as 90; None for what is no GPU."""
    found = getattr(device, "compute_capability", None)
    return None if found is None else int(found)


def half_dtype(xp: Namespace) -> Any:
    """Return bfloat16's dtype, or None where CuPy has none: without ml_dtypes, or beside an old NumPy."""
    if np.lib.NumpyVersion(np.__version__) < OLDEST:
        return None
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)


def takes_half(op: str, x: Array) -> bool:
    """Whether an op of this name computes on such half-precision arrays itself; else it is given float32."""
    if str(x.dtype) != "bfloat16" or 0 in x.shape:
        return False
    return op in STEPS or (op in ENGINES and cuda.engine(ENGINES[op], x, x.ndim - 2) is not None)


def cast(arrays: Sequence[Array], dtype: Any, xp: Namespace) -> list[Array]:
    """Return arrays of a floating dtype, new ones where they were of another; any order."""
    results: dict[int, Array] = {}
    wanted = str(np.dtype(dtype))
    todo = [(number, array) for number, array in enumerate(arrays) if str(array.dtype) != wanted]
    alike = groupby(sorted(todo, key=_dtype), _dtype)
    for source, group in alike:
        numbers, given = zip(*group, strict=True)
        known = source in runtime.NAMES and wanted in runtime.NAMES
        made = _converted(given, dtype) if known else reference.cast(given, dtype, xp)
        results.update(zip(numbers, made, strict=True))
    return [results.get(number, array) for number, array in enumerate(arrays)]


def _dtype(numbered: tuple[int, Array]) -> str:
    """Return the name of an array's dtype; of those where NumPy's stand in for CuPy's, scalars are none."""
    return "" if isinstance(numbered[1], np.generic) else str(numbered[1].dtype)


def _converted(arrays: Sequence[Array], dtype: Any) -> list[Array]:
    """Do it by the kernel, for arrays of one dtype."""
    made = [runtime.empty(array.shape, dtype) for array in arrays]
    for first in range(0, len(arrays), AT_ONCE):
        pairs = list(zip(arrays, made, strict=True))[first : first + AT_ONCE]
        arguments = [part for a, b in pairs for part in (runtime.contiguous(a), b, b.size)]
        arguments += [None, None, 0] * (AT_ONCE - len(pairs))
        text = runtime.text("cast.cu", **runtime.types(made[0]), SOURCE=runtime.NAMES[str(arrays[0].dtype)])
        runtime.launch(text, "cast", runtime.blocks_for(max(b.size for _, b in pairs)), *arguments)
    return made
