"""Which elements come when: splits, epochs and batches, each determined by its arguments alone."""

from __future__ import annotations

import functools

import numpy as np
import torch

from exptilt.data.types import DataSet
from exptilt.errors import InputError, require_at_least

SPLITS = ("train", "test")

TEST_FRACTION = 0.1
"""Share of a source without splits of its own that becomes the test split."""
HELD_OUT_FRACTION = 0.1
"""Share of the training data that is kept from an energy, to choose its state and its strength by."""

# First word of a permutation's key: permutations made for different ends are independent of each other.
_EPOCH, _VALIDATION, _TEST, _FOLDER = 1, 2, 3, 4


def train_validation_split(
    dataset: DataSet, fraction: float = HELD_OUT_FRACTION, seed: int = 0
) -> tuple[DataSet, DataSet]:
    """Hold out a random part of a data set.

    Args:
        dataset: Usually the training split.
        fraction: Share that is held out, in (0, 1); at least one element is held out and one is kept.
        seed: Fixes the choice, together with the number of elements.

    Returns:
        What remains, in its old order, and what was held out, in random order.

    Raises:
        InputError: The fraction is outside (0, 1), or there are fewer than two elements.
    """
    if not 0 < fraction < 1:
        raise InputError("fraction", f"{fraction} is out of range", "give a number in (0, 1)")
    if len(dataset) < 2:
        raise InputError(dataset.source, "too few elements to hold any out", "give two or more")
    count = min(max(round(len(dataset) * fraction), 1), len(dataset) - 1)
    order = _permutation(len(dataset), _VALIDATION, seed)
    return dataset.select(order[count:].sort().values), dataset.select(order[:count])


def epoch_order(length: int, seed: int, epoch: int) -> torch.Tensor:
    """The order in which epoch number ``epoch`` visits ``length`` elements.

    Args:
        length: Number of elements.
        seed: A whole number ≥ 0.
        epoch: A whole number ≥ 0.

    Returns:
        A permutation of 0 … length − 1, int64 (length,), that the arguments alone determine.
    """
    return _cached_epoch_order(length, seed, epoch).clone()


def batch_indices(length: int, batch_size: int, seed: int, iteration: int) -> torch.Tensor:
    """The indices of batch number ``iteration`` in an endless stream of epochs.

    No state is kept between calls, so training goes on at any iteration as if it had never stopped.
    Each epoch is shuffled anew and its last partial batch is dropped.

    Args:
        length: Number of elements of the data set.
        batch_size: Elements wanted in a batch; a smaller data set is one batch.
        seed: A whole number ≥ 0.
        iteration: A whole number ≥ 0.

    Returns:
        Indices, int64 (min(batch_size, length),), all different.

    Raises:
        InputError: ``length`` or ``batch_size`` is below 1.
    """
    require_at_least(1, length=length, batch_size=batch_size)
    size = min(batch_size, length)
    epoch, number = divmod(iteration, length // size)
    return _cached_epoch_order(length, seed, epoch)[number * size : (number + 1) * size].clone()


def rows_of_split(total: int, split: str, limit: int | None, holds_split_only: bool, source: object) -> np.ndarray:
    """The rows of a source that make a split, in the order of the data set.

    Args:
        total: Number of rows in the source.
        split: ``"train"`` or ``"test"``.
        limit: Largest number of rows; None for all.
        holds_split_only: The source is this split. Otherwise its rows are divided at random, always the same way.
        source: The source as the user gave it, for the error.

    Returns:
        Row numbers, int64 (n,).

    Raises:
        InputError: The source is empty, or too small to be divided.
    """
    if total == 0:
        raise InputError(source, "holds no images", "give one or more")
    if holds_split_only:
        return np.arange(total if limit is None else min(total, limit))
    if total < 2:
        raise InputError(source, "holds 1 image, and train and test need one each", "give two or more")
    order = _permutation(total, _TEST, 0).numpy()
    test_count = max(round(total * TEST_FRACTION), 1)
    return (order[:test_count] if split == "test" else order[test_count:])[:limit]


def shuffled(total: int) -> np.ndarray:
    """A fixed order for files that lie sorted by class, so that every prefix is a fair sample; int64 (total,)."""
    return _permutation(total, _FOLDER, 0).numpy()


def _permutation(length: int, *key: int) -> torch.Tensor:
    # SeedSequence makes neighbouring keys independent, which seed + epoch would not.
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


@functools.lru_cache(maxsize=4)
def _cached_epoch_order(length: int, seed: int, epoch: int) -> torch.Tensor:
    return _permutation(length, _EPOCH, seed, epoch)
