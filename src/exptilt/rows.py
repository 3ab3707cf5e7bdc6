"""Random numbers for some rows of a batch: those that the rows get when the whole batch is computed at once.

What draws one number or more for each row of a batch draws through this module. Where a part of a batch is computed
(:func:`part`), the numbers of the whole batch are drawn, and the rows' own are taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import nn


class Part:
    """Rows of a batch.

    Args:
        ranges: Their indices.
        total: Rows of the whole batch.
    """

    def __init__(self, ranges: Sequence[range], total: int) -> None:
        self.indices = torch.cat([torch.arange(each.start, each.stop) for each in ranges])
        self.total = total

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The part's rows of the whole batch's."""
        return whole[self.indices.to(whole.device)]


_part: ContextVar[Part | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def part(ranges: Sequence[range], total: int) -> Iterator[None]:
    """Within it, batches are the rows in ``ranges`` of a batch of ``total`` rows."""
    whole = sum(map(len, ranges)) == total
    token = _part.set(None if whole else Part(ranges, total))
    try:
        yield
    finally:
        _part.reset(token)


def is_part() -> bool:
    """Whether batches are parts of larger ones."""
    return _part.get() is not None


def normal(shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
    """Standard normal numbers, float32 (N, …) on the CPU."""
    now = _part_of(shape[0])
    if now is None:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    return now.of(torch.randn((now.total, *shape[1:]), generator=generator, dtype=torch.float32))


def gaussian(
    mean: torch.Tensor, deviation: torch.Tensor, draws: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Independent samples of N(mean, deviation²), (N, …) each, on their device: (N, draws, …)."""
    noise = torch.stack([normal(mean.shape, generator) for _ in range(draws)], dim=1).to(mean.device)
    return mean.unsqueeze(1) + deviation.unsqueeze(1) * noise


def uniform(shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
    """Numbers in [0, 1), float32 (N, …) on the CPU."""
    now = _part_of(shape[0])
    if now is None:
        return torch.rand(tuple(shape), generator=generator, dtype=torch.float32)
    return now.of(torch.rand((now.total, *shape[1:]), generator=generator, dtype=torch.float32))


def integers(low: int, high: int, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Whole numbers in [low, high), int64 (N,) on the CPU."""
    now = _part_of(n)
    if now is None:
        return torch.randint(low, high, (n,), generator=generator)
    return now.of(torch.randint(low, high, (now.total,), generator=generator))


class Dropout(nn.Dropout):
    """Dropout whose mask belongs to the rows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch names it
        """The input (N, …) with some of its entries set to 0 in training."""
        now = _part_of(len(input))
        if now is None or not self.training or self.p == 0:
            return super().forward(input)
        # As torch's own on the CPU draws it for the whole batch.
        mask = input.new_empty(now.total, *input.shape[1:]).bernoulli_(1 - self.p)
        return input * now.of(mask.div_(1 - self.p))


def seed_of(seed: int, iteration: int) -> int:
    """A seed for the numbers of one iteration, of those that torch's generators take."""
    return (seed * 1_000_003 + iteration) % 2**64


def own_seed(seed: int) -> int:
    """A seed for numbers that something else draws: another one for each part of a batch."""
    now = _part.get()
    return seed if now is None else (seed + int(now.indices[0])) % 2**62


def _part_of(n: int) -> Part | None:
    """The part that a batch of n rows is; None for a whole batch, and for what is no batch."""
    now = _part.get()
    return now if now is not None and len(now.indices) == n else None
