"""What a Markov kernel is: ``init(z) -> State``, ``step(state, noise) -> (State, Info)``.

A kernel sees a potential U: latents (N, *latent) to (N,), the negative logarithm of the density that it should
sample, up to a constant. It never sees a generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

Potential = Callable[[torch.Tensor], torch.Tensor]


class Noise(Protocol):
    """A source of random numbers for N chains, see :class:`exptilt.sampling.random.SampleStreams`."""

    def normal(self) -> torch.Tensor:
        """Standard normal, (N, *latent)."""
        ...

    def uniform(self) -> torch.Tensor:
        """Uniform on [0, 1), (N,)."""
        ...

    def fork(self) -> Noise:
        """The source for one draw of a :class:`Proposal`."""
        ...


class Proposal(Protocol):
    """A distribution that new latents are drawn from: the prior p(z)."""

    def sample(self, streams: Any, /) -> torch.Tensor:
        """One latent for each stream, (N, *latent)."""
        ...

    def log_prob(self, z: torch.Tensor, /) -> torch.Tensor:
        """log p(z) of latents (N, *latent), (N,)."""
        ...


class Info(NamedTuple):
    """What one transition tells.

    Attributes:
        evaluated: The latents at which the potential is known, (N, *latent).
        potential: U there, (N,).
        acceptance: Probability with which the proposal was accepted, (N,); 1 for kernels without a test.
    """

    evaluated: torch.Tensor
    potential: torch.Tensor
    acceptance: torch.Tensor


class Point(NamedTuple):
    """Position (N, *latent), and the potential (N,) and its gradient (N, *latent) there."""

    position: torch.Tensor
    potential: torch.Tensor
    gradient: torch.Tensor


class Kernel(Protocol):
    """One MCMC transition."""

    @property
    def step_size(self) -> float:
        """ε, see :class:`exptilt.config.SamplerConfig`; a warm-up sets it."""
        ...

    @step_size.setter
    def step_size(self, step_size: float) -> None: ...

    def init(self, position: torch.Tensor) -> Any:
        """The state of chains that stand at ``position``, (N, *latent)."""
        ...

    def step(self, state: Any, noise: Noise) -> tuple[Any, Info]:
        """One transition of every chain. A state has a field ``position``."""
        ...


def value_and_gradient(potential: Potential, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U(z) and ∇U(z) of independent chains, (N,) and (N, *latent), in the type of the position."""
    with torch.enable_grad():
        position = position.detach().requires_grad_(True)
        # A potential in half precision must not pull the Metropolis test down to it.
        value = potential(position).to(position.dtype)
        (gradient,) = torch.autograd.grad(value.sum(), position)
    return value.detach(), gradient


def accept(state: Point, proposal: Point, log_ratio: torch.Tensor, noise: Noise) -> tuple[Point, torch.Tensor]:
    """The Metropolis test: each chain moves to its proposal with probability min(1, exp(log_ratio)).

    Args:
        state: Where the chains stand.
        proposal: Where they may go.
        log_ratio: Of densities and of proposal densities, (N,); where it is not a number, the proposal is outside of
            the support, and rejected.
        noise: Random numbers for N chains.

    Returns:
        Where the chains stand then, and those probabilities, (N,).
    """
    acceptance = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()
    accepted = noise.uniform().to(acceptance.dtype) < acceptance
    moved = (torch.where(per_chain(accepted, new), new, old) for new, old in zip(proposal, state, strict=True))
    return Point(*moved), acceptance


def per_chain(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (N,) shaped to multiply ``like``, (N, *latent)."""
    return values.view(-1, *[1] * (like.dim() - 1))
