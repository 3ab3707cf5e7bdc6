"""Metropolis-adjusted Langevin algorithm (Roberts and Tweedie 1996)."""

from __future__ import annotations

import torch

from exptilt.sampling.kernel import Info, Noise, Point, Potential, accept, value_and_gradient


class MALA:
    """Langevin proposals (eq. 8 of the paper) with a Metropolis test: samples exp(−U) without bias.

    One step costs one gradient: that of an accepted proposal serves the next step.

    Args:
        potential: U, (N, *latent) to (N,).
        step_size: ε > 0, as in eq. 8.
    """

    def __init__(self, potential: Potential, step_size: float) -> None:
        self.potential = potential
        self.step_size = step_size

    def init(self, position: torch.Tensor) -> Point:
        """Chains that stand at ``position``, (N, *latent). Costs one gradient."""
        return Point(position, *value_and_gradient(self.potential, position))

    def step(self, state: Point, noise: Noise) -> tuple[Point, Info]:
        """One transition; the info's potential is that of the position after it."""
        ε = self.step_size
        z, value, gradient = state
        ω = noise.normal().to(z.dtype)
        proposal = z - 0.5 * ε * gradient + ε**0.5 * ω
        proposed_value, proposed_gradient = value_and_gradient(self.potential, proposal)
        # log q(z'|z) = −‖ω‖²/2 and log q(z|z') = −‖z − z' + ε/2 ∇U(z')‖²/(2ε), up to the same constant.
        forward = -0.5 * ω.square().flatten(1).sum(1)
        backward = -(z - proposal + 0.5 * ε * proposed_gradient).square().flatten(1).sum(1) / (2 * ε)
        log_ratio = value - proposed_value + backward - forward
        moved, acceptance = accept(state, Point(proposal, proposed_value, proposed_gradient), log_ratio, noise)
        return moved, Info(moved.position, moved.potential, acceptance)
