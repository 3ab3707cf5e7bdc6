"""Step sizes that a target acceptance asks for: tuned on chains of their own, then frozen."""

from __future__ import annotations

import dataclasses

import torch

from exptilt.config import ADAPTABLE, SamplerConfig
from exptilt.errors import InputError
from exptilt.sampling.chains import adapt_step_size, make_kernel, start
from exptilt.sampling.kernel import Potential, Proposal
from exptilt.sampling.random import BatchStreams

CHAINS, STEPS = 256, 100
# Index of the warm-up's batch, apart from those of training.
_BATCH = 1 << 41


@torch.no_grad()
def adapted(
    config: SamplerConfig,
    potential: Potential,
    prior: Proposal,
    target: float,
    *,
    seed: int,
    latent_shape: tuple[int, ...],
    device: torch.device,
) -> SamplerConfig:
    """``config`` with the step size that gives ``target`` acceptance, found by 256 chains of 100 steps.

    No sample sees their random numbers.

    Raises:
        InputError: The kernel has no acceptance that depends on its step size, or the target is not in (0, 1).
    """
    if not 0 < target < 1:
        raise InputError("target acceptance", f"{target} is out of range", "give a number between 0 and 1")
    if config.kernel not in ADAPTABLE:
        raise InputError(
            "target acceptance",
            f"kernel {config.kernel} has no acceptance that its step size changes",
            f"leave it out, or use kernel {' or '.join(ADAPTABLE)}",
        )
    streams = BatchStreams(seed, _BATCH, CHAINS, latent_shape, device)
    kernel = make_kernel(config, potential, prior)
    z, _ = start(config, potential, prior, streams)
    step_size, _ = adapt_step_size(kernel, z, streams, target, STEPS)
    return dataclasses.replace(config, step_size=step_size)


def gradients(config: SamplerConfig) -> int:
    """Gradients of U that :func:`adapted` takes."""
    return CHAINS * dataclasses.replace(config, steps=STEPS).gradients
