"""Sampling-importance-resampling (Rubin 1987): of several latents of the prior keep one, by weight."""

from __future__ import annotations

import torch

from exptilt.sampling.kernel import Noise, Potential, Proposal


@torch.no_grad()
def resample(
    potential: Potential, prior: Proposal, noise: Noise, start: torch.Tensor, candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose for each chain among ``start`` and ``candidates − 1`` new latents of the prior.

    A latent is chosen with probability ∝ exp(−U(z))/p(z). As ``candidates`` grows, the density of the choice goes to
    exp(−U); with one it is the prior.

    Args:
        potential: U, (N, *latent) to (N,).
        prior: p(z).
        noise: Random numbers for N chains.
        start: One latent of the prior for each chain, (N, *latent).
        candidates: How many, ≥ 1; each costs one value of U.

    Returns:
        The chosen latents, (N, *latent), and for how many equal ones each chain's weights count, (Σw)²/Σw², (N,).
    """
    latents, log_weights = draw(potential, prior, noise, start, candidates - 1)
    latents = torch.cat([start[None], latents])
    log_weights = torch.cat([log_weight(potential(start), prior, start)[None], log_weights])
    index, weights = choose(log_weights, noise)
    return pick(latents, index), 1 / weights.square().sum(0)


def draw(
    potential: Potential, prior: Proposal, noise: Noise, like: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """New latents of the prior for each chain, (count, N, *latent), and their log-weights, (count, N)."""
    latents, log_weights = like.new_empty(count, *like.shape), like.new_empty(count, len(like))
    # One after the other: the chains side by side fill a batch already.
    for k in range(count):
        latents[k] = prior.sample(noise.fork()).to(like.dtype)
        log_weights[k] = log_weight(potential(latents[k]), prior, latents[k])
    return latents, log_weights


def log_weight(value: torch.Tensor, prior: Proposal, position: torch.Tensor) -> torch.Tensor:
    """log exp(−U)/p = −λE, (N,), from U (N,) at latents (N, *latent); −∞ where it is not a number."""
    weight = -value.to(position.dtype) - prior.log_prob(position)
    return torch.where(torch.isnan(weight), -torch.inf, weight)


def choose(log_weights: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
    """One of K for each chain, by log-weights (K, N): its index (N,), and the weights, which sum to 1, (K, N).

    Where no weight is positive the first is chosen, and the weights are not numbers.
    """
    weights = log_weights.softmax(0)
    total = weights.cumsum(0)
    beyond = total > noise.uniform().to(total.dtype) * total[-1]
    # argmax gives the first of equals.
    return beyond.int().argmax(0), weights


def pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``values[index[n], n]`` for each chain n: (K, N, …) and (N,) to (N, …)."""
    return values[index, torch.arange(len(index), device=index.device)]
