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


class Kernel(Protocol):
    """One MCMC transition."""

    step_size: float

    def init(self, position: torch.Tensor) -> Any:
        """The state of chains that stand at ``position``, (N, *latent)."""
        ...

    def step(self, state: Any, noise: Noise) -> tuple[Any, Info]:
        """One transition of every chain. A state has a field ``position``."""
        ...


def value_and_gradient(potential: Potential, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U(z) and ∇U(z) of independent chains, (N,) and (N, *latent)."""
    with torch.enable_grad():
        position = position.detach().requires_grad_(True)
        value = potential(position)
        (gradient,) = torch.autograd.grad(value.sum(), position)
    return value.detach(), gradient


def per_chain(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (N,) shaped to multiply ``like``, (N, *latent)."""
    return values.view(-1, *[1] * (like.dim() - 1))
