"""Iterated sampling-importance-resampling (Andrieu, Lee, Vihola 2018)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from exptilt.sampling.kernel import Info, Noise, Potential, Proposal
from exptilt.sampling.resampling import choose, draw, log_weight, pick


class ISIRState(NamedTuple):
    """Position of the chains, (N, *latent), and the potential there, (N,)."""

    position: torch.Tensor
    potential: torch.Tensor


class ISIR:
    """i-SIR: the chain's latent and new ones of the prior, one of them chosen by weight exp(−U)/p.

    Samples exp(−U) without bias and without a gradient. A step costs ``candidates − 1`` values of U: that of the
    chain's own latent is known. It moves globally, but seldom where weights differ much, as in many dimensions.

    Args:
        potential: U, (N, *latent) to (N,).
        prior: p(z), from which the candidates are drawn.
        candidates: Latents to choose from, the chain's own among them, ≥ 2.
    """

    # Kernels have a step size; nothing here is to be tuned by it.
    step_size = math.nan

    def __init__(self, potential: Potential, prior: Proposal, candidates: int) -> None:
        self.potential = potential
        self.prior = prior
        self.candidates = candidates

    @torch.no_grad()
    def init(self, position: torch.Tensor) -> ISIRState:
        """Chains that stand at ``position``, (N, *latent). Costs one value of U."""
        return ISIRState(position, self.potential(position).to(position.dtype))

    @torch.no_grad()
    def step(self, state: ISIRState, noise: Noise) -> tuple[ISIRState, Info]:
        """One transition; the info's potential is that after it, its acceptance the probability to leave."""
        z, value = state
        latents, log_weights = draw(self.potential, self.prior, noise, z, self.candidates - 1)
        latents = torch.cat([z[None], latents])
        log_weights = torch.cat([log_weight(value, self.prior, z)[None], log_weights])
        index, weights = choose(log_weights, noise)
        position, chosen = pick(latents, index), pick(log_weights, index)
        potential = torch.where(index == 0, value, -chosen - self.prior.log_prob(position))
        leaves = torch.nan_to_num(1 - weights[0]).clamp(0, 1)
        return ISIRState(position, potential), Info(position, potential, leaves)
