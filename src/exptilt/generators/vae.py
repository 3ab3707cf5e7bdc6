"""Variational autoencoders (Kingma and Welling 2014): the paper's, on images, and a small one on points."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from exptilt import rows
from exptilt.errors import InputError, require_at_least
from exptilt.generators.base import Generator


class GaussianEncoderVAE(Generator):
    """What the VAEs share: q(z|x) = N(μ(x), diag σ²(x)), and the ELBO.

    A subclass defines :meth:`posterior`, :meth:`decode` and :meth:`reconstruction_loss`.
    """

    has_encoder = True

    @abstractmethod
    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (N, *latent_shape)."""

    @abstractmethod
    def reconstruction_loss(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """−log p(x|z) in nats, (N,)."""

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of q(z|x): (N, *data_shape) to (N, *latent_shape)."""
        return self.encode_many(x, 1, generator).squeeze(1)

    def encode_many(self, x: torch.Tensor, draws: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Independent samples of q(z|x), whose mean and deviation are computed once: to (N, draws, *latent_shape)."""
        mean, deviation = (part.float() for part in self.posterior(x))
        return rows.gaussian(mean, deviation, draws, generator)

    def training_loss(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """−ELBO in nats, (N,): −log p(x|z) + KL(q(z|x) ‖ p(z)), one z a sample. ``labels`` are not used."""
        mean, deviation = (part.float() for part in self.posterior(x))
        noise = rows.normal(mean.shape, generator).to(mean.device)
        divergence = 0.5 * (mean.square() + deviation.square() - 1).flatten(1).sum(1) - deviation.log().flatten(1).sum(
            1
        )
        return self.reconstruction_loss(x, mean + deviation * noise) + divergence

    @torch.no_grad()
    def metrics(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Figures of each held-out sample, (N,) each: the ELBO in nats."""
        return {"elbo": -self.training_loss(x, labels, generator)}


class VAE(GaussianEncoderVAE):
    """The paper's VAE for 32×32 images: a DCGAN decoder and the encoder that mirrors it (paper, B.1).

    Args:
        channels: Channels of an image.
        latent_size: Length of z; 100 in the paper.
        width: Channels before the last layer; 64 in DCGAN, doubled towards the latent.
        likelihood: ``"bernoulli"``: binary cross-entropy on pixels mapped to [0, 1] (MNIST and Fashion in the
            paper). ``"gaussian"``: squared error on pixels in [−1, 1], that is variance ½, its constant left out
            (CIFAR-10 in the paper).
    """

    def __init__(
        self,
        channels: int = 1,
        latent_size: int = 100,
        width: int = 64,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
    ) -> None:
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise InputError("likelihood", f"{likelihood!r} is not known", "use 'bernoulli' or 'gaussian'")
        require_at_least(1, channels=channels, latent_size=latent_size, width=width)
        self.channels, self.latent_size, self.width = channels, latent_size, width
        self.likelihood = likelihood
        self.latent_shape = (latent_size,)
        self.data_shape = (channels, 32, 32)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 2 * latent_size, 4),
            nn.Flatten(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(latent_size, 4 * width, 4, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {
            "channels": self.channels,
            "latent_size": self.latent_size,
            "width": self.width,
            "likelihood": self.likelihood,
        }

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (N, latent_size)."""
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-20, 20)).exp()

    def logits(self, z: torch.Tensor) -> torch.Tensor:
        """What the last layer gives: half the inverse tanh of an image, (N, C, 32, 32)."""
        return self.decoder(z[:, :, None, None])

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z): the mean of p(x|z), mapped to [−1, 1]."""
        # 2 sigmoid(l) − 1 = tanh(l/2), so one output layer serves both likelihoods.
        return torch.tanh(0.5 * self.logits(z))

    def reconstruction_loss(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """−log p(x|z) in nats summed over pixels (up to a constant for the Gaussian), (N,)."""
        logits = self.logits(z).float()
        if self.likelihood == "bernoulli":
            loss = F.binary_cross_entropy_with_logits(logits, 0.5 * (x + 1), reduction="none")
        else:
            loss = (torch.tanh(0.5 * logits) - x).square()
        return loss.flatten(1).sum(1)


class ToyVAE(GaussianEncoderVAE):
    """A fully connected VAE for points (paper, §5.1), with a Gaussian likelihood.

    Its deviation is fixed: learned, it starts so large that the latent is ignored, or follows the fit and stays there.

    Args:
        data_size: Length of a point.
        latent_size: Length of z.
        width: Units of each of the hidden layers of encoder and decoder.
        deviation: Standard deviation of p(x|z), an axis.
    """

    def __init__(self, data_size: int = 2, latent_size: int = 2, width: int = 256, deviation: float = 0.05) -> None:
        super().__init__()
        self.deviation = deviation
        self.data_size, self.latent_size, self.width = data_size, latent_size, width
        self.latent_shape = (latent_size,)
        self.data_shape = (data_size,)
        self.encoder = _fully_connected(data_size, width, 2 * latent_size)
        self.decoder = _fully_connected(latent_size, width, data_size)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {
            "data_size": self.data_size,
            "latent_size": self.latent_size,
            "width": self.width,
            "deviation": self.deviation,
        }

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (N, latent_size)."""
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-20, 20)).exp()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z): the mean of p(x|z), (N, data_size)."""
        return self.decoder(z)

    def reconstruction_loss(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """−log N(x; G(z), σ²) in nats, (N,)."""
        scaled = (x - self.decode(z).float()) / self.deviation
        constant = self.data_size * (math.log(self.deviation) + 0.5 * math.log(2 * math.pi))
        return 0.5 * scaled.square().sum(1) + constant


def _fully_connected(size_in: int, width: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size_in, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, size_out),
    )
