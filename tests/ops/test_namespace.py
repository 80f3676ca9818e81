"""Every op takes ``xp=``: the namespace of its arrays, plain or through array-api-compat, and no other."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest

from xpcnn import ops

CALLS = {
    "conv1d": ((1, 2, 5), (3, 2, 2), (3,)),
    "conv2d": ((1, 2, 5, 5), (3, 2, 2, 2), (3,)),
    "conv3d": ((1, 2, 3, 3, 3), (3, 2, 2, 2, 2), (3,)),
    "conv2d_relu_max_pool2d": ((1, 2, 5, 5), (3, 2, 2, 2), (3,)),
    "affine": ((2, 3), (3, 4), (4,)),
    "relu": ((2, 3),),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_namespace_may_be_named(arrays, name):
    operands = [arrays(np.ones(shape)) for shape in CALLS[name]]
    plain = importlib.import_module({"jax": "jax.numpy"}.get(arrays.backend.name, arrays.backend.name))
    for xp in (arrays.xp, plain):
        y, saved = getattr(ops, name)(*operands, xp=xp)
        getattr(ops, f"{name}_backward")(y, saved, xp=xp)


def test_a_wrong_namespace_is_refused():
    import array_api_strict

    with pytest.raises(TypeError, match="xp is array_api_strict, but the arrays are numpy's"):
        ops.relu(np.ones(3), xp=array_api_strict)


def test_every_op_takes_it():
    for name in ops.__all__:
        if name != "conv_output_size":
            assert inspect.signature(getattr(ops, name)).parameters["xp"].default is None, name
