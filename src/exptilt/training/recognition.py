"""An encoder for a decoder that has none: a recognition network, learned from the decoder's own samples."""

from __future__ import annotations

import math

import torch
from torch import nn

from exptilt import distributed, rows
from exptilt.fast import for_chains
from exptilt.generators.base import Generator
from exptilt.precision import autocast
from exptilt.sampling.random import BatchStreams
from exptilt.training.loop import Loop, LoopConfig, own_rows

_BATCH_SIZE, _LEARNING_RATE = 128, 2e-3
_WIDTH, _WIDEST, _HIDDEN = 32, 256, 512
# Noise on the decoder's images, uniform up to this deviation: data are never quite like them.
_MOST_NOISE = 0.1
# Indices of batches are kept apart from those of the energy's training.
_BATCHES = 1 << 45


class RecognitionNetwork(nn.Module):
    """q(z|x) = N(μ(x), diag σ²(x)) of a decoder's latents.

    Args:
        data_shape: (C, H, W) of images, H and W ≥ 4, or (D,) of points.
        latent_shape: Shape of one latent.
    """

    def __init__(self, data_shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        body = _image_body(data_shape) if len(data_shape) == 3 else nn.Sequential(nn.Flatten())
        features = body(torch.zeros(1, *data_shape)).shape[1]
        size = math.prod(latent_shape)
        head = [nn.Linear(features, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU()]
        self.layers = nn.Sequential(*body, *head, nn.Linear(_HIDDEN, 2 * size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance, each (N, latent numbers) in float32."""
        mean, log_variance = self.layers(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 4)

    def encode_many(self, x: torch.Tensor, draws: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Independent samples of q(z|x): (N, *data_shape) to (N, draws, *latent_shape)."""
        mean, log_variance = self(x)
        return rows.gaussian(mean, (0.5 * log_variance).exp(), draws, generator).unflatten(2, self.latent_shape)


def learn_encoder(
    generator: Generator, iterations: int, *, seed: int, dtype: torch.dtype, quiet: bool
) -> RecognitionNetwork:
    """Fit q(z|x) by maximum likelihood to pairs z ~ p(z), x = G(z) + noise: the sleep phase of wake-sleep.

    No data are needed, so nothing of them can be learned by heart. Latents that the decoder does not use get their
    prior (Hinton, Dayan, Frey, Neal 1995, "The wake-sleep algorithm for unsupervised neural networks").

    Args:
        generator: A frozen generator with a normal prior.
        iterations: Updates, each of 128 samples.
        seed: Fixes initialisation, latents and noise.
        dtype: Arithmetic of decoder and network.
        quiet: No progress bar.

    Raises:
        RunError: The training diverged, also after rollbacks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RecognitionNetwork(generator.data_shape, generator.latent_shape)
    layout = torch.channels_last if len(generator.data_shape) == 3 else torch.contiguous_format
    network.to(generator.device, memory_format=layout)  # type: ignore[call-overload]
    fast_generator = for_chains(generator, dtype)

    def loss(iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        mine, shape, device = own_rows(_BATCH_SIZE), generator.latent_shape, generator.device
        streams = BatchStreams(seed, _BATCHES + iteration, _BATCH_SIZE, shape, device, rows=mine)
        z = generator.prior.sample(streams)
        with torch.no_grad(), autocast(dtype, device):
            x = fast_generator.decode(z).float()
        random = torch.Generator().manual_seed(rows.seed_of(seed, iteration))
        with rows.part([mine], _BATCH_SIZE):
            deviation = _MOST_NOISE * rows.uniform((len(mine), *[1] * (x.dim() - 1)), random)
            x = x + (deviation * rows.normal(x.shape, random)).to(x.device)
        with autocast(dtype, device):
            mean, log_variance = network(x.contiguous(memory_format=layout))
        squares = (z.flatten(1) - mean).square() * (-log_variance).exp()
        value = distributed.values_of_all(0.5 * (log_variance + squares).sum(1), _BATCH_SIZE).mean()
        return value, {"nll": float(value.detach())}

    config = LoopConfig(
        iterations, _LEARNING_RATE, schedule="cosine", weight_decay=0.01, gradient_clip=10.0, check_every=iterations
    )
    Loop(network, config, loss, quiet=quiet, label="encoder").run()
    return network.eval().requires_grad_(False)


def _image_body(data_shape: tuple[int, ...]) -> nn.Sequential:
    """Convolutions that halve the resolution until 4 to 7 pixels are left, flattened."""
    channels, height, width = data_shape
    layers: list[nn.Module] = []
    for halving in range(int(math.log2(min(height, width) / 4))):
        size = min(_WIDTH << halving, _WIDEST)
        layers += [nn.Conv2d(channels, size, 4, 2, 1), nn.GroupNorm(8, size), nn.SiLU()]
        channels = size
    return nn.Sequential(*layers, nn.Flatten())
