"""The chains of some samples: run side by side, followed, and told of by the samples' own indices."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exptilt.config import SamplerConfig
from exptilt.sampling.chains import ChainsDiverged, make_kernel, run, start
from exptilt.sampling.diagnostics import Recorder, SampleInfo, sums
from exptilt.sampling.kernel import Info, Potential, Proposal
from exptilt.sampling.random import SampleStreams


def run_samples(
    sampler: SamplerConfig,
    potential: Potential,
    prior: Proposal,
    streams: SampleStreams,
    strength: float,
    *,
    record_every: int | None = None,
    diagnose: bool = False,
    on_step: Callable[[], object] | None = None,
) -> tuple[torch.Tensor, SampleInfo]:
    """Run the chains of the samples ``streams.indices``, from the prior.

    Args:
        sampler: The chain.
        potential: U = λE − log p, (N, *latent) to (N,).
        prior: p(z).
        streams: Their random numbers.
        strength: λ.
        record_every: Keep the latents of every so many steps in the info.
        diagnose: Keep what the info tells of the way: energy and projections.
        on_step: Called after each step of all chains.

    Returns:
        Latents after the last step, (N, *latent), and what is known of the chains.

    Raises:
        ChainsDiverged: A chain left the finite numbers; the error names the samples.
    """
    z0, equal_candidates = start(sampler, potential, prior, streams)
    recorder = Recorder(prior, strength, z0)

    def follow(_step: int, info: Info) -> None:
        if diagnose:
            recorder.follow(info)
        if on_step is not None:
            on_step()

    kernel = make_kernel(sampler, potential, prior)
    try:
        chains = run(kernel, z0, sampler.steps, streams, record_every=record_every, callback=follow)
    except ChainsDiverged as error:
        samples = [streams.indices[chain] for chain in error.chains]
        raise ChainsDiverged(samples, error.step, sampler.step_size) from None
    info = SampleInfo(
        recorder.energy(),
        chains.acceptance.cpu(),
        chains.trajectory.cpu(),
        chains.recorded_steps,
        sums(z0, chains.position),
        recorder.projections(),
        equal_candidates.cpu(),
        sampler,
    )
    return chains.position, info
