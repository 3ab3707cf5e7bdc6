"""Discriminator gradient flow in latent space (Ansari et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from exptilt.baselines.base import EnergyBaseline
from exptilt.config import require_known
from exptilt.errors import InputError, require_at_least
from exptilt.sampling.random import Streams
from exptilt.tilted import TiltedGenerator

Divergence = Literal["kl", "js", "logd", "chi2"]

# r f''(r) of each f-divergence ∫ p f(q/p), by the logarithm of r = q/p: ∇f'(r) is that times ∇ log r.
_RATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kl": torch.ones_like,  # f = r log r
    "js": lambda log_ratio: torch.sigmoid(-log_ratio),  # f = r log r − (r + 1) log((r + 1)/2)
    "logd": torch.sigmoid,  # f = (r + 1) log(r + 1) − 2 log 2
    "chi2": lambda log_ratio: 2 * log_ratio.exp(),  # f = (r − 1)², Pearson's
}


class GradientFlow(EnergyBaseline):
    """A gradient flow of latents that lowers an f-divergence from the data, with noise (Ansari et al. 2021).

    .. math:: z \\leftarrow z - η ∇f'(r(z)) + \\sqrt{2γη}\\, ω, \\qquad r = q/p = Z \\exp(λE), \\quad ω \\sim N(0, I)

    with the generator's density q, the data's p, and γ the weight of the entropy. r is that
    of the start for all steps, though q changes on the way, so few steps are meant: with ``kl`` the limit is
    exp(−λE/γ), which knows no prior. Energies of a logistic ratio have Z = 1; for others Z is taken from the tilted
    generator, or estimated from the prior's latents. With ``kl`` it does not count.

    Args:
        tilted: Generator and energy.
        divergence: f: ``"kl"``, ``"js"`` (Jensen-Shannon), ``"logd"`` (the GAN's −log D), ``"chi2"`` (Pearson).
        steps: ≥ 0; 25 in the paper.
        step_size: η > 0; 0.1 in the paper.
        noise: γ ≥ 0; 0.01 in the paper.
        pilot: Latents that Z is estimated from, where it is not known, ≥ 1.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        tilted: TiltedGenerator,
        *,
        divergence: Divergence = "kl",
        steps: int = 25,
        step_size: float = 0.1,
        noise: float = 0.01,
        pilot: int = 1000,
    ) -> None:
        super().__init__(tilted)
        require_known("divergence", divergence, Divergence)
        require_at_least(0, steps=steps)
        require_at_least(1, pilot=pilot)
        if not step_size > 0:
            raise InputError("step_size", f"{step_size} is out of range", "give a number > 0")
        if not noise >= 0:
            raise InputError("noise", f"{noise} is out of range", "give a number ≥ 0")
        self.divergence, self.steps, self.step_size, self.noise = divergence, steps, step_size, noise
        self.log_z = self._log_z(pilot)

    def latents(self, streams: Streams) -> torch.Tensor:
        """Where the flow takes the prior's latents, (N, *latent_shape)."""
        potential, rate = self.tilted.chain_potential(), _RATES[self.divergence]
        z = self.generator.prior.sample(streams)
        for _ in range(self.steps):
            energy, gradient = self.energy_and_gradient(potential, z)
            speed = rate(energy + self.log_z).view(-1, *[1] * (z.dim() - 1))
            z = z - self.step_size * speed * gradient + (2 * self.noise * self.step_size) ** 0.5 * streams.normal()
        return z

    def describe(self) -> dict[str, Any]:
        """The settings, as JSON values."""
        names = ("divergence", "steps", "step_size", "noise", "log_z")
        settings = {name: getattr(self, name) for name in names}
        return {"baseline": "dgflow", **settings, "strength": self.tilted.strength}

    def _log_z(self, pilot: int) -> float:
        known = self.tilted.log_z
        if known is not None and known.strength == self.tilted.strength:
            return known.value
        _, energy = self.pilot(pilot)
        return float(torch.logsumexp(-energy, 0)) - float(torch.tensor(float(pilot)).log())
