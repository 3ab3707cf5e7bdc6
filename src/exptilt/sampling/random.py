"""Random numbers that belong to samples, not to batches: those of sample i depend on (seed, i) alone."""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch

from exptilt.errors import InputError

# Numbers drawn ahead at once over all samples: large enough that a Python call a sample costs nothing.
_BLOCK = 1 << 21
# Draws of the first block of a stream, and the numbers of a block from which threads are worth their start.
_FIRST, _WORTH_THREADS = 4, 1 << 17
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
        return self._draw_normal().to(self.device).view(self.n, *self.shape)

    def uniform(self) -> torch.Tensor:
        """The next number in [0, 1) of each sample, float32 (n,)."""
        return self._draw_uniform().to(self.device).view(self.n)

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
        return _Stream(self.seed, self.indices, _NORMAL, math.prod(self.shape), self.device)

    @cached_property
    def _uniform(self) -> _Stream:
        return _Stream(self.seed, self.indices, _UNIFORM, 1, self.device)


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
    def __init__(self, seed: int, indices: range, purpose: int, size: int, device: torch.device) -> None:
        self._draw_normal = purpose == _NORMAL
        self._streams = [_generator(seed, 2 * i + purpose) for i in indices]
        self._size, self._device = size, device
        # Draws are consumed in order, so how many are made at once changes no number: twice as many each time, as a
        # short chain should not pay for a long one's.
        self._most = max(1, min(64, _BLOCK // max(1, len(self._streams) * size)))
        self._ahead = self._next = 0
        self._block = torch.empty(0)

    def next(self) -> torch.Tensor:
        if self._next == self._ahead:
            self._ahead = min(self._most, max(_FIRST, 2 * self._ahead))
            block = np.empty((len(self._streams), self._ahead * self._size), np.float32)
            self._fill(block)
            # To the device in one piece, as each copy from the CPU makes a GPU wait.
            self._block, self._next = torch.from_numpy(block).to(self._device), 0
        first = self._next * self._size
        self._next += 1
        return self._block[:, first : first + self._size].contiguous()

    def _fill(self, block: np.ndarray) -> None:
        """Rows of the streams, by as many threads as torch has: numpy draws without Python's lock."""
        threads = min(torch.get_num_threads(), len(block)) if block.size >= _WORTH_THREADS else 1
        if threads == 1:
            self._fill_rows(range(len(block)), block)
            return
        parts = np.array_split(np.arange(len(block)), threads)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._fill_rows, parts, itertools.repeat(block)))

    def _fill_rows(self, rows: Iterable[int], block: np.ndarray) -> None:
        for i in rows:
            if self._draw_normal:
                self._streams[i].standard_normal(dtype=np.float32, out=block[i])
            else:
                self._streams[i].random(dtype=np.float32, out=block[i])


def _generator(seed: int, stream: int, block: int = 0) -> np.random.Generator:
    # An explicit type: numpy would make floats of large integers, and neighbouring streams the same.
    key = np.array([seed, stream], np.uint64)
    # Blocks of a stream are 2¹⁹² numbers apart.
    return np.random.Generator(np.random.Philox(counter=np.array([0, 0, 0, block], np.uint64), key=key))
