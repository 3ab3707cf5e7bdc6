"""Models of the codes of a frozen VAE: what they share, and the two-stage VAE (Dai and Wipf 2019)."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from typing import Any, Literal, Self

import torch
from torch import nn

from exptilt import rows
from exptilt.errors import InputError, require_at_least
from exptilt.generators.base import Generator
from exptilt.generators.vae import VAE, GaussianEncoderVAE
from exptilt.precision import without_autocast


class SecondStage(Generator):
    """A generator whose latent u is mapped to the code z of a frozen VAE, and z to an image by its decoder.

    The first stage is part of the module, so that one ``state_dict`` holds everything, but it is never trained: its
    weights have no gradient, and its batch normalisation stays in evaluation mode under :meth:`train`. Built by its
    constructor it is untrained, for weights from a file; :meth:`from_vae` takes a trained one.

    A subclass defines :meth:`code_from_latent`, :meth:`latent_from_code`, :meth:`code_nll` and :meth:`options`.

    Args:
        channels: Channels of an image.
        latent_size: Length of z, and of u.
        width: Width of the VAE's convolutions.
        likelihood: The VAE's p(x|z), ``"bernoulli"`` or ``"gaussian"``.
    """

    has_encoder = True

    def __init__(
        self, channels: int, latent_size: int, width: int, likelihood: Literal["bernoulli", "gaussian"]
    ) -> None:
        super().__init__()
        self.vae = VAE(channels, latent_size, width, likelihood)
        self.vae.freeze()
        self.latent_shape = self.vae.latent_shape
        self.data_shape = self.vae.data_shape

    @classmethod
    def from_vae(cls, vae: VAE, **options: Any) -> Self:
        """A model of the codes of ``vae``, which is copied, with its device and its precision.

        Args:
            vae: A trained VAE.
            options: The other arguments of the constructor.

        Raises:
            InputError: ``vae`` is no :class:`VAE`.
        """
        if not isinstance(vae, VAE):
            raise InputError("vae", f"is a {type(vae).__name__}", f"{cls.__name__} needs a VAE for images")
        model = cls(**vae.arguments(), **options)
        model.to(device=vae.device, dtype=next(vae.parameters()).dtype)
        model.vae.load_state_dict(vae.state_dict())
        return model

    @abstractmethod
    def code_from_latent(self, u: torch.Tensor) -> torch.Tensor:
        """z of latents, deterministic: (N, *latent_shape) to (N, latent_size)."""

    @abstractmethod
    def latent_from_code(self, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Latents of codes z, or a sample of them: (N, latent_size) to (N, *latent_shape)."""

    @abstractmethod
    def code_nll(self, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """−log p(z) of codes (N, latent_size) in nats, or an estimate of an upper bound, (N,)."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Arguments of the constructor beside those of the VAE, as JSON values."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {**self.vae.arguments(), **self.options()}

    def train(self, mode: bool = True) -> Self:
        """Training mode for the second stage; the VAE stays in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Gradients for the weights of the second stage; the VAE's stay without."""
        super().requires_grad_(requires_grad)
        self.vae.requires_grad_(False)
        return self

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z) of the VAE, z the latents' codes: (N, *latent_shape) to images in [−1, 1]."""
        return self.vae.decode(self.code_from_latent(z))

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Latents of a sample z of q(z|x): images in [−1, 1] to (N, *latent_shape)."""
        return self.latent_from_code(self.vae.encode(x, generator), generator)

    def training_loss(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """:meth:`code_nll` of one z ~ q(z|x) an image, in nats, (N,). ``labels`` are not used."""
        with torch.no_grad():
            z = self.vae.encode(x, generator)
        return self.code_nll(z, generator)

    @torch.no_grad()
    def metrics(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Figures of each held-out image, (N,) each, in nats.

        ``code_nll``, and ``elbo``: E_q[log p(x|z) + log p(z) − log q(z|x)] with the learned p(z) (or a bound on it) in
        place of N(0, I), one z an image; to be compared with the VAE's own ``elbo``.
        """
        mean, deviation = (part.float() for part in self.vae.posterior(x))
        noise = rows.normal(mean.shape, generator).to(mean.device)
        z = mean + deviation * noise
        log_q = -(0.5 * noise.square() + deviation.log() + 0.5 * math.log(2 * math.pi)).sum(1)
        nll = self.code_nll(z, generator)
        return {"elbo": -self.vae.reconstruction_loss(x, z) - nll - log_q, "code_nll": nll}


