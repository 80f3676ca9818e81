"""Files for tests: IDX written byte by byte, and small data sets of it."""

from __future__ import annotations

import numpy as np


def idx(values, lengths=None, *, start=b"\0\0", kind=8, axes=None):
    """Return an IDX file of unsigned bytes; the options make it lie."""
    values = np.asarray(values, dtype=np.uint8)
    lengths = values.shape if lengths is None else lengths
    head = start + bytes([kind, len(lengths) if axes is None else axes])
    return head + b"".join(int(length).to_bytes(4, "big") for length in lengths) + values.tobytes()


def write_dataset(directory, train, test):
    """Write two pairs (images (N, H, W), labels (N,)) as the four files of a data set; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        (directory / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return directory
