"""Arrays and their description in one safetensors file, written whole and read with suspicion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.errors import DataError, XpcnnError
from xpcnn.files import write_whole
from xpcnn.layers.base import Parameter, Shape

Host = np.ndarray[Any, Any]

FORMAT = 1
STORED = ("F32", "F64")  # as safetensors names them


def write(path: str | Path, description: Mapping[str, Any], arrays: Mapping[str, Host]) -> None:
    """Write arrays and what they are, all of it or nothing."""
    from safetensors.numpy import save

    host = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    whole = {"format": FORMAT, **description, "arrays": _digest_of_arrays(host)}
    text = json.dumps(whole | {"blake2b": _digest(whole)})  # one entry: safetensors writes several in any order
    write_whole(path, save(host, metadata={"xpcnn": text}))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Shape], Callable[[], dict[str, Host]]]:
    """Return a file's description, its arrays' shapes, and a function that reads the arrays; or raise DataError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"{path} {'is a directory' if path.is_dir() else 'does not exist'}.")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("xpcnn")
            if text is None:
                raise DataError(f"{path} is a safetensors file, but not one that xpcnn wrote.")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            wrong = [
                f"{name} is {piece.get_dtype()}" for name, piece in slices.items() if piece.get_dtype() not in STORED
            ]
            if wrong:
                raise DataError(f"{path} must hold float32 or float64 arrays, but {', '.join(wrong)}.")
        description = json.loads(text)
    except (SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a whole safetensors file ({error}).") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise DataError(f"{path} has another format than this xpcnn reads ({FORMAT}).")
    if description.pop("blake2b", digest := _digest(description)) != digest:
        raise DataError(f"{path} is damaged: its description is not what was written.")

    def arrays() -> dict[str, Host]:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in shapes}
        if description.get("arrays", digest := _digest_of_arrays(found)) != digest:
            raise DataError(f"{path} is damaged: its arrays are not what was written.")
        return found

    return description, shapes, arrays


def check_shapes(expected: Mapping[str, Parameter], shapes: Mapping[str, Shape]) -> None:
    """Raise unless paths and shapes are exactly the network's."""
    faults = [f"{path} is missing" for path in expected if path not in shapes]
    faults += [f"{path} is unknown" for path in shapes if path not in expected]
    faults += [
        f"{path} has shape {shapes[path]} instead of {parameter.shape}"
        for path, parameter in expected.items()
        if path in shapes and shapes[path] != parameter.shape
    ]
    if faults:
        is_pytorch = any("." in path and "/" not in path for path in shapes if path not in expected)
        hint = " Names with dots are PyTorch's: layout='pytorch' may be what is meant." if is_pytorch else ""
        raise XpcnnError(f"the parameters do not fit the network: {'; '.join(faults)}.{hint}")


def _digest(description: Mapping[str, Any]) -> str:
    """Return a description's checksum: a flipped bit may still make sense."""
    bare = {name: value for name, value in description.items() if name != "blake2b"}
    return hashlib.blake2b(json.dumps(bare).encode(), digest_size=8).hexdigest()


def _digest_of_arrays(arrays: Mapping[str, Host]) -> str:
    """Return the checksum of arrays, in the order of their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
