"""U of an energy in training, as the chains of each update see it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from exptilt.captured import CapturedPotential, is_capturable
from exptilt.density import LatentPotential
from exptilt.fast import for_chains
from exptilt.generators.base import Generator
from exptilt.sampling.kernel import Potential

Energies = tuple[nn.Module | None, nn.Module | None]


class PotentialInTraining:
    """Gives U with the weights that the energy has at the time.

    Args:
        generator: A frozen generator. It does not change, so its copy for chains is made once; the energy's is made in
            each update.
        energies: Gives the energies on samples and on latents.
        strength: λ.
        dtype: What their convolutions run in.
    """

    def __init__(
        self, generator: Generator, energies: Callable[[], Energies], strength: float, dtype: torch.dtype
    ) -> None:
        self.energies, self.strength, self.dtype = energies, strength, dtype
        self._fast_generator = for_chains(generator, dtype)
        self._captured: CapturedPotential | None = None

    def present(self) -> Potential:
        """U of the present weights, which must not ask for gradients; on a GPU the same graph again."""
        if self._captured is not None:
            self._captured.renew()
            return self._captured
        potential = self._plain()
        if is_capturable(potential):
            self._captured = CapturedPotential(self._plain)
            return self.present()
        return potential

    def _plain(self) -> LatentPotential:
        on_x, on_z = (None if part is None else for_chains(part, self.dtype) for part in self.energies())
        return LatentPotential(self._fast_generator, on_x, on_z, self.strength, self.dtype)
