"""Arrays by name from wherever weights lie: a mapping, safetensors, Keras' HDF5; what would have to run is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpcnn.errors import DataError, XpcnnError
from xpcnn.layers import stored
from xpcnn.layers.base import Shape

Host = np.ndarray[Any, Any]

FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors names them
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
HDF5, ZIP, PICKLE = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80"  # how files of the kind begin


class Stored(NamedTuple):
    """An array that has not been read yet."""

    shape: Shape
    read: Callable[[], Host]
    place: str = ""  # its layer's number among its like, where that is not in its name


Found = dict[str, Stored]


@contextmanager
def opened(source: Mapping[str, Any] | str | Path) -> Iterator[tuple[Found, str]]:
    """Give the arrays of a mapping or a file, and the layout that its kind says ("" where it says none).

    Nothing is read before `Stored.read` is called, and shapes are held against the file's size.

    Raises
    ------
    DataError
        When the file is missing, truncated, damaged, or of a kind that is not read.
    """
    if isinstance(source, Mapping):
        yield {str(name): _of_array(str(name), value) for name, value in source.items()}, ""
        return
    if not isinstance(source, str | Path):
        raise XpcnnError(f"weights must be a mapping from name to array or a file's path, not {source!r}.")
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path} {'is a directory' if path.is_dir() else 'does not exist'}.")
    with open(path, "rb") as file:
        start = file.read(9)
    is_safetensors = start[8:] == b"{"  # after eight bytes of length, which may be any
    if path.suffix.lower() in PICKLES or (start.startswith(PICKLE) and not is_safetensors):
        raise _pickled(path)
    if start.startswith((HDF5, ZIP)) and not is_safetensors:
        from xpcnn.interop.keras_file import weights

        with weights(path, packed=start.startswith(ZIP)) as found:
            if found is None:
                raise _pickled(path)
            yield found, "keras"
        return
    with _safetensors(path) as (found, kind):
        yield found, kind


def bfloat16(bits: Host) -> Host:
    """Return as float32 the numbers whose upper halves these 16 bits are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _of_array(name: str, value: Any) -> Stored:
    """Return an array of any library as one that is read when it is needed."""
    if not hasattr(value, "shape"):
        value = np.asarray(value)
    return Stored(tuple(value.shape), partial(_on_host, name, value))


def _on_host(name: str, value: Any) -> Host:
    """Return a NumPy array of an array of any library, on whatever device."""
    if hasattr(value, "detach"):  # PyTorch's
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = value.get() if type(value).__module__.startswith("cupy") else np.asarray(value)
    if array.dtype.kind != "f":
        raise XpcnnError(f"parameters must be floats, but {name} is {array.dtype}.")
    return array


def _pickled(path: Path) -> DataError:
    """Return the error that says how to convert a pickle."""
    return DataError(
        f"{path} is a pickle, or named like one: reading it can run any program, so it is not read. Convert it where "
        f"it comes from: import torch, safetensors.torch; safetensors.torch.save_file(torch.load({path.name!r}, "
        "weights_only=True), 'weights.safetensors')."
    )


@contextmanager
def _safetensors(path: Path) -> Iterator[tuple[Found, str]]:
    """Give a safetensors file's arrays, and "xpcnn" if it is a model of xpcnn, whose digests are then checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if "xpcnn" in (file.metadata() or {}):
                yield _own(path), "xpcnn"
                return
            pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            yield (
                {
                    name: Stored(tuple(piece.get_shape()), partial(_tensor, path, file, name, piece.get_dtype()))
                    for name, piece in pieces.items()
                },
                "",
            )
    except (SafetensorError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error}).") from None


def _own(path: Path) -> Found:
    """Return the arrays of a model of xpcnn."""
    description, shapes, arrays = stored.read(path)
    if "kind" in description:
        raise DataError(f"{path} is no model but a {description['kind']}; the model is beside it, if there is one.")
    once = cache(arrays)
    return {name: Stored(shape, lambda name=name: once()[name]) for name, shape in shapes.items()}  # type: ignore[misc]


def _tensor(path: Path, file: Any, name: str, dtype: str) -> Host:
    """Read one array of floats; bfloat16, which NumPy does not know, becomes float32."""
    if dtype not in FLOATS:
        raise DataError(f"{path} must hold floats ({', '.join(FLOATS)}), but {name} is {dtype}.")
    if dtype != "BF16":
        return file.get_tensor(name)
    with open(path, "rb") as raw:  # what the library has checked: 8 bytes of length, a header, and the arrays
        length = int.from_bytes(raw.read(8), "little")
        entry = json.loads(raw.read(length))[name]
        begin, end = entry["data_offsets"]
        raw.seek(8 + length + begin)
        return bfloat16(np.frombuffer(raw.read(end - begin), "<u2")).reshape(entry["shape"])
