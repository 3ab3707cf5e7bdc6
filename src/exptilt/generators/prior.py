"""Distributions of the latent: what they must offer is a draw per sample and a log-density."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

from exptilt.errors import InputError
from exptilt.sampling.random import Streams


class Prior(Protocol):
    """p(z)."""

    def sample(self, streams: Streams) -> torch.Tensor:
        """One latent for each stream, (N, *latent)."""
        ...

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) of latents (N, *latent), (N,)."""
        ...


class StandardNormal:
    """N(0, I)."""

    def sample(self, streams: Streams) -> torch.Tensor:
        """One latent for each stream, (N, *latent)."""
        return streams.normal()

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) = −‖z‖²/2 − (d/2) log 2π, (N,)."""
        flat = z.flatten(1)
        return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


class DistributionPrior:
    """Any ``torch.distributions.Distribution`` over one latent (or with independent coordinates).

    Args:
        distribution: Its ``batch_shape + event_shape`` is the latent shape, or broadcasts to it.
        latent_shape: Shape of one latent.
    """

    def __init__(self, distribution: torch.distributions.Distribution, latent_shape: tuple[int, ...]) -> None:
        drawn = tuple(distribution.sample().shape)
        if drawn not in (tuple(latent_shape), ()):
            raise InputError("prior", f"one draw has shape {drawn}", f"give a distribution over {tuple(latent_shape)}")
        self.distribution = distribution
        self.latent_shape = tuple(latent_shape)
        self._draw_shape = torch.Size(self.latent_shape if drawn == () else ())

    def sample(self, streams: Streams) -> torch.Tensor:
        """One latent for each stream, (N, *latent)."""
        draws = []
        # torch distributions draw from the global generator: it is seeded per sample, and restored.
        with torch.random.fork_rng(devices=[]):
            for index in streams.indices:
                torch.manual_seed(int(np.random.SeedSequence([streams.seed, index]).generate_state(1, np.uint64)[0]))
                draws.append(self.distribution.sample(self._draw_shape))
        return torch.stack(draws).float().to(streams.device)

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) of latents (N, *latent), (N,)."""
        return self.distribution.log_prob(z).flatten(1).sum(1) if z.dim() > 1 else self.distribution.log_prob(z)
