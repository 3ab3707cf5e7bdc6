"""Distributions of the latent: what they must offer is a draw per sample and a log-density."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch.distributions import Distribution

from exptilt.errors import InputError
from exptilt.sampling.random import Streams

# Numbers of a stream that make the seed of one draw.
_SEED_NUMBERS = 8


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


class Drawable(Protocol):
    """What :class:`DistributionPrior` needs of a distribution; ``torch.distributions.Distribution`` has it."""

    def sample(self, sample_shape: torch.Size, /) -> torch.Tensor:
        """A draw of shape ``sample_shape + event_shape``, by torch's global random state."""
        ...

    def log_prob(self, value: torch.Tensor, /) -> torch.Tensor:
        """log p of values (N, *latent): (N,), or one number for each independent coordinate."""
        ...


class DistributionPrior:
    """Any ``torch.distributions.Distribution`` over one latent (or with independent coordinates).

    Args:
        distribution: Its ``batch_shape + event_shape`` is the latent shape, or ``()`` for independent, equal
            coordinates.
        latent_shape: Shape of one latent.

    Raises:
        InputError: A draw has another shape.
    """

    def __init__(self, distribution: Distribution | Drawable, latent_shape: tuple[int, ...]) -> None:
        with torch.random.fork_rng(devices=[]):
            draw = distribution.sample(torch.Size())
        drawn = tuple(draw.shape)
        if drawn not in (tuple(latent_shape), ()):
            raise InputError("prior", f"one draw has shape {drawn}", f"give a distribution over {tuple(latent_shape)}")
        self.distribution = distribution
        # A distribution stays where it was made: torch has no way to move one.
        self.device = draw.device
        self.latent_shape = tuple(latent_shape)
        self._draw_shape = torch.Size(self.latent_shape if drawn == () else ())

    def sample(self, streams: Streams) -> torch.Tensor:
        """One latent for each stream, (N, *latent)."""
        draws = []
        # torch distributions draw from the global generator: it is seeded per sample, and restored. The seed is made
        # of the stream's own numbers, as the streams of a batch in training have no index of their own.
        entropy = streams.normal().flatten(1)[:, :_SEED_NUMBERS].cpu().numpy().view(np.uint32)
        gpus = [self.device.index] if self.device.type == "cuda" else []
        generators = [torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)]
        with torch.random.fork_rng(devices=gpus):
            for words in entropy:
                seed = np.random.SeedSequence([streams.seed, *words.tolist()]).generate_state(1, np.uint64)[0]
                for generator in generators:
                    generator.manual_seed(int(seed))
                draws.append(self.distribution.sample(self._draw_shape))
        return torch.stack(draws).float().to(streams.device)

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) of latents (N, *latent), (N,)."""
        return self.distribution.log_prob(z.to(self.device)).reshape(len(z), -1).sum(1).to(z.device)
