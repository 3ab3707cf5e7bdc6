"""How many chains to run side by side: the fastest of a few numbers, by a short measurement.

Threads are left as they are: :func:`torch.set_num_threads` holds for the whole process, so a trial would also slow what
other threads of the program compute meanwhile, and torch's own choice, a thread for each core, is right for a batch
that fills the cores.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from exptilt.config import SamplerConfig
from exptilt.memory import is_out_of_memory
from exptilt.sampling.chains import make_kernel, run, start
from exptilt.sampling.kernel import Potential, Proposal
from exptilt.sampling.random import BatchStreams

# Steps of a trial; timed trials of each size, of which the shortest counts, as other work on a machine only adds.
STEPS, _TRIALS = 2, 2
# Sizes that are tried, as parts of the default. The memory of a GPU has more room than the cache of a processor.
_ON_CPU, _ON_GPU = (0.25, 0.5, 1, 2, 4), (0.25, 1, 4, 16)
# Index of the trials' batch, apart from those of training and of a warm-up.
_BATCH = 1 << 42


def candidates(default: int, n: int, device: torch.device) -> list[int]:
    """Numbers of chains to try, ascending: parts and multiples of ``default``, none above ``n`` (≥ 1)."""
    factors = _ON_CPU if device.type == "cpu" else _ON_GPU
    return sorted({max(1, min(n, round(factor * default))) for factor in factors})


def trial(
    config: SamplerConfig,
    of_size: Callable[[int], Potential],
    prior: Proposal,
    latent_shape: tuple[int, ...],
    device: torch.device,
) -> Callable[[int], None]:
    """What :func:`fastest` times: so many chains of ``config``, two steps long. No sample sees their random numbers.

    ``of_size`` gives the potential for so many chains.
    """
    short = dataclasses.replace(config, steps=STEPS)

    def run_chains(size: int) -> None:
        streams, potential = BatchStreams(0, _BATCH, size, latent_shape, device), of_size(size)
        z, _ = start(short, potential, prior, streams)
        run(make_kernel(short, potential, prior), z, STEPS, streams)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run_chains


def fastest(
    run_chains: Callable[[int], object], sizes: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> int:
    """The size at which a chain takes least time; of equals the smallest.

    Each size runs once before, as a first run also chooses algorithms and reserves memory; then the sizes take turns.
    A size that the memory does not hold ends the list.

    Args:
        run_chains: Runs that many chains, and returns when they are done.
        sizes: Numbers of chains, ascending, at least one.
        clock: Seconds.

    Raises:
        Exception: What the memory raised where even the first size does not fit.
    """
    sizes = _that_fit(run_chains, sizes)
    seconds_a_chain = dict.fromkeys(sizes, float("inf"))
    for _ in range(_TRIALS):
        for size in sizes:
            began = clock()
            run_chains(size)
            seconds_a_chain[size] = min(seconds_a_chain[size], (clock() - began) / size)
    return min(sizes, key=seconds_a_chain.__getitem__)


def _that_fit(run_chains: Callable[[int], object], sizes: Sequence[int]) -> Sequence[int]:
    for tried, size in enumerate(sizes):
        try:
            run_chains(size)
        except (RuntimeError, MemoryError) as error:
            if tried == 0 or not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return sizes[:tried]
    return sizes
