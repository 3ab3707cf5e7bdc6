"""Normalizing flows on codes (RealNVP, Dinh et al. 2017), and the VAE whose codes such a flow models."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from zuko.flows import GeneralCouplingTransform

from exptilt.errors import require_at_least
from exptilt.generators.prior import StandardNormal
from exptilt.generators.two_stage import SecondStage
from exptilt.precision import without_autocast


class LatentFlow(nn.Module):
    """A density on codes z: u = f(z) is N(0, I), f a chain of affine couplings.

    Each coupling keeps one half of the coordinates and moves the other by s ⊙ z + t, where s and t are functions of the
    half that is kept, so that f and f⁻¹ cost the same; s is within (1/1000, 1000). The halves are random, fixed by
    ``size`` and saved with the weights. Couplings come in pairs that exchange the halves: with independent halves, one
    coordinate in 16 would be moved by none of 4 couplings. A new flow is the identity.

    It computes in the precision of its weights, also under autocast.

    Args:
        size: Length of a code, ≥ 2.
        couplings: Number of couplings, ≥ 2; 4 in the paper (B.1).
        width: Units of the one hidden layer of s and t; 256 in the paper.

    Raises:
        InputError: An argument is too small.
    """

    def __init__(self, size: int, couplings: int = 4, width: int = 256) -> None:
        super().__init__()
        require_at_least(2, latent_size=size, couplings=couplings)
        require_at_least(1, flow_width=width)
        self.size, self.width = size, width
        self.couplings = nn.ModuleList(_coupling(mask, width) for mask in _halves(size, couplings))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u = f(z) and log|det ∂f/∂z| of codes (N, size): (N, size) and (N,)."""
        u = self._in_own_precision(z)
        log_det = u.new_zeros(len(u))
        with without_autocast(z.device):
            for coupling in self.couplings:
                u, change = coupling().call_and_ladj(u)
                log_det = log_det + change
        return u, log_det

    def inverse(self, u: torch.Tensor) -> torch.Tensor:
        """z = f⁻¹(u) of (N, size), (N, size)."""
        z = self._in_own_precision(u)
        with without_autocast(u.device):
            for coupling in reversed(self.couplings):
                z = coupling().inv(z)
        return z

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) = log N(f(z); 0, I) + log|det ∂f/∂z| in nats, (N,)."""
        u, log_det = self(z)
        return StandardNormal().log_prob(u) + log_det

    def _in_own_precision(self, z: torch.Tensor) -> torch.Tensor:
        return z.to(next(self.parameters()).dtype)


class LatentFlowVAE(SecondStage):
    """VAE + flow (paper, §5.2): a frozen VAE, and a latent flow in place of N(0, I) as the density of its codes.

    decode(u) = G(f⁻¹(u)) and encode(x) = f(z), z ~ q(z|x), with the VAE's G and q. Its ELBO on log p(x) is the VAE's
    with the flow's density as p(z); ``metrics`` gives it.

    Args:
        channels: Channels of an image.
        latent_size: Length of z, and of u; ≥ 2.
        width: Width of the VAE's convolutions.
        likelihood: The VAE's p(x|z), ``"bernoulli"`` or ``"gaussian"``.
        couplings: Affine couplings of the flow, ≥ 2.
        flow_width: Units of the hidden layer of a coupling.
    """

    def __init__(
        self,
        channels: int = 1,
        latent_size: int = 100,
        width: int = 64,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        couplings: int = 4,
        flow_width: int = 256,
    ) -> None:
        super().__init__(channels, latent_size, width, likelihood)
        self.flow = LatentFlow(latent_size, couplings, flow_width)

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor beside those of the VAE, as JSON values."""
        return {"couplings": len(self.flow.couplings), "flow_width": self.flow.width}

    def code_from_latent(self, u: torch.Tensor) -> torch.Tensor:
        """z = f⁻¹(u), (N, latent_size)."""
        return self.flow.inverse(u)

    def latent_from_code(self, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """u = f(z), (N, latent_size). ``generator`` is not used."""
        return self.flow(z)[0]

    def code_log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) of codes (N, latent_size) under the flow in nats, (N,)."""
        return self.flow.log_prob(z)

    def code_nll(self, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """−log p(z) in nats, (N,). ``generator`` is not used."""
        return -self.code_log_prob(z)


def _coupling(kept: torch.Tensor, width: int) -> nn.Module:
    coupling = GeneralCouplingTransform(len(kept), mask=kept, hidden_features=(width,))  # type: ignore[arg-type]
    for parameter in coupling.hyper[-1].parameters():  # type: ignore[index, union-attr]
        nn.init.zeros_(parameter)
    return coupling


def _halves(size: int, couplings: int) -> list[torch.Tensor]:
    """Which coordinates each coupling keeps, bool (size,) each."""
    generator = torch.Generator().manual_seed(0)
    masks: list[torch.Tensor] = []
    while len(masks) < couplings:
        kept = torch.zeros(size, dtype=torch.bool)
        kept[torch.randperm(size, generator=generator)[: size // 2]] = True
        masks += [kept, ~kept]
    return masks[:couplings]
