"""Data sets and pictures."""

from xpcnn.data.dataset import Dataset, load_dataset
from xpcnn.data.idx import read_idx
from xpcnn.data.picture import read_picture

__all__ = ["Dataset", "load_dataset", "read_idx", "read_picture"]
