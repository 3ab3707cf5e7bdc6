"""Random numbers that belong to samples, not to batches: those of sample i depend on (seed, i) alone."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch

from exptilt.errors import InputError

# Numbers drawn ahead at once over all samples: large enough that a Python call a sample costs nothing.
_BLOCK = 1 << 21
_NORMAL, _UNIFORM = 0, 1
# Keys of batches, apart from those of samples.
_BATCH_KEYS = 1 << 63
# Chains of a batch that share a stream, so that a process which runs some of them need not draw the numbers of all.
_BATCH_BLOCK = 512


class Streams(ABC):
    """Random numbers for n chains, see :class:`SampleStreams` and :class:`BatchStreams`.

    Args:
        seed: Whole number in [0, 2⁶⁴).
        start: Index of the first sample.
        n: Number of samples.
        shape: Shape of one draw of :meth:`normal`, for example the latent shape.
        device: Where the numbers are wanted. They are made on the CPU.
    """

    def __init__(
        self, seed: int, start: int, n: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        if not 0 <= seed < 2**64:
            raise InputError("seed", f"{seed} is out of range", "give a whole number in [0, 2**64)")
        self.seed = seed
        self.indices = range(start, start + n)
        self.n = n
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self._forks = 0

    def normal(self) -> torch.Tensor:
        """The next standard normal draw of each sample, float32 (n, *shape)."""
        return self._draw_normal().view(self.n, *self.shape).to(self.device)

    def uniform(self) -> torch.Tensor:
        """The next number in [0, 1) of each sample, float32 (n,)."""
        return self._draw_uniform().view(self.n).to(self.device)

    def fork(self) -> Streams:
        """These streams, for one draw of a prior.

        They go on where they are (before a first draw, they are streams of their own), under another ``seed``: a prior
        that seeds a generator of its own by (seed, index) would give the same latents each time.
        """
        self._forks += 1
        fork = copy.copy(self)
        fork.seed = int(np.random.SeedSequence([self.seed, self._forks]).generate_state(1, np.uint64)[0])
        return fork

    @abstractmethod
    def _draw_normal(self) -> torch.Tensor: ...

    @abstractmethod
    def _draw_uniform(self) -> torch.Tensor: ...


class BatchStreams(Streams):
    """Random numbers of one batch, which follow from (seed, start): cheap, for training, where a chain has no name.

    Args:
        seed: Whole number in [0, 2⁶⁴).
        start: Index of the batch.
        n: Number of chains in the batch.
        shape: Shape of one draw of :meth:`normal`.
        device: Where the numbers are wanted.
        rows: The chains whose numbers are wanted, neighbours; all unless given. They get what they get among all.
        block: Chains that share a stream.
    """

    def __init__(
        self,
        seed: int,
        start: int,
        n: int,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        *,
        rows: range | None = None,
        block: int = _BATCH_BLOCK,
    ) -> None:
        rows = range(n) if rows is None else rows
        super().__init__(seed, start, len(rows), shape, device)
        self._start, self._block = start, block
        # (First row, rows) of each block that a row is wanted of.
        firsts = range(rows.start // block * block, rows.stop, block)
        self._blocks = [(first, min(block, n - first)) for first in firsts]
        self._wanted = slice(rows.start - firsts.start, rows.stop - firsts.start)

    @cached_property
    def _randoms(self) -> list[np.random.Generator]:
        key = _BATCH_KEYS + self._start
        return [_generator(self.seed, key, first // self._block) for first, _ in self._blocks]

    def _draw_normal(self) -> torch.Tensor:
        size = math.prod(self.shape)
        pairs = zip(self._randoms, self._blocks, strict=True)
        drawn = [random.standard_normal((count, size), dtype=np.float32) for random, (_, count) in pairs]
        return self._of_rows(drawn)

    def _draw_uniform(self) -> torch.Tensor:
        pairs = zip(self._randoms, self._blocks, strict=True)
        return self._of_rows([random.random(count, dtype=np.float32) for random, (_, count) in pairs])

    def _of_rows(self, drawn: list[np.ndarray]) -> torch.Tensor:
        whole = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
        return torch.from_numpy(whole[self._wanted])


class SampleStreams(Streams):
    """One stream of random numbers for each of the samples ``start … start + n − 1`` of ``seed``.

    The streams are counter-based (Philox, Salmon et al. 2011), keyed by (seed, index), so a sample does not
    depend on which others are drawn beside it, nor on the device.
    """

    def _draw_normal(self) -> torch.Tensor:
        return self._normal.next()

    def _draw_uniform(self) -> torch.Tensor:
        return self._uniform.next()

    @cached_property
    def _normal(self) -> _Stream:
        return _Stream(self.seed, self.indices, _NORMAL, math.prod(self.shape))

    @cached_property
    def _uniform(self) -> _Stream:
        return _Stream(self.seed, self.indices, _UNIFORM, 1)


class Reshaped(Streams):
    """The same streams, whose draws of :meth:`normal` have another shape of as many numbers.

    Args:
        streams: Where the numbers come from.
        shape: Shape of one draw.
    """

    def __init__(self, streams: Streams, shape: tuple[int, ...]) -> None:
        super().__init__(streams.seed, streams.indices.start, streams.n, shape, streams.device)
        self._streams = streams

    def _draw_normal(self) -> torch.Tensor:
        return self._streams.normal()

    def _draw_uniform(self) -> torch.Tensor:
        return self._streams.uniform()


class _Stream:
    def __init__(self, seed: int, indices: range, purpose: int, size: int) -> None:
        self._draw_normal = purpose == _NORMAL
        self._streams = [_generator(seed, 2 * i + purpose) for i in indices]
        self._size = size
        # At least one draw ahead; draws are consumed in order, so the block's length changes no number.
        self._ahead = max(1, min(64, _BLOCK // max(1, len(self._streams) * size)))
        self._next = self._ahead
        self._block = np.empty(0, np.float32)

    def next(self) -> torch.Tensor:
        if self._next == self._ahead:
            self._block = np.empty((len(self._streams), self._ahead * self._size), np.float32)
            for row, stream in zip(self._block, self._streams, strict=True):
                if self._draw_normal:
                    stream.standard_normal(dtype=np.float32, out=row)
                else:
                    stream.random(dtype=np.float32, out=row)
            self._next = 0
        first = self._next * self._size
        self._next += 1
        return torch.from_numpy(np.ascontiguousarray(self._block[:, first : first + self._size]))


def _generator(seed: int, stream: int, block: int = 0) -> np.random.Generator:
    # An explicit type: numpy would make floats of large integers, and neighbouring streams the same.
    key = np.array([seed, stream], np.uint64)
    # Blocks of a stream are 2¹⁹² numbers apart.
    return np.random.Generator(np.random.Philox(counter=np.array([0, 0, 0, block], np.uint64), key=key))
