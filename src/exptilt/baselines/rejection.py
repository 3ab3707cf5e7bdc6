"""Rejection sampling with an energy (Azadi et al. 2019; Turner et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch

from exptilt.baselines.base import EnergyBaseline
from exptilt.density import LatentPotential
from exptilt.errors import InputError, RunError, require_at_least
from exptilt.sampling.random import Streams
from exptilt.tilted import TiltedGenerator

# Keeps the logarithm of 1 − exp(−a) finite at a = 0 (Azadi et al. 2019).
_TINY = 1e-8
# Latents whose energy is looked at together.
_AT_ONCE = 250


class Rejection(EnergyBaseline):
    """Latents of the prior, each kept with a probability that falls with its energy, until one is kept.

    A latent with weight w = exp(−λE) is kept with probability min(1, w/W). If W is the largest weight there is, what is
    kept has the density p(z)·exp(−λE)/Z exactly. W is the largest of ``pilot`` latents of the prior, or given; where a
    weight is larger, its latent comes too seldom.

    Where weights differ much next to nothing is kept. With ``percentile`` the logit of that probability, F, is lowered
    by γ, a percentile of it over the pilot (Azadi et al. 2019): the latent that stands there is kept with
    probability ½, those above it alike, and the density is flatter than the tilted one.

    Args:
        tilted: Generator and energy.
        percentile: Of F, in (0, 100); none for exact rejection.
        log_bound: log W; of the pilot unless given.
        pilot: Latents that W and γ are taken from, ≥ 2.
        most_tries: Latents that are tried for one sample.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        tilted: TiltedGenerator,
        *,
        percentile: float | None = None,
        log_bound: float | None = None,
        pilot: int = 2000,
        most_tries: int = 10_000,
    ) -> None:
        super().__init__(tilted)
        if percentile is not None and not 0 < percentile < 100:
            raise InputError("percentile", f"{percentile} is out of range", "give a number between 0 and 100")
        require_at_least(2, pilot=pilot)
        require_at_least(1, most_tries=most_tries)
        self.percentile, self.most_tries = percentile, most_tries
        _, energy = self.pilot(pilot)
        self.log_bound = float(-energy.min()) if log_bound is None else log_bound
        self.shift = 0.0
        if percentile is not None:
            self.shift = float(torch.quantile(self._logit(energy), percentile / 100))
        self.acceptance = float(torch.sigmoid(self._logit(energy)).mean())

    def latents(self, streams: Streams) -> torch.Tensor:
        """The first latent that is kept of each stream, (N, *latent_shape).

        Raises:
            RunError: None of ``most_tries`` was kept for some stream.
        """
        prior, potential = self.generator.prior, self.tilted.chain_potential()
        result = torch.empty(streams.n, *self.generator.latent_shape, device=self.device)
        waiting = torch.arange(streams.n, device=self.device)
        tries = 0
        while len(waiting) and tries < self.most_tries:
            # When few wait, several latents of each fill a batch.
            ahead = min(max(1, _AT_ONCE // len(waiting)), self.most_tries - tries)
            latents, uniforms = [], []
            for k in range(ahead):
                # The first latent is the generator's own; a prior with a seed of its own would repeat it otherwise.
                latents.append(prior.sample(streams if tries + k == 0 else streams.fork())[waiting])
                uniforms.append(streams.uniform()[waiting])
            z = torch.stack(latents)
            kept = torch.stack(uniforms) < self._acceptance(potential, z.flatten(0, 1)).view(ahead, -1)
            done, first = kept.any(0), kept.int().argmax(0)
            result[waiting[done]] = z[first[done], done.nonzero().squeeze(1)]
            waiting, tries = waiting[~done], tries + ahead
        if len(waiting):
            raise RunError(
                f"rejection: {len(waiting)} of {streams.n} samples were not found in {tries} tries, as about "
                f"{self.acceptance:.1g} of the prior's latents are kept; give a percentile, for example 80"
            )
        return result

    def describe(self) -> dict[str, Any]:
        """The settings, the bound and the mean acceptance over the pilot, as JSON values."""
        settings = {"percentile": self.percentile, "log_bound": self.log_bound, "acceptance": self.acceptance}
        return {"baseline": "rejection", **settings, "strength": self.tilted.strength}

    def _acceptance(self, potential: LatentPotential, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self._logit(self.energy(potential, z)))

    def _logit(self, energy: torch.Tensor) -> torch.Tensor:
        """F − γ of energies λE, (N,), where σ(F) = w/W."""
        log_share = (-energy.double() - self.log_bound).clamp(max=0)
        return log_share - torch.log1p(-(log_share - _TINY).exp()) - self.shift
