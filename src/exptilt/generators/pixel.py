"""Generators whose latent is the sample itself: their chains walk in pixel space (paper, §3.1 and §5.2)."""

from __future__ import annotations

import math
from typing import Any

import torch

from exptilt.errors import InputError, require_at_least
from exptilt.generators.base import Generator
from exptilt.sampling.random import Reshaped, Streams
from exptilt.storage import described

BIN = 2 / 255
"""Width in [−1, 1] of the bin of a byte: byte k stands for k·BIN − 1, its bin's centre."""
EDGE = 1 + BIN / 2
"""The bins of all bytes together are [−EDGE, EDGE]."""


class PixelSpace(Generator):
    """A flow seen from its samples: the latent is x, its prior the flow's p(x), and decoding changes nothing.

    Tilted by E it has U(x) = E(x) − log p(x), so that the same chains, training and diagnostics give pixel-space
    tilting (paper, §3.1). Chains start at the flow's own samples of the same seed and index. log p is that of
    continuous x (see :class:`~exptilt.generators.glow.Glow`), whose noise within a byte's bin is part of the density;
    so the energy is to be trained on dequantised data, see ``TiltConfig.dequantize``.

    Args:
        flow: A generator with a density: ``log_prob`` works, and a latent has as many numbers as a sample.

    Raises:
        InputError: The generator has no density, or is built on another one.
    """

    nested = ("flow",)

    def __init__(self, flow: Generator) -> None:
        super().__init__()
        require_density(flow)
        self.flow = flow
        self.latent_shape = self.data_shape = flow.data_shape
        self.prior = FlowDensity(flow)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values; the flow's stand in ``"flow"`` with its class."""
        return {"flow": described(self.flow)}

    def freeze(self) -> PixelSpace:
        """Evaluation mode, and no gradients for the weights; returns itself."""
        self.flow.freeze()
        super().freeze()
        return self

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x itself, (N, *data_shape)."""
        return z

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) of the flow in nats, (N,)."""
        return self.flow.log_prob(x)

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """x itself, (N, *data_shape)."""
        return x


class FlowDensity:
    """p(x) of a flow, as the prior of chains in pixel space.

    Args:
        flow: A generator with ``log_prob``.
    """

    def __init__(self, flow: Generator) -> None:
        self.flow = flow

    @torch.no_grad()
    def sample(self, streams: Streams) -> torch.Tensor:
        """One sample of the flow for each stream, (N, *data_shape)."""
        return self.flow.decode(self.flow.prior.sample(Reshaped(streams, self.flow.latent_shape)))

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(x) of samples (N, *data_shape) in nats, (N,)."""
        return self.flow.log_prob(z)


class UniformPixels(Generator):
    """Uniform noise images: the base of an energy-based model on pixels (paper, §5.2; Du and Mordatch 2019).

    Images fill the cube [−EDGE, EDGE]^D, EDGE = 256/255, that the bins of all bytes cover, so that each byte has the
    probability 1/256. Chains must stay in the cube. Du and Mordatch clip, which no Metropolis test allows for; here
    the latent is any point of ℝ^D, and decoding reflects it at the walls as often as is needed. A latent in the cube
    is the image itself, so step sizes are in units of pixels; and as the reflected density is continuous at a wall,
    every kernel works as it does without walls.

    Args:
        channels: Channels of an image.
        height: Its height.
        width: Its width.

    Raises:
        InputError: An argument is below 1.
    """

    def __init__(self, channels: int = 1, height: int = 32, width: int = 32) -> None:
        super().__init__()
        require_at_least(1, channels=channels, height=height, width=width)
        self.latent_shape = self.data_shape = (channels, height, width)
        self.prior = UniformDensity(self.data_shape)
        # There are no weights; this tells where the model is, and a file of weights may not be empty.
        self.register_buffer("levels", torch.tensor(256))

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return dict(zip(("channels", "height", "width"), self.data_shape, strict=True))

    @property
    def device(self) -> torch.device:
        """Where the images are made."""
        return self.get_buffer("levels").device

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Points of ℝ^D, (N, *data_shape), reflected into the cube."""
        return EDGE * (1 - (torch.remainder(z / EDGE + 1, 4) - 2).abs())

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """−D log(2 EDGE) of images in the cube, −∞ outside, in nats, (N,)."""
        inside = (x.abs() <= EDGE).flatten(1).all(1)
        return torch.where(inside, self.prior.log_prob(x), -torch.inf)

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """x itself, (N, *data_shape)."""
        return x


class UniformDensity:
    """The uniform density on the cube [−EDGE, EDGE]^D, and on its reflections, which decode to the same images.

    Args:
        shape: Shape of one image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.constant = -math.prod(shape) * math.log(2 * EDGE)

    def sample(self, streams: Streams) -> torch.Tensor:
        """One image for each stream, (N, *shape)."""
        # Of a standard normal number, erf(·/√2) is uniform on [−1, 1].
        return EDGE * torch.erf(streams.normal() / math.sqrt(2))

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """−D log(2 EDGE), (N,)."""
        # A function of z, as kernels ask for its gradient, which is zero.
        return 0 * z.flatten(1).sum(1) + self.constant


def in_pixel_space(generator: Generator) -> Generator:
    """The generator with its samples as latents; itself, if it is such a one already.

    Raises:
        InputError: See :func:`require_density`.
    """
    return generator if isinstance(generator, (PixelSpace, UniformPixels)) else PixelSpace(generator)


def require_density(generator: Generator) -> None:
    """Refuse a generator whose samples have no density that is known.

    Raises:
        InputError: It has none, or none of all pixels, or it is built on another generator.
    """
    name = type(generator).__name__
    if not generator.has_density:
        raise InputError(name, "has no density of its samples", "pixel space needs a flow, for example Glow")
    if math.prod(generator.latent_shape) != math.prod(generator.data_shape):
        shapes = f"of {generator.data_shape} from latents of {generator.latent_shape}"
        raise InputError(name, f"has no density of all pixels, {shapes}", "give a flow of the whole image")
    if generator.nested:
        raise InputError(name, "is built on another generator", "give that one")


def dequantized(x: torch.Tensor, streams: Streams) -> torch.Tensor:
    """Images of bytes in [−1, 1] as continuous ones, uniform in their bins: x + BIN·(u − ½) (Theis et al. 2016, §3.1).

    Args:
        x: (N, C, H, W).
        streams: Noise for N images of this shape.
    """
    return x + 0.5 * BIN * torch.erf(streams.normal().to(x.device) / math.sqrt(2))
