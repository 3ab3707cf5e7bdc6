"""Discriminator optimal transport in latent space (Tanaka 2019)."""

from __future__ import annotations

from typing import Any

import torch

from exptilt.baselines.base import EnergyBaseline
from exptilt.errors import InputError, require_at_least
from exptilt.sampling.random import Streams
from exptilt.tilted import TiltedGenerator

# Keeps the gradient of the distance finite where it is zero.
_SMOOTH = 1e-3


class OptimalTransport(EnergyBaseline):
    """Gradient descent from each latent y of the prior to T(y) = argmin_z ‖z − y‖ + λE/k (Tanaka 2019).

    The discriminator D of the paper is −λE. k is its Lipschitz constant as a function of the latent, estimated from
    below as the largest slope between pairs of latents of the prior (the paper's k_eff). Where the slope is less than
    k a latent stays, up to a jitter of ``step_size``; where it is more, it descends. No noise: the samples follow
    neither exp(−E) nor another density that is known.

    Two things differ from the reference: the distance is √(‖z − y‖² + 10⁻⁶), where the reference adds 10⁻³ to each
    coordinate; and the gradient is not projected for a normal prior.

    Args:
        tilted: Generator and energy.
        steps: Steps of gradient descent, ≥ 0.
        step_size: Length of a step along the gradient.
        lipschitz: k > 0; estimated unless given.
        pilot: Pairs of latents that k is estimated from, ≥ 1.

    Raises:
        InputError: An argument is out of range, or the energy does not depend on the latent.
    """

    def __init__(
        self,
        tilted: TiltedGenerator,
        *,
        steps: int = 100,
        step_size: float = 0.05,
        lipschitz: float | None = None,
        pilot: int = 500,
    ) -> None:
        super().__init__(tilted)
        require_at_least(0, steps=steps)
        require_at_least(1, pilot=pilot)
        if not step_size > 0:
            raise InputError("step_size", f"{step_size} is out of range", "give a number > 0")
        self.steps, self.step_size = steps, step_size
        self.lipschitz = self._largest_slope(pilot) if lipschitz is None else lipschitz
        if not self.lipschitz > 0:
            raise InputError("lipschitz", f"{self.lipschitz} is out of range", "give a number > 0")

    def latents(self, streams: Streams) -> torch.Tensor:
        """T(y) of the prior's latents y, (N, *latent_shape)."""
        potential = self.tilted.chain_potential()
        y = self.generator.prior.sample(streams)
        z = y
        for _ in range(self.steps):
            _, gradient = self.energy_and_gradient(potential, z)
            squared = (z - y).flatten(1).square().sum(1) + _SMOOTH**2
            away = (z - y) / squared.sqrt().view(-1, *[1] * (z.dim() - 1))
            z = z - self.step_size * (away + gradient / self.lipschitz)
        return z

    def describe(self) -> dict[str, Any]:
        """The settings and k, as JSON values."""
        settings = {"steps": self.steps, "step_size": self.step_size, "lipschitz": self.lipschitz}
        return {"baseline": "dot", **settings, "strength": self.tilted.strength}

    def _largest_slope(self, pairs: int) -> float:
        z, energy = self.pilot(2 * pairs)
        distance = (z[:pairs] - z[pairs:]).flatten(1).norm(dim=1)
        return float(((energy[:pairs] - energy[pairs:]).abs() / distance).max())
