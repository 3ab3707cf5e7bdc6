"""A generator with a mixture of Gaussians in place of its prior."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn

from exptilt.errors import InputError, require_at_least
from exptilt.generators.base import Generator
from exptilt.sampling.random import Streams
from exptilt.storage import described


class MixtureGenerator(Generator):
    """The same decoder, with p(z) = Σₖ πₖ N(z; μₖ, LₖLₖᵀ) fitted to the codes z ~ q(z|x) of data.

    The simplest model of the aggregated posterior (Ghosh et al. 2020, "From variational to deterministic
    autoencoders"). As it is built, all components are N(0, I): :func:`exptilt.baselines.fit_mixture` fits them.

    Args:
        base: A generator with an encoder; it is part of the module, and stays as it is.
        components: K ≥ 1.

    Raises:
        InputError: The generator has no encoder or is built on another one, or K is out of range.
    """

    nested = ("base",)

    def __init__(self, base: Generator, components: int = 10) -> None:
        super().__init__()
        if not base.has_encoder:
            raise InputError(type(base).__name__, "has no encoder", "a mixture is fitted to codes: use one that has")
        if base.nested:
            raise InputError(type(base).__name__, "is built on another generator", "give that one")
        require_at_least(1, components=components)
        self.base = base
        self.latent_shape, self.data_shape, self.has_encoder = base.latent_shape, base.data_shape, True
        self.prior = Mixture(components, base.latent_shape)

    @property
    def mixture(self) -> Mixture:
        """p(z)."""
        return cast(Mixture, self.prior)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values; those of the base stand in ``"base"`` with its class."""
        return {"base": described(self.base), "components": len(self.mixture.weights)}

    def freeze(self) -> MixtureGenerator:
        """Evaluation mode, and no gradients for the weights; returns itself."""
        self.base.freeze()
        super().freeze()
        return self

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z) of the base, (N, *data_shape)."""
        return self.base.decode(z)

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of the base's q(z|x), (N, *latent_shape)."""
        return self.base.encode(x, generator)

    def encode_many(self, x: torch.Tensor, draws: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Samples of the base's q(z|x), (N, draws, *latent_shape)."""
        return self.base.encode_many(x, draws, generator)

    @torch.no_grad()
    def metrics(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Figures of each held-out sample, (N,) each: −log p(z) of its code in nats. ``labels`` are not used."""
        return {"code_nll": -self.prior.log_prob(self.encode(x, generator).float())}


class Mixture(nn.Module):
    """A mixture of K Gaussians over latents.

    Attributes:
        weights: π, (K,).
        means: μ, (K, d).
        factors: Lower triangular Lₖ of the covariances LₖLₖᵀ, (K, d, d).

    Args:
        components: K.
        latent_shape: Shape of one latent, of d numbers.
    """

    weights: torch.Tensor
    means: torch.Tensor
    factors: torch.Tensor

    def __init__(self, components: int, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        size = math.prod(latent_shape)
        self.latent_shape = tuple(latent_shape)
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("factors", torch.eye(size).repeat(components, 1, 1))

    def sample(self, streams: Streams) -> torch.Tensor:
        """One latent for each stream, (N, *latent_shape)."""
        noise = streams.normal().flatten(1)
        shares = self.weights.cumsum(0)
        chosen = torch.searchsorted(shares, streams.uniform() * shares[-1], right=True).clamp(max=len(shares) - 1)
        z = self.means[chosen] + torch.einsum("nij,nj->ni", self.factors[chosen], noise)
        return z.view(-1, *self.latent_shape)

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) of latents (N, *latent_shape) in nats, (N,)."""
        centred = z.flatten(1).T - self.means[..., None]
        standard = torch.linalg.solve_triangular(self.factors.to(z.dtype), centred, upper=False)
        log_scale = self.factors.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * len(centred[0]) * math.log(2 * math.pi)
        log_parts = self.weights.log()[:, None] - 0.5 * standard.square().sum(1) - log_scale[:, None]
        return log_parts.logsumexp(0)
