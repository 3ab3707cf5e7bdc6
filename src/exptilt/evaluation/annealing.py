"""Populations of latents that go from the prior to the tilted distribution, and back, with their weights.

Between the two stand the distributions π_β(z) ∝ p(z)·exp(−βλE(z)), 0 = β_0 < … < β_K = 1, where E is the sum of both
energies. Particle i of a seed draws from stream i of that seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from tqdm import tqdm

from exptilt.density import LatentPotential
from exptilt.errors import InputError, RunError
from exptilt.generators.base import blocks
from exptilt.sampling.chains import adapt_step_size
from exptilt.sampling.mala import MALA
from exptilt.sampling.random import SampleStreams
from exptilt.sampling.weights import effective_size, log_mean_exp, resample
from exptilt.tilted import TiltedGenerator

# Where the streams of other purposes start, beyond those of the particles.
_PILOT, _RESAMPLING, _BACKWARD = 1 << 48, 1 << 49, 1 << 50
_PILOT_CHAINS, _ADAPTATION_STEPS, _ACCEPTANCE = 100, 10, 0.6
_MOST_STEPS = 10_000


@dataclass(frozen=True)
class Schedule:
    """How to get from prior to tilted distribution.

    Attributes:
        betas: 0 = β_0 < … < β_K = 1.
        step_sizes: ε of MALA at β_1 … β_K, > 0.

    Raises:
        InputError: The β do not rise from 0 to 1, or there is not one positive step size for each but the first.
    """

    betas: tuple[float, ...]
    step_sizes: tuple[float, ...]

    def __post_init__(self) -> None:
        rises = all(low < high for low, high in pairwise(self.betas))
        if len(self.betas) < 2 or self.betas[0] != 0 or self.betas[-1] != 1 or not rises:
            raise InputError("betas", f"{self.betas} do not rise from 0 to 1", "give 0 = β_0 < … < β_K = 1")
        if len(self.step_sizes) != len(self.betas) - 1 or not min(self.step_sizes) > 0:
            mend = f"give {len(self.betas) - 1}, each > 0, one for each β but the first"
            raise InputError("step_sizes", f"{self.step_sizes} do not fit {len(self.betas)} β", mend)


class Annealing:
    """Runs populations along a schedule.

    Args:
        tilted: The tilted generator. Its networks run in float32 here, whatever its ``precision``.
        seed: Whole number in [0, 2⁶⁴).
        transitions: MALA steps at each β, ≥ 1. They cost one gradient more than there are.
        batch_size: Latents that the networks see at once (the pilot: at least 100).
        bar: Counts gradients.

    Attributes:
        gradients: Gradients of the potential so far, over all chains.
    """

    def __init__(
        self, tilted: TiltedGenerator, seed: int, transitions: int, batch_size: int, bar: tqdm | None = None
    ) -> None:
        self.generator, self.prior, self.strength = tilted.generator, tilted.generator.prior, tilted.strength
        self._energies = tilted.energy, tilted.latent_energy
        self.seed, self.transitions, self.batch_size = seed, transitions, batch_size
        self.gradients, self._bar = 0, bar

    def pilot(self, conditional_ess: float) -> Schedule:
        """A schedule whose steps all have the same conditional effective sample size (Zhou et al. 2016, §3.4).

        A population of 100 chooses each β so that the weights of the step from the last one have this ESS, a share
        of the population, and tunes ε to a mean acceptance of 0.6. What follows the schedule, with other random
        numbers, has a schedule that is fixed, so its estimate of Z is unbiased.

        Raises:
            RunError: An energy is not finite, or more than 10,000 steps are needed.
        """
        streams = SampleStreams(self.seed, _PILOT, _PILOT_CHAINS, self.generator.latent_shape, self.generator.device)
        z = self.prior.sample(streams)
        betas, step_sizes, step_size = [0.0], [], z[0].numel() ** (-1 / 3)
        while betas[-1] < 1:
            cost = self.cost(z)
            betas.append(_next_beta(betas[-1], cost, conditional_ess))
            if len(betas) > _MOST_STEPS:
                raise RunError(f"annealing got to β = {betas[-1]:.3g} in {_MOST_STEPS} steps; use a smaller strength")
            log_weights = (betas[-2] - betas[-1]) * cost
            z = z[resample(log_weights[None], streams.uniform()[:1])[0]]
            kernel = MALA(self._potential(betas[-1]), step_size)
            step_size, z = adapt_step_size(kernel, z, streams, _ACCEPTANCE, _ADAPTATION_STEPS)
            self._count(len(z) * (_ADAPTATION_STEPS + 1))
            step_sizes.append(step_size)
        return Schedule(tuple(betas), tuple(step_sizes))

    def forward(
        self, schedule: Schedule, first: int, populations: int, size: int, resample_below: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Populations ``first … first + populations − 1``, of ``size`` particles each, from β = 0 to 1.

        Populations of one particle are annealed importance sampling (Neal 2001); larger ones sequential Monte Carlo
        (Del Moral et al. 2006), resampled where their ESS falls below the share ``resample_below``.

        Returns:
            log Ẑ of each population, where E[Ẑ] = Z, float64 (populations,); the particles,
            (populations · size, *latent); and the logarithms of their weights, float64 (populations, size).

        Raises:
            RunError: An energy is not finite.
        """
        device = self.generator.device
        streams = self._streams(first * size, populations * size)
        uniforms = SampleStreams(self.seed, _RESAMPLING + first, populations, (), device)
        z = torch.cat([self.prior.sample(own) for own in streams])
        cost = self.cost(z)
        log_z = torch.zeros(populations, dtype=torch.float64, device=device)
        log_weights = log_z[:, None].repeat(1, size)
        for (low, high), step_size in zip(pairwise(schedule.betas), schedule.step_sizes, strict=True):
            log_weights = log_weights - (high - low) * cost.view(populations, size)
            if high == 1:
                break
            if size > 1:
                due = effective_size(log_weights) < resample_below * size
                ancestors = resample(log_weights, uniforms.uniform())
                ancestors = torch.where(due[:, None], ancestors, torch.arange(size, device=device))
                z = z[(ancestors + size * torch.arange(populations, device=device)[:, None]).flatten()]
                log_z = torch.where(due, log_z + log_mean_exp(log_weights), log_z)
                log_weights = torch.where(due[:, None], 0.0, log_weights)
            z, cost = self._move(z, high, step_size, self.transitions, streams)
        return log_z + log_mean_exp(log_weights), z, log_weights

    def backward(self, schedule: Schedule, z: torch.Tensor, first: int, chain_steps: int) -> torch.Tensor:
        """Annealed importance sampling backwards, from z ~ π_1 to the prior (Grosse et al. 2015, §4).

        The reciprocals of the weights have the mean 1/Z, so the logarithms of the weights have a mean ≥ log Z.

        Args:
            schedule: The forward runs'; MALA is reversible, so each of its transitions is its own reversal.
            z: Latents (N, *latent).
            first: Number of the first chain.
            chain_steps: MALA steps at β = 1 before the way back.

        Returns:
            Logarithms of the weights, float64 (N,).
        """
        streams = self._streams(_BACKWARD + first, len(z))
        cost = self.cost(z)
        if chain_steps:
            z, cost = self._move(z, 1.0, schedule.step_sizes[-1], chain_steps, streams)
        log_weights = torch.zeros_like(cost)
        for k in range(len(schedule.betas) - 1, 0, -1):
            log_weights -= (schedule.betas[k] - schedule.betas[k - 1]) * cost
            if k > 1:
                step_size = schedule.step_sizes[k - 2]
                z, cost = self._move(z, schedule.betas[k - 1], step_size, self.transitions, streams)
        return log_weights

    @torch.no_grad()
    def cost(self, z: torch.Tensor) -> torch.Tensor:
        """λE of latents (N, *latent), float64 (N,).

        Raises:
            RunError: It is not finite.
        """
        potential = self._potential(1.0)
        return _finite(torch.cat([self.strength * potential.energy(part) for part in z.split(self.batch_size)]))

    def _potential(self, beta: float) -> LatentPotential:
        return LatentPotential(self.generator, *self._energies, strength=beta * self.strength)

    def _streams(self, first: int, count: int) -> list[SampleStreams]:
        shape, device = self.generator.latent_shape, self.generator.device
        return [
            SampleStreams(self.seed, start, size, shape, device)
            for start, size in blocks(count, first, self.batch_size)
        ]

    def _move(
        self, z: torch.Tensor, beta: float, step_size: float, steps: int, streams: list[SampleStreams]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents after MALA steps at β, and λE there."""
        kernel = MALA(self._potential(beta), step_size)
        positions, costs = [], []
        for part, own in zip(z.split(self.batch_size), streams, strict=True):
            state, info = kernel.init(part), None
            for _ in range(steps):
                state, info = kernel.step(state, own)
            assert info is not None
            # U = βλE − log p is known there: λE needs no further pass through the networks.
            costs.append((info.potential.double() + self.prior.log_prob(state.position).double()) / beta)
            positions.append(state.position)
            self._count(len(part) * (steps + 1))
        return torch.cat(positions), _finite(torch.cat(costs))

    def _count(self, gradients: int) -> None:
        self.gradients += gradients
        if self._bar is not None:
            self._bar.update(gradients)


def _next_beta(beta: float, cost: torch.Tensor, conditional_ess: float) -> float:
    def share(step: float) -> float:
        return float(effective_size(-step * cost)) / len(cost)

    if share(1 - beta) >= conditional_ess:
        return 1.0
    low, high = 0.0, 1 - beta
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= conditional_ess else (low, middle)
    return beta + low


def _finite(cost: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(cost).all()):
        raise RunError("log Z: the energy of a latent is not finite; train the energy anew")
    return cost.double()
