"""Hamiltonian Monte Carlo (Duane, Kennedy, Pendleton, Roweth 1987; Neal 2011)."""

from __future__ import annotations

import torch

from exptilt.sampling.kernel import Info, Noise, Point, Potential, accept, value_and_gradient


class HMC:
    r"""Leapfrog trajectories with a Metropolis test: samples exp(−U) without bias.

    A momentum p ~ N(0, I) is drawn, and the motion with energy U(z) + ‖p‖²/2 followed for L leapfrog steps of time h,

    .. math:: p \leftarrow p - \tfrac{h}{2} ∇U(z), \quad z \leftarrow z + h p, \quad p \leftarrow p - \tfrac{h}{2} ∇U(z)

    with h = √ε. For L = 1 the proposal is that of eq. 8, and the kernel is MALA at the same ε. A length L·h near half a
    period of some direction only mirrors it there: about 1 suits latents whose prior has deviation 1. A transition
    costs L gradients: that of an accepted proposal serves the next transition.

    Args:
        potential: U, (N, *latent) to (N,).
        step_size: ε = h² > 0.
        leapfrog_steps: L ≥ 1.
    """

    def __init__(self, potential: Potential, step_size: float, leapfrog_steps: int) -> None:
        self.potential = potential
        self.step_size = step_size
        self.leapfrog_steps = leapfrog_steps

    def init(self, position: torch.Tensor) -> Point:
        """Chains that stand at ``position``, (N, *latent). Costs one gradient."""
        return Point(position, *value_and_gradient(self.potential, position))

    def step(self, state: Point, noise: Noise) -> tuple[Point, Info]:
        """One transition; the info's potential is that of the position after it."""
        h = self.step_size**0.5
        z, value, gradient = state
        p = start = noise.normal().to(z.dtype)
        for _ in range(self.leapfrog_steps):
            p = p - 0.5 * h * gradient
            z = z + h * p
            value, gradient = value_and_gradient(self.potential, z)
            p = p - 0.5 * h * gradient
        log_ratio = state.potential - value + 0.5 * (start.square() - p.square()).flatten(1).sum(1)
        moved, acceptance = accept(state, Point(z, value, gradient), log_ratio, noise)
        return moved, Info(moved.position, moved.potential, acceptance)
