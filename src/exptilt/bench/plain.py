"""The chains as a reader of the paper would first write them: what exptilt is measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from exptilt.generators import Generator

Potential = Callable[[torch.Tensor], torch.Tensor]
Draw = Callable[[], torch.Tensor]


def plain_potential(generator: Generator, energy: nn.Module | None, latent_energy: nn.Module | None) -> Potential:
    """U(z) = E(G(z)) + ‖z‖²/2, or E(z) + ‖z‖²/2: latents (N, D) to (N,), for the prior N(0, I)."""

    def potential(z: torch.Tensor) -> torch.Tensor:
        total = 0.5 * z.square().sum(1)
        if energy is not None:
            total = total + energy(generator.decode(z))
        if latent_energy is not None:
            total = total + latent_energy(z)
        return total

    return potential


def plain_langevin(potential: Potential, z: torch.Tensor, steps: int, step_size: float, normal: Draw) -> torch.Tensor:
    """Eq. 8 of the paper, ``steps`` times: latents (N, D) after the chain."""
    for _ in range(steps):
        z = z.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(potential(z).sum(), z)
        z = z - 0.5 * step_size * gradient + step_size**0.5 * normal()
    return z.detach()


def plain_mala(
    potential: Potential, z: torch.Tensor, steps: int, step_size: float, normal: Draw, uniform: Draw
) -> torch.Tensor:
    """The same proposals with a Metropolis test; the gradient of an accepted one serves the next step."""

    def evaluate(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = z.detach().requires_grad_(True)
        value = potential(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def log_transition(start: torch.Tensor, gradient: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return -(end - start + 0.5 * step_size * gradient).square().sum(1) / (2 * step_size)

    value, gradient = evaluate(z)
    for _ in range(steps):
        proposal = z - 0.5 * step_size * gradient + step_size**0.5 * normal()
        new_value, new_gradient = evaluate(proposal)
        log_ratio = value - new_value
        log_ratio = log_ratio + log_transition(proposal, new_gradient, z) - log_transition(z, gradient, proposal)
        accepted = uniform().log() < log_ratio
        z = torch.where(accepted[:, None], proposal, z)
        gradient = torch.where(accepted[:, None], new_gradient, gradient)
        value = torch.where(accepted, new_value, value)
    return z