class TwoStageVAE(SecondStage):
    """A VAE, and a second, fully connected VAE on its codes z ~ q(z|x) (Dai and Wipf 2019, arXiv 1903.05789).

    The second stage's u is as long as z, and p(z|u) = N(ẑ(u), γ²I) with one learned γ. Codes are drawn from it as in
    the reference, z = ẑ(u) + γε. A generator's x is a function of its latent, which so is u and the noise ε side by
    side, twice as long as z. The mean ẑ(u) alone would not do: where codes are nearly normal, it is constant, γ = 1.

    Args:
        channels: Channels of an image.
        latent_size: Length of z, and of u.
        width: Width of the VAE's convolutions.
        likelihood: The VAE's p(x|z), ``"bernoulli"`` or ``"gaussian"``.
        second_width: Units of a hidden layer of the second stage; 1024 in the reference.
        second_depth: Number of its hidden layers; 3 in the reference.
    """

    def __init__(
        self,
        channels: int = 1,
        latent_size: int = 100,
        width: int = 64,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        second_width: int = 1024,
        second_depth: int = 3,
    ) -> None:
        super().__init__(channels, latent_size, width, likelihood)
        self.second = CodeVAE(latent_size, second_width, second_depth)
        self.latent_shape = (2 * latent_size,)

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor beside those of the VAE, as JSON values."""
        return {"second_width": self.second.width, "second_depth": self.second.depth}

    def code_from_latent(self, u: torch.Tensor) -> torch.Tensor:
        """ẑ(u) + γε of latents (u, ε), (N, 2 · latent_size) to (N, latent_size)."""
        with without_autocast(u.device):
            u, noise = u.to(self.second.log_gamma.dtype).chunk(2, dim=1)
            return self.second.decode(u) + self.second.log_gamma.exp() * noise

    def latent_from_code(self, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of q(u|z), and the ε that takes ẑ(u) to z, (N, 2 · latent_size)."""
        u = self.second.encode(z, generator)
        with without_autocast(z.device):
            noise = (z.to(u.dtype) - self.second.decode(u)) * torch.exp(-self.second.log_gamma)
        return torch.cat([u, noise], dim=1)

    def code_nll(self, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """−ELBO of the second stage in nats, (N,): an estimate, from one u, of an upper bound of −log p(z)."""
        return self.second.training_loss(z, generator=generator)


class CodeVAE(GaussianEncoderVAE):
    """The second stage: a fully connected VAE on codes, its latent as long as a code.

    As in the reference, ReLU layers whose input is put beside their output before the last, linear layer, and a scalar
    γ that starts at 1. It computes in the precision of its weights, also under autocast: a small γ magnifies rounding.

    Args:
        size: Length of a code.
        width: Units of a hidden layer.
        depth: Hidden layers of encoder and of decoder.

    Raises:
        InputError: An argument is below 1.
    """

    def __init__(self, size: int, width: int = 1024, depth: int = 3) -> None:
        super().__init__()
        require_at_least(1, latent_size=size, second_width=width, second_depth=depth)
        self.width, self.depth = width, depth
        self.latent_shape = self.data_shape = (size,)
        self.encoder, self.encoder_head = _hidden(size, width, depth), nn.Linear(size + width, 2 * size)
        self.decoder, self.decoder_head = _hidden(size, width, depth), nn.Linear(size + width, size)
        self.log_gamma = nn.Parameter(torch.zeros(()))

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(u|z) for codes z = ``x``, each (N, size)."""
        with without_autocast(x.device):
            z = x.to(self.log_gamma.dtype)
            mean, log_deviation = self.encoder_head(torch.cat([z, self.encoder(z)], 1)).chunk(2, dim=1)
            return mean, log_deviation.clamp(-10, 10).exp()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """ẑ(u), the mean of p(z|u), for latents u = ``z``, (N, size)."""
        with without_autocast(z.device):
            u = z.to(self.log_gamma.dtype)
            return self.decoder_head(torch.cat([u, self.decoder(u)], 1))

    def reconstruction_loss(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """−log N(z; ẑ(u), γ²I) in nats, (N,), for codes z = ``x`` and latents u = ``z``."""
        scaled = (x - self.decode(z)) * torch.exp(-self.log_gamma)
        return 0.5 * scaled.square().sum(1) + x.shape[1] * (self.log_gamma + 0.5 * math.log(2 * math.pi))


def _hidden(size: int, width: int, depth: int) -> nn.Sequential:
    sizes = [size] + [width] * depth
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers)
