"""Data sets, pictures, augmentation and batches."""

from xpcnn.data.augment import Augment
from xpcnn.data.dataset import Dataset, Source
from xpcnn.data.idx import read_idx
from xpcnn.data.loader import Loader
from xpcnn.data.named import load_dataset
from xpcnn.data.picture import read_picture

__all__ = ["Augment", "Dataset", "Loader", "Source", "load_dataset", "read_idx", "read_picture"]
