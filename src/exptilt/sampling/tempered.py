"""Replica exchange (parallel tempering: Geyer 1991; Hukushima and Nemoto 1996) from the target to the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from exptilt.sampling.kernel import Info, Kernel, Noise, Point, Potential, Proposal, per_chain, value_and_gradient


class TemperedState(NamedTuple):
    """Position of the chains, (N, *latent), the state of their replicas, and the number of steps taken."""

    position: torch.Tensor
    replicas: Any
    steps: int


class Tempered:
    """Copies of each chain at p(z)·exp(−βE), which exchange their places.

    Of R replicas, the first has β = 1, the target; the last has β = 0 and is drawn anew from the prior itself; those
    between have β_r = (1 − r/(R − 1))². A step moves the replicas with β > 0 by a kernel, and offers exchanges with a
    Metropolis test between neighbours, (0, 1), (2, 3), … and (1, 2), (3, 4), … in turn. With an exact kernel the target
    is sampled without bias. Each chain has replicas of its own.

    A step costs R − 1 gradients, and R where the prior's replica is offered: every other time. All replicas have the
    same step size, which suits the target.

    Args:
        make_kernel: Makes the kernel on a potential; its states have ``position``, ``potential`` and ``gradient``.
        potential: U, (N, *latent) to (N,).
        prior: p(z).
        replicas: R ≥ 2.
    """

    def __init__(
        self, make_kernel: Callable[[Potential], Kernel], potential: Potential, prior: Proposal, replicas: int
    ) -> None:
        self._potential, self._prior = potential, prior
        self._β = [(1 - r / (replicas - 1)) ** 2 for r in range(replicas)]
        self._kernel = make_kernel(self._tempered)

    @property
    def step_size(self) -> float:
        """ε of every replica."""
        return self._kernel.step_size

    @step_size.setter
    def step_size(self, step_size: float) -> None:
        self._kernel.step_size = step_size

    def init(self, position: torch.Tensor) -> TemperedState:
        """Chains whose replicas all stand at ``position``, (N, *latent). Costs R − 1 gradients."""
        moving = len(self._β) - 1
        return TemperedState(position, self._kernel.init(torch.cat([position] * moving)), 0)

    def step(self, state: TemperedState, noise: Noise) -> tuple[TemperedState, Info]:
        """One transition of every replica, and exchanges; the info is that of the target's replica after it."""
        moving, chains = len(self._β) - 1, len(state.position)
        replicas, info = self._kernel.step(state.replicas, _Replicated(noise, moving))
        replicas = self._exchange(replicas, noise, chains, state.steps % 2)
        # The target's replica comes first.
        position, value = replicas.position[:chains], replicas.potential[:chains]
        return TemperedState(position, replicas, state.steps + 1), Info(position, value, info.acceptance[:chains])

    def _tempered(self, z: torch.Tensor) -> torch.Tensor:
        """β U − (1 − β) log p of latents of all replicas with β > 0, one after the other."""
        β = self._temperatures(z, len(z) // (len(self._β) - 1))
        return β * self._potential(z).to(z.dtype) - (1 - β) * self._prior.log_prob(z)

    def _temperatures(self, like: torch.Tensor, chains: int) -> torch.Tensor:
        return torch.tensor(self._β[:-1], dtype=like.dtype, device=like.device).repeat_interleave(chains)

    def _exchange(self, replicas: Any, noise: Noise, chains: int, first: int) -> Any:
        """Offer exchanges between replicas (first, first + 1), (first + 2, first + 3), …"""
        moving = len(self._β) - 1
        β = self._temperatures(replicas.position, chains)
        log_prior, log_prior_gradient = value_and_gradient(self._prior.log_prob, replicas.position)
        # E and its gradient, of which U at every other β follows without another look at the potential.
        energy = Point(
            replicas.position,
            (replicas.potential + log_prior) / β,
            (replicas.gradient + log_prior_gradient) / per_chain(β, replicas.gradient),
        )
        rows = [Point(*row) for row in zip(*(part.split(chains) for part in energy), strict=True)]
        if (moving - 1) % 2 == first:
            rows.append(self._from_prior(noise, rows[0].position))
        moved = [torch.zeros(chains, dtype=torch.bool, device=β.device) for _ in rows]
        for r in range(first, len(rows) - 1, 2):
            log_ratio = (self._β[r] - self._β[r + 1]) * (rows[r].potential - rows[r + 1].potential)
            exchanged = noise.uniform().to(log_ratio.dtype) < torch.nan_to_num(log_ratio, nan=-torch.inf).exp()
            rows[r], rows[r + 1] = _swapped(exchanged, rows[r], rows[r + 1])
            moved[r] = moved[r + 1] = exchanged
        position, value, gradient = (torch.cat(parts) for parts in zip(*rows[:moving], strict=True))
        log_prior, log_prior_gradient = value_and_gradient(self._prior.log_prob, position)
        # What did not move keeps its numbers: dividing by a small β and multiplying again would wear them down.
        changed = torch.cat(moved[:moving])
        return replicas._replace(
            position=position,
            potential=torch.where(changed, β * value - log_prior, replicas.potential),
            gradient=torch.where(
                per_chain(changed, gradient),
                per_chain(β, gradient) * gradient - log_prior_gradient,
                replicas.gradient,
            ),
        )

    def _from_prior(self, noise: Noise, like: torch.Tensor) -> Point:
        """New latents of the prior, their E and its gradient."""
        z = self._prior.sample(noise.fork()).to(like.dtype)
        return Point(z, *value_and_gradient(lambda z: self._potential(z) + self._prior.log_prob(z), z))


@dataclass
class _Replicated:
    """Random numbers for the replicas of N chains: those of the chains, several times."""

    noise: Noise
    replicas: int

    def normal(self) -> torch.Tensor:
        return torch.cat([self.noise.normal() for _ in range(self.replicas)])

    def uniform(self) -> torch.Tensor:
        return torch.cat([self.noise.uniform() for _ in range(self.replicas)])

    def fork(self) -> _Replicated:
        return _Replicated(self.noise.fork(), self.replicas)


def _swapped(exchanged: torch.Tensor, first: Point, second: Point) -> tuple[Point, Point]:
    pairs = [
        (torch.where(per_chain(exchanged, a), b, a), torch.where(per_chain(exchanged, a), a, b))
        for a, b in zip(first, second, strict=True)
    ]
    return Point(*(a for a, _ in pairs)), Point(*(b for _, b in pairs))
