"""Negatives of a stage that starts from a tilted model: samples of it, drawn once before the stage."""

from __future__ import annotations

import torch

from exptilt import distributed
from exptilt.config import SamplerConfig
from exptilt.tilted import TiltedGenerator

# Indices of these samples, apart from those of users' samples and of checks, and the distance from one stage's to the
# next's.
_START, _STRIDE = 1 << 46, 1 << 40
# In units of the sampler's length, how long the chains are from which they are taken.
_LENGTHS = 5


def draw_pool(base: TiltedGenerator, n: int, seed: int, stage: int, first: int) -> torch.Tensor:
    """Samples of a tilted model, as latents (M, *latent) with M ≥ n.

    They are the states of its chains after the steps of its sampler, twice as many, and so on: what a chain of five
    times the length finds is corrected too.

    Args:
        base: The model.
        n: Number of samples, ≥ 1.
        seed: Seed of the chains.
        stage: Number of the stage, from 0, apart from whose chains the others' are.
        first: Index of the first chain among the stage's.
    """
    sampler = base.sampler
    lengths = _LENGTHS if sampler.steps else 1
    start = _START + stage * _STRIDE + first

    def states(mine: range) -> torch.Tensor:
        z, info = base.sample(
            len(mine),
            seed=seed,
            start=start + mine.start,
            sampler=sampler.change(steps=lengths * sampler.steps),
            record_every=sampler.steps or None,
            return_latents=True,
            return_info=True,
        )
        return z[:, None] if lengths == 1 else info.trajectory[1:].transpose(0, 1)

    return distributed.rows(-(-n // lengths), states).transpose(0, 1).flatten(0, 1)


def pool_gradients(sampler: SamplerConfig, n: int) -> int:
    """Gradients of U that :func:`draw_pool` takes for n samples of a model with this sampler."""
    return -(-n // _LENGTHS) * sampler.change(steps=_LENGTHS * sampler.steps).gradients
