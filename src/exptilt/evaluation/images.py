"""The sets of images that are compared, all as uint8: reference, training images, samples, reconstructions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from exptilt import rows
from exptilt.data.types import DataSet, to_uint8
from exptilt.errors import InputError, RunError
from exptilt.generators.checks import require_units

# Reconstructions are made in blocks of this size whatever the batch size, so that the noise of q(z|x) is the same.
_ENCODED = 100

TENSOR_SOURCE = "tensor"
"""What :func:`as_data_set` notes as the source of images that came in a tensor."""


class Sampler(Protocol):
    """A generator, tilted or not, as the evaluation sees it."""

    def sample(self, n: int, *, seed: int, start: int) -> torch.Tensor:
        """Samples ``start … start + n − 1`` of ``seed``: images (n, C, H, W) in [−1, 1]."""
        ...


def untilted(model: object) -> Sampler | None:
    """The generator under a tilted one; None of a model that has none which samples."""
    within = getattr(model, "generator", None)
    return within if hasattr(within, "sample") else None


def as_data_set(data: DataSet | torch.Tensor, split: str) -> DataSet:
    """A data set of uint8 images.

    Args:
        data: A data set of images, or images (N, C, H, W) in [−1, 1] (or as uint8).
        split: Name of the split where ``data`` is a tensor.

    Raises:
        InputError: There are no images, or they are points, or their values lie outside [−1, 1].
    """
    if isinstance(data, torch.Tensor):
        if data.dim() == 4 and data.dtype != torch.uint8:
            require_units("data", data)
            data = to_uint8(data)
        data = DataSet("tensor", split, data, None, TENSOR_SOURCE)
    if data.stored.dim() != 4 or data.stored.dtype != torch.uint8:
        raise InputError(f"data {data.name!r}", f"holds points of shape {data.shape}", "evaluate takes images")
    if not len(data):
        raise InputError(f"data {data.name!r}", "holds no images", "give a set with images")
    return data


def as_rgb(x: torch.Tensor, features: str) -> torch.Tensor:
    """Images (N, 1 or 3, H, W) with three channels, grey repeated.

    Raises:
        InputError: They have another number of channels than ``--features`` of this name takes.
    """
    if x.shape[1] not in (1, 3):
        raise InputError(f"--features {features}", f"the images have {x.shape[1]} channels", "give grey or RGB images")
    return x.expand(-1, 3, -1, -1)


def sample_blocks(
    model: Sampler, seed: int, batch_size: int, shape: tuple[int, ...], name: str, indices: range
) -> Iterator[torch.Tensor]:
    """The samples ``indices`` of ``seed`` as uint8, at most ``batch_size`` at a time.

    Raises:
        InputError: The model's samples are not of ``shape`` (C, H, W).
        RunError: They are not finite.
    """
    for start in indices[::batch_size]:
        size = min(batch_size, indices.stop - start)
        images = model.sample(size, seed=seed, start=start)
        if tuple(images.shape) != (size, *shape):
            raise InputError(
                name, f"its samples have shape {tuple(images.shape[1:])}", f"those of the data have {shape}"
            )
        if not images.isfinite().all():
            raise RunError(f"{name}: samples {start} to {start + size - 1} of seed {seed} are not finite")
        yield to_uint8(images.detach())


def reconstruction_blocks(generator: Any, data: DataSet, seed: int, indices: range) -> Iterator[torch.Tensor]:
    """G(z) for one z ~ q(z|x) of each image x with one of the ``indices``, as uint8.

    Args:
        generator: Has ``encode(x, generator=torch.Generator)`` and ``decode(z)``.
        data: The images.
        seed: Fixes the draws from q(z|x).
        indices: Neighbours among the images.

    Raises:
        RunError: The reconstructions are not finite.
    """
    noise = torch.Generator().manual_seed(seed)
    device = getattr(generator, "device", torch.device("cpu"))
    for start in range(0, len(data), _ENCODED):
        stop = min(start + _ENCODED, len(data))
        wanted = range(max(start, indices.start), min(stop, indices.stop))
        # One image of a block without wanted ones: its noise is passed over that way.
        seen = wanted or range(start, start + 1)
        with torch.no_grad(), rows.part([range(seen.start - start, seen.stop - start)], stop - start):
            z = generator.encode(data.batch(slice(seen.start, seen.stop)).to(device), generator=noise)
        if not wanted:
            continue
        with torch.no_grad():
            images = generator.decode(z)
        if not images.isfinite().all():
            raise RunError("reconstruction: images are not finite")
        yield to_uint8(images)


def stored_blocks(data: DataSet, batch_size: int, indices: range) -> Iterator[torch.Tensor]:
    """The images of a data set with ``indices``, neighbours, as uint8, at most ``batch_size`` at a time."""
    return iter(data.stored[indices.start : indices.stop].split(batch_size))


def images_digest(data: DataSet) -> str:
    """SHA-256 of the pixels of a data set, in their order, as hexadecimal digits."""
    return hashlib.sha256(data.stored.contiguous().numpy().data).hexdigest()


def choose(data: DataSet, n: int, seed: int) -> DataSet:
    """n random images of a data set in their old order, all of them if there are no more."""
    return data if n >= len(data) else data.select(chosen_rows(len(data), n, seed))


def chosen_rows(count: int, n: int, seed: int) -> torch.Tensor:
    """The indices below ``count`` of the images that :func:`choose` takes, in order; int64 (min(n, count),)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:n].sort().values
