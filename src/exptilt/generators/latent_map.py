"""From the latents that chains move in to the codes that a decoder sees, where the two differ.

Gradient chains need a density on all of ℝⁿ: under a uniform prior they would walk out of its support. So a prior with
bounds, or a flow, is written as an exact change of variables from a simpler one, and chains move in the latter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
    Transform,
    TransformedDistribution,
    Uniform,
    biject_to,
    constraints,
)

from exptilt.errors import InputError
from exptilt.generators.prior import DistributionPrior, Prior, StandardNormal


class LatentMap(nn.Module, ABC):
    """A bijection between latents z ~ ``prior`` and the codes that a decoder takes.

    Attributes:
        prior: p(z), positive everywhere.
        latent_shape: Shape of one z.
    """

    prior: Prior
    latent_shape: tuple[int, ...]

    @abstractmethod
    def code(self, z: torch.Tensor) -> torch.Tensor:
        """The code of latents (N, *latent_shape), (N, *code)."""

    @abstractmethod
    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """The z of codes (N, *code), (N, *latent_shape)."""

    @abstractmethod
    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """Log-density of codes (N, *code) in nats, (N,)."""


class Same(LatentMap):
    """The codes are the latents.

    Args:
        prior: p(z).
        latent_shape: Shape of one latent.
    """

    def __init__(self, prior: Prior, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.prior, self.latent_shape = prior, latent_shape

    def code(self, z: torch.Tensor) -> torch.Tensor:
        """z itself."""
        return z

    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """The code itself."""
        return code

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """log p(z), (N,)."""
        return self.prior.log_prob(code)


class UniformMap(LatentMap):
    """Uniform codes of z ~ N(0, I): code = low + (high − low) Φ(z), Φ the distribution function of N(0, 1).

    Args:
        low: Lower bounds, of the latent shape or broadcast to it.
        high: Upper bounds, likewise.
        latent_shape: Shape of one latent, and of one code.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, low: torch.Tensor, high: torch.Tensor, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.prior, self.latent_shape = StandardNormal(), latent_shape
        # As latents are.
        self.register_buffer("low", low.float().expand(latent_shape).clone())
        self.register_buffer("high", high.float().expand(latent_shape).clone())

    def code(self, z: torch.Tensor) -> torch.Tensor:
        """low + (high − low) Φ(z), (N, *latent_shape)."""
        return self.low + (self.high - self.low) * torch.special.ndtr(z)

    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """Φ⁻¹((code − low)/(high − low)); codes on a bound or beyond it are taken for the nearest inside."""
        share = (code - self.low) / (self.high - self.low)
        rounding = torch.finfo(share.dtype).eps
        return torch.special.ndtri(share.clamp(rounding, 1 - rounding))

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """−Σ log(high − low) inside of the bounds, −∞ outside, (N,)."""
        inside = ((code >= self.low) & (code <= self.high)).flatten(1).all(1)
        return torch.where(inside, -(self.high - self.low).log().sum(), -torch.inf)


class BoundedMap(LatentMap):
    """Codes of any distribution whose support is smaller than ℝⁿ, by torch's bijection from ℝᵐ onto that support.

    Args:
        distribution: Of the codes; its ``batch_shape + event_shape`` is ``code_shape``, or ``()``.
        code_shape: Shape of one code.
    """

    def __init__(self, distribution: Distribution, code_shape: tuple[int, ...]) -> None:
        super().__init__()
        distribution = distribution.expand(torch.Size(code_shape)) if _is_scalar(distribution) else distribution
        self.transform: Transform = biject_to(distribution.support)
        self.latent_shape = tuple(self.transform.inverse_shape(code_shape))
        unbounded = TransformedDistribution(distribution, [self.transform.inv])
        self.prior = DistributionPrior(unbounded, self.latent_shape)
        self._of_codes = DistributionPrior(distribution, code_shape)
        self._device = self._of_codes.device

    def code(self, z: torch.Tensor) -> torch.Tensor:
        """The code, inside of the support, (N, *code_shape)."""
        return _moved(self.transform, z, self._device)

    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """The z of codes inside of the support, (N, *latent_shape)."""
        return _moved(self.transform.inv, code, self._device)

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """The distribution's log-density, (N,)."""
        return self._of_codes.log_prob(code)


def of_distribution(prior: Distribution, code_shape: tuple[int, ...]) -> LatentMap:
    """How codes with this distribution are made of latents whose density is positive everywhere.

    Args:
        prior: Its ``batch_shape + event_shape`` is ``code_shape``, or ``()`` for independent, equal coordinates.
        code_shape: Shape of one code.

    Raises:
        InputError: The distribution has another shape, or is discrete.
    """
    if not _is_scalar(prior):
        require_shape(tuple(prior.batch_shape + prior.event_shape), code_shape)
    plain = prior
    while isinstance(plain, Independent):
        plain = plain.base_dist
    if isinstance(plain, Uniform):
        return UniformMap(torch.as_tensor(plain.low), torch.as_tensor(plain.high), code_shape)
    if isinstance(plain, Normal) and bool((plain.loc == 0).all()) and bool((plain.scale == 1).all()):
        return Same(StandardNormal(), code_shape)
    support = _support(prior)
    if support is not None and support.is_discrete:
        raise InputError("prior", "is discrete", "give a continuous one; labels are drawn by from_gan(…, classes=…)")
    if support is None or _is_everything(support):
        return Same(DistributionPrior(prior, code_shape), code_shape)
    return BoundedMap(prior, code_shape)


def _moved(transform: Callable[[torch.Tensor], Any], z: torch.Tensor, device: torch.device) -> torch.Tensor:
    return transform(z.to(device)).to(z.device)


def _support(prior: Distribution) -> constraints.Constraint | None:
    try:
        return prior.support
    except NotImplementedError:
        return None


def _is_everything(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return True
    try:
        biject_to(support)
    except NotImplementedError:
        return True  # A mixture, for example: torch knows no bijection onto its support.
    return False


def _is_scalar(prior: Distribution) -> bool:
    return not prior.batch_shape and not prior.event_shape


def require_shape(drawn: tuple[int, ...], code_shape: tuple[int, ...]) -> None:
    """Compare the shape of a prior's draw with that of a code.

    Raises:
        InputError: They differ.
    """
    if drawn != code_shape:
        raise InputError("prior", f"one draw has shape {drawn}", f"give a distribution over {code_shape}")
