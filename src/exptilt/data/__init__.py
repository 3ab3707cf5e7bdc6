"""Data sets: a name, a Hub id or a path becomes images in [−1, 1] or points, split and ordered reproducibly."""

from exptilt.data.load import MIRRORED, load_dataset, load_images
from exptilt.data.order import HELD_OUT_FRACTION, batch_indices, epoch_order, train_validation_split
from exptilt.data.types import DataSet, to_uint8

__all__ = [
    "HELD_OUT_FRACTION",
    "MIRRORED",
    "DataSet",
    "batch_indices",
    "epoch_order",
    "load_dataset",
    "load_images",
    "to_uint8",
    "train_validation_split",
]
