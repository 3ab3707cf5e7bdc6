"""What a baseline is: another distribution of latents for the same decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from exptilt.density import LatentPotential
from exptilt.errors import RunError
from exptilt.generators.base import Generator, blocks, require_range
from exptilt.memory import in_parts
from exptilt.sampling.kernel import value_and_gradient
from exptilt.sampling.random import SampleStreams, Streams
from exptilt.tilted import TiltedGenerator

# Index of the first latent that constants are measured on, apart from those of users' samples.
_PILOT = 1 << 44


class Baseline(ABC):
    """Latents by another method, decoded.

    A subclass defines :meth:`latents` and :meth:`describe`.

    Attributes:
        generator: The generator whose samples are made better; an evaluation measures it beside the baseline.

    Args:
        generator: It is frozen here.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator.freeze()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.generator.data_shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.generator.device

    @abstractmethod
    def latents(self, streams: Streams) -> torch.Tensor:
        """One latent for each stream, (N, *latent_shape); each depends on its own stream alone."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The settings that sampling uses, as JSON values."""

    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int = 0, start: int = 0, batch_size: int = 250, return_latents: bool = False
    ) -> torch.Tensor:
        """Samples ``start … start + n − 1`` of ``seed``, (n, *data_shape) in float32.

        Sample i depends on (seed, i) alone, up to the rounding of a batch's arithmetic.

        Args:
            n: Number of samples, ≥ 0.
            seed: Whole number in [0, 2⁶⁴).
            start: Index of the first sample.
            batch_size: Samples made at once, fewer where the memory does not hold them.
            return_latents: Return z, (n, *latent_shape), in place of G(z).

        Raises:
            InputError: n, start or batch_size is out of range.
            RunError: A latent is not finite.
        """
        require_range(n, start, batch_size)

        def make(first: int, size: int) -> torch.Tensor:
            z = self.latents(SampleStreams(seed, first, size, self.generator.latent_shape, self.device))
            if not bool(torch.isfinite(z).all()):
                last = first + size - 1
                raise RunError(f"latents of samples {first} to {last} are not finite; use a smaller step size")
            return z if return_latents else self.generator.decode(z)

        samples = list(in_parts(n, start, batch_size, make))
        shape = self.generator.latent_shape if return_latents else self.data_shape
        return torch.cat(samples) if samples else torch.empty(0, *shape)


class EnergyBaseline(Baseline):
    """A baseline by the energy λE(G(z)) + λE_z(z) of a tilted generator.

    Args:
        tilted: Generator and energy; its chain is not used.
    """

    def __init__(self, tilted: TiltedGenerator) -> None:
        super().__init__(tilted.generator)
        self.tilted = tilted

    def energy(self, potential: LatentPotential, z: torch.Tensor) -> torch.Tensor:
        """λE of latents (N, *latent_shape), (N,)."""
        return potential.strength * potential.energy(z)

    def energy_and_gradient(self, potential: LatentPotential, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """λE of latents (N, *latent_shape), (N,), and its gradient, (N, *latent_shape)."""
        return value_and_gradient(lambda z: self.energy(potential, z), z)

    @torch.no_grad()
    def pilot(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of the prior that no sample is made of, (n, *latent_shape), and λE there, (n,): always the same.

        In float32, whatever the precision of the chains: a slope between near latents would drown in rounding.
        """
        tilted, shape = self.tilted, self.generator.latent_shape
        potential = LatentPotential(tilted.generator, tilted.energy, tilted.latent_energy, tilted.strength)
        streams = [SampleStreams(0, first, size, shape, self.device) for first, size in blocks(n, _PILOT, 250)]
        latents = [self.generator.prior.sample(own) for own in streams]
        return torch.cat(latents), torch.cat([self.energy(potential, z) for z in latents])
