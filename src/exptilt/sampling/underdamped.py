"""Underdamped (kinetic) Langevin dynamics with the BAOAB splitting (Leimkuhler and Matthews 2013)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from exptilt.sampling.kernel import Info, Noise, Potential, value_and_gradient


class UnderdampedState(NamedTuple):
    """Position (N, *latent), potential (N,) and its gradient there, and momentum; None before it is first drawn."""

    position: torch.Tensor
    potential: torch.Tensor
    gradient: torch.Tensor
    momentum: torch.Tensor | None


class Underdamped:
    r"""Langevin dynamics with momentum, unadjusted: :math:`dz = p\,dt, dp = -∇U dt - γ p\,dt + \sqrt{2γ}\,dW`.

    A step of time h = √ε is half a kick by −∇U (B), half a drift by p (A), exp(−γh) of the momentum kept and the rest
    drawn anew (O), and A and B again. It costs one gradient: that of its last kick is that of the next step's first.

    The stationary density of the position is exp(−U) with a bias of order ε. For U(z) = ‖z‖²/(2σ²) that bias is zero:
    the stationary variance of the position is σ², and that of the momentum 1 − ε/(4σ²), for ε < 4σ².

    Args:
        potential: U, (N, *latent) to (N,).
        step_size: ε = h² > 0.
        friction: γ ≥ 0.
    """

    def __init__(self, potential: Potential, step_size: float, friction: float) -> None:
        self.potential = potential
        self.step_size = step_size
        self.friction = friction

    def init(self, position: torch.Tensor) -> UnderdampedState:
        """Chains that stand at ``position``, (N, *latent), their momentum still to be drawn. Costs one gradient."""
        return UnderdampedState(position, *value_and_gradient(self.potential, position), None)

    def step(self, state: UnderdampedState, noise: Noise) -> tuple[UnderdampedState, Info]:
        """One transition; the info's potential is that of the position after it."""
        h = self.step_size**0.5
        kept = math.exp(-self.friction * h)
        z, _, gradient, p = state
        if p is None:
            p = noise.normal().to(z.dtype)
        p = p - 0.5 * h * gradient
        z = z + 0.5 * h * p
        p = kept * p + (1 - kept**2) ** 0.5 * noise.normal().to(z.dtype)
        z = z + 0.5 * h * p
        value, gradient = value_and_gradient(self.potential, z)
        p = p - 0.5 * h * gradient
        return UnderdampedState(z, value, gradient, p), Info(z, value, torch.ones_like(value))
