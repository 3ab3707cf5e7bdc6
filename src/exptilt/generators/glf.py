"""Generative Latent Flow (Xiao, Yan and Amit 2019, arXiv 1905.10485)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.latent_flow import LatentFlow
from exptilt.generators.vae import VAE


class GLF(Generator):
    """The VAE's networks as a deterministic autoencoder, and a latent flow on its codes, trained jointly (paper, B.1).

    With the encoder E, the decoder D and the flow f, decode(z) = D(f⁻¹(z)) for z ~ N(0, I) and encode(x) = f(E(x)).
    The loss is −log p(x|E(x)) − β log p(stop_gradient(E(x))), log p the flow's: as in the reference, the flow's term
    does not reach the encoder, which would otherwise shrink its codes towards a point to raise their density.

    Args:
        channels: Channels of an image.
        latent_size: Length of a code, and of z; 64 in the paper, ≥ 2.
        width: Channels before the last layer of the decoder, as in :class:`VAE`.
        likelihood: p(x|code), as in :class:`VAE`: ``"bernoulli"`` is binary cross-entropy on pixels in [0, 1],
            ``"gaussian"`` the squared error on pixels in [−1, 1].
        couplings: Affine couplings of the flow, ≥ 2; 4 in the paper.
        flow_width: Units of the hidden layer of a coupling; 256 in the paper.
        flow_weight: β > 0. No weight gets a gradient from both terms, so under Adam β has next to no effect.

    Raises:
        InputError: An argument is out of range.
    """

    has_encoder = True

    def __init__(
        self,
        channels: int = 1,
        latent_size: int = 64,
        width: int = 64,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        couplings: int = 4,
        flow_width: int = 256,
        flow_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < flow_weight < float("inf"):
            raise InputError("flow_weight", f"{flow_weight} is out of range", "give a number > 0")
        self.flow_weight = float(flow_weight)
        self.autoencoder = VAE(channels, latent_size, width, likelihood)
        # The encoder gives a code where the VAE's gives mean and log-variance; nothing else of the VAE differs.
        self.autoencoder.encoder[-2] = nn.Conv2d(4 * width, latent_size, 4)
        self.flow = LatentFlow(latent_size, couplings, flow_width)
        self.latent_shape = self.autoencoder.latent_shape
        self.data_shape = self.autoencoder.data_shape

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {
            **self.autoencoder.arguments(),
            "couplings": len(self.flow.couplings),
            "flow_width": self.flow.width,
            "flow_weight": self.flow_weight,
        }

    def code(self, x: torch.Tensor) -> torch.Tensor:
        """E(x): images in [−1, 1] to codes (N, latent_size), float32 also under autocast."""
        code = self.autoencoder.encoder(x)
        return code if code.dtype == torch.float64 else code.float()

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """Log-density of codes (N, latent_size) under the flow in nats, (N,)."""
        return self.flow.log_prob(code)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = D(f⁻¹(z)): latents (N, latent_size) to images in [−1, 1]."""
        return self.autoencoder.decode(self.flow.inverse(z))

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """z = f(E(x)), deterministic: images in [−1, 1] to (N, latent_size). ``generator`` is not used."""
        return self.flow(self.code(x))[0]

    def encode_many(self, x: torch.Tensor, draws: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """The same z for each draw: (N, draws, latent_size)."""
        return self.encode(x).unsqueeze(1).expand(-1, draws, -1)

    def training_loss(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Reconstruction + β · −log-density of the detached code, (N,). ``labels`` and ``generator`` are not used."""
        code = self.code(x)
        return self.autoencoder.reconstruction_loss(x, code) - self.flow_weight * self.code_log_prob(code.detach())

    @torch.no_grad()
    def metrics(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Figures of each held-out image, (N,) each.

        ``reconstruction``: nats (Bernoulli) or squared error (Gaussian), summed over pixels. ``code_nll``: minus the
        log-density of the code, in nats.
        """
        code = self.code(x)
        return {
            "reconstruction": self.autoencoder.reconstruction_loss(x, code),
            "code_nll": -self.code_log_prob(code),
        }
