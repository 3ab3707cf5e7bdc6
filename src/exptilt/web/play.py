"""A tilted model's chains as they run: the samples that the library draws, step by step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from exptilt.config import SamplerConfig
from exptilt.errors import RunError
from exptilt.sampling.chains import make_kernel, start, walk
from exptilt.sampling.diagnostics import Recorder, SampleInfo, sums
from exptilt.sampling.random import SampleStreams
from exptilt.tilted import TiltedGenerator


@dataclass(frozen=True)
class Frame:
    """All chains at one step.

    Attributes:
        step: Its number; 0 is the start.
        latents: z, (N, *latent_shape), on the CPU.
        samples: G(z), (N, *data_shape), on the CPU.
        info: What the chains did; at the last step only.
    """

    step: int
    latents: torch.Tensor
    samples: torch.Tensor
    info: SampleInfo | None = None


@torch.no_grad()
def play(
    tilted: TiltedGenerator,
    n: int,
    *,
    seed: int,
    sampler: SamplerConfig,
    record_every: int,
    most_seconds: float = float("inf"),
) -> Iterator[Frame]:
    """The chains of ``tilted.sample(n, seed=seed, sampler=sampler, batch_size=n)`` while they run.

    Args:
        tilted: The model.
        n: Number of chains, ≥ 1.
        seed: As in ``sample``.
        sampler: The chain.
        record_every: Steps between two frames.
        most_seconds: Time that the chains may take.

    Yields:
        A frame of the start, of every so many steps, and of the last step.

    Raises:
        ChainsDiverged: A chain left the finite numbers.
        RunError: The time was not enough.
    """
    generator, began = tilted.generator, time.monotonic()
    potential = tilted.chain_potential()
    streams = SampleStreams(seed, 0, n, generator.latent_shape, tilted.device)
    z0, equal_candidates = start(sampler, potential, generator.prior, streams)

    def frame(step: int, z: torch.Tensor, info: SampleInfo | None = None) -> Frame:
        return Frame(step, z.cpu(), generator.decode(z).cpu(), info)

    if sampler.steps:
        yield frame(0, z0)
    recorder = Recorder(generator.prior, tilted.strength, z0)
    z, acceptance = z0, torch.zeros(n, device=tilted.device)
    for step, z, info in walk(make_kernel(sampler, potential, generator.prior), z0, sampler.steps, streams):
        recorder.follow(info)
        acceptance += info.acceptance.float()
        if time.monotonic() - began > most_seconds:
            fault = f"step {step} of {sampler.steps} was reached in the {most_seconds:g} s that a run may take"
            raise RunError(f"{fault}; take fewer steps or fewer images")
        if step % record_every == 0 and step < sampler.steps:
            yield frame(step, z)
    told = SampleInfo(
        recorder.energy(),
        (acceptance / max(1, sampler.steps)).cpu(),
        z.new_empty(0, *z.shape).cpu(),
        sums=sums(z0, z),
        projections=recorder.projections(),
        equal_candidates=equal_candidates.cpu(),
        sampler=sampler,
    )
    yield frame(sampler.steps, z, told)
