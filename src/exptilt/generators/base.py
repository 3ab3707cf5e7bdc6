"""What a generator is: a prior p(z) and a decoder x = G(z); optionally an encoder and a density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exptilt.errors import InputError
from exptilt.generators.prior import Prior, StandardNormal
from exptilt.memory import in_parts
from exptilt.sampling.random import SampleStreams
from exptilt.sharing import Shared
from exptilt.storage import save_module

# Samples are numbered below it: numpy counts in 63 bits.
_LAST_INDEX = 1 << 62


class Generator(Shared, nn.Module, ABC):
    """A generative model with a latent space.

    A subclass sets ``latent_shape`` and ``data_shape``, defines :meth:`decode` and, to be saved, :meth:`arguments`;
    with an encoder it sets ``has_encoder = True`` and defines :meth:`encode`.

    Attributes:
        latent_shape: Shape of one latent.
        data_shape: Shape of one sample, (C, H, W) for images in [−1, 1] or (D,) for points.
        prior: p(z); N(0, I) unless a subclass sets another.
        has_encoder: Whether :meth:`encode` works.
        latent_parts: Shapes (C, H, W) of the images that a flat latent consists of, finest first, each of half the
            resolution of the one before; empty where it has no such parts.
        nested: Those arguments of the constructor that are generators themselves, kept under the same names.
    """

    latent_shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    has_encoder: bool = False
    latent_parts: tuple[tuple[int, int, int], ...] = ()
    nested: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.prior: Prior = StandardNormal()

    @abstractmethod
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z): latents (N, *latent_shape) to samples (N, *data_shape)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """The same as :meth:`decode`."""
        return self.decode(z)

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of q(z|x): (N, *data_shape) to (N, *latent_shape).

        Args:
            x: Images in [−1, 1] or points.
            generator: Source of its randomness; torch's global one unless given.
        """
        raise InputError(type(self).__name__, "has no encoder", "use a recipe that needs none, or give wrap(encode=…)")

    def encode_many(self, x: torch.Tensor, draws: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Independent samples of q(z|x), several of each image: (N, *data_shape) to (N, draws, *latent_shape).

        Args:
            x: Images in [−1, 1] or points.
            draws: Samples of each, ≥ 1.
            generator: Source of their randomness; torch's global one unless given.
        """
        return torch.stack([self.encode(x, generator) for _ in range(draws)], dim=1)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats, (N,), of generators with a density."""
        raise InputError(type(self).__name__, "has no density", "log_prob needs a normalizing flow")

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` works."""
        return type(self).log_prob is not Generator.log_prob

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """The z with G(z) = x of continuous x, (N, *latent_shape), of generators with a density."""
        raise InputError(type(self).__name__, "has no inverse", "latent needs a normalizing flow")

    def describe(self) -> dict[str, Any]:
        """The settings that sampling uses, as JSON values; a generator has none."""
        return {}

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        raise InputError(type(self).__name__, "cannot be saved", "define arguments() or save its parts yourself")

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` to ``folder``, with weights as ``dtype`` if given."""
        save_module(self, folder, dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def freeze(self) -> Generator:
        """Evaluation mode, and no gradients for the weights; returns itself."""
        self.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, start: int = 0, batch_size: int = 500) -> torch.Tensor:
        """G(z) for z ~ p(z): samples ``start … start + n − 1`` of ``seed``, (n, *data_shape).

        Sample i depends on (seed, i) alone, up to the rounding of a batch's arithmetic. Where the memory does not hold
        ``batch_size`` samples at once, fewer are made at once.
        """
        require_range(n, start, batch_size)
        require_float32(self)

        def make(first: int, size: int) -> torch.Tensor:
            return self.decode(self.sample_prior(size, seed=seed, start=first))

        batches = list(in_parts(n, start, batch_size, make))
        return torch.cat(batches) if batches else torch.empty(0, *self.data_shape)

    @torch.no_grad()
    def decode_many(self, z: torch.Tensor, *, batch_size: int = 500) -> torch.Tensor:
        """G(z) of any number of latents, on any device: (N, *latent_shape) to (N, *data_shape), without gradients.

        Where the memory does not hold ``batch_size`` samples at once, fewer are made at once.
        """

        def make(first: int, size: int) -> torch.Tensor:
            return self.decode(z[first : first + size].to(self.device))

        batches = list(in_parts(len(z), 0, batch_size, make))
        return torch.cat(batches) if batches else torch.empty(0, *self.data_shape)

    def sample_prior(self, n: int, *, seed: int = 0, start: int = 0) -> torch.Tensor:
        """z ~ p(z), (n, *latent_shape), on the generator's device."""
        return self.prior.sample(SampleStreams(seed, start, n, self.latent_shape, self.device))


def lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Bring the weights of convolutions of images into this order, which torch has for four dimensions alone."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=layout)


def blocks(n: int, start: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """(first index, size) of the batches that cover ``start … start + n − 1``.

    Raises:
        InputError: n < 0, start < 0 or batch_size < 1.
    """
    require_range(n, start, batch_size)
    return ((first, min(batch_size, start + n - first)) for first in range(start, start + n, batch_size))


def require_float32(module: nn.Module) -> None:
    """Check the type of a module's weights: latents are float32.

    Raises:
        InputError: They are of another.
    """
    other = next((p.dtype for p in module.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if other is not None:
        name = str(other).removeprefix("torch.")
        raise InputError(
            type(module).__name__, f"has weights in {name}", "convert it with .float(); latents are float32"
        )


def require_range(n: int, start: int, batch_size: int) -> None:
    """Check which samples are asked for.

    Raises:
        InputError: n < 0, start < 0, batch_size < 1, or an index is beyond 2⁶².
    """
    if n < 0:
        raise InputError("n", f"{n} is negative", "give a whole number ≥ 0")
    if start < 0:
        raise InputError("start", f"{start} is negative", "give a whole number ≥ 0")
    if start + n > _LAST_INDEX:
        raise InputError("start", f"{start} is out of range", "give a whole number below 2**62")
    if batch_size < 1:
        raise InputError("batch_size", f"{batch_size} is not positive", "give a whole number ≥ 1")
