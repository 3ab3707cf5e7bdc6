"""Any decoder with a prior as a generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution
from zuko.distributions import NormalizingFlow
from zuko.lazy import LazyDistribution

from exptilt import rows
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.checks import CHECKED, attempt, check_decoder, check_encoder, check_range
from exptilt.generators.image_format import ImageFormat
from exptilt.generators.latent_map import LatentMap, Same, of_distribution, require_shape
from exptilt.generators.prior import StandardNormal
from exptilt.generators.zuko_map import ZukoMap
from exptilt.methods import Method, as_module, owner_of

Function = Callable[[torch.Tensor], torch.Tensor]


def wrap(
    decoder: Function,
    latent_shape: tuple[int, ...],
    *,
    encode: Function | None = None,
    prior: Distribution | LazyDistribution | None = None,
    output_range: tuple[float, float] = (-1.0, 1.0),
    data_shape: tuple[int, ...] | None = None,
    pad: int | None = None,
) -> WrappedGenerator:
    """Make a generator of any differentiable decoder.

    It is checked at once on a few latents: that it has a gradient, gives finite values in ``output_range``, the same
    for the same latent, whatever else is in the batch; and an encoder, that it gives latents.

    Args:
        decoder: Latents (N, *latent_shape) to images (N, C, H, W) or points (N, D). A module, or the module of a
            method, is put into evaluation mode and its weights are frozen.
        latent_shape: Shape of one latent of the decoder, for example ``(100,)``.
        encode: x to a sample of q(z|x), where there is an encoder. It sees what the decoder gives: images in
            ``output_range``, of the decoder's own shape.
        prior: p(z); N(0, I) unless given. A prior with bounds, for example ``Uniform(-1, 1)``, and a zuko flow are
            written as a function of unbounded latents, in which the chains move: those are the generator's latents.
        output_range: Values of the decoder's black and white; images are mapped to [−1, 1] from it.
        data_shape: (C, H, W), where the decoder gives images in another shape, such as flat vectors.
        pad: Width of a black border around each image. Unless given, images of 28×28 get 2, as
            :func:`exptilt.load_dataset` gives them, and others none; with 28×28 images of your own, give 0.

    Raises:
        InputError: The decoder or the encoder fails on a few latents, a check fails, or an argument does not fit; the
            line says how to mend it.
    """
    return WrappedGenerator(decoder, latent_shape, encode, prior, output_range, data_shape, pad)


class WrappedGenerator(Generator):
    """A user's decoder as a generator; see :func:`wrap`.

    Attributes:
        latent_map: From the latents to what the decoder sees.
        format: From the decoder's images to those of exptilt.
    """

    format: ImageFormat

    def __init__(
        self,
        decoder: Function,
        latent_shape: tuple[int, ...],
        encoder: Function | None = None,
        prior: Distribution | LazyDistribution | LatentMap | None = None,
        output_range: tuple[float, float] = (-1.0, 1.0),
        data_shape: tuple[int, ...] | None = None,
        pad: int | None = None,
    ) -> None:
        super().__init__()
        self.decoder = frozen(decoder)
        self.encoder = None if encoder is None else frozen(encoder)
        self.latent_map = frozen(_latent_map(prior, tuple(latent_shape)))
        self.latent_map.to(self.device)
        self.prior, self.latent_shape = self.latent_map.prior, self.latent_map.latent_shape
        self.has_encoder = encoder is not None
        self._check(tuple(latent_shape), output_range, data_shape, pad)
        self.data_shape = self.format.data_shape

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z): latents (N, *latent_shape) to points, or to images in [−1, 1], with their border."""
        return self.format.sample(self._output(z))

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of q(z|x) from the user's encoder, (N, *latent_shape).

        Args:
            x: Images in [−1, 1], with their border, or points.
            generator: Source of the randomness; torch's global one unless given.
        """
        if self.encoder is None:
            return super().encode(x, generator)
        if generator is None:
            return self.latent_map.latent(self.encoder(self.format.native(x)))
        # A user's encoder draws from torch's global state.
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(rows.own_seed(int(torch.randint(2**62, (), generator=generator))))
            return self.encode(x)

    def native(self, network: Function) -> Native:
        """A user's network on images, for example a discriminator, as one on samples of this generator.

        It is shown images as the decoder gives them: in its range and its shape, without the border.
        """
        return Native(self.format, network)

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.latent_map.code(z))

    def _check(
        self,
        code_shape: tuple[int, ...],
        output_range: tuple[float, float],
        data_shape: tuple[int, ...] | None,
        pad: int | None,
    ) -> None:
        output = check_decoder(self._output, self.sample_prior(CHECKED), self.parameters())
        self.format = ImageFormat.of(tuple(output.shape[1:]), output_range, data_shape, pad)
        x = self.format.sample(output)
        if self.format.is_image:
            check_range(x, self.format.output_range, stacklevel=4)
        if self.encoder is not None:
            code = check_encoder(self.encoder, self.format.native(x), code_shape)
            if not bool(torch.isfinite(self.latent_map.latent(code)).all()):
                mend = "give the prior that it was trained with, or codes within that one's bounds"
                raise InputError("encode", "gives codes that the prior never draws", mend)


class Native(nn.Module):
    """A network on a decoder's own images as one on samples of exptilt; see :meth:`WrappedGenerator.native`."""

    def __init__(self, image_format: ImageFormat, network: Function) -> None:
        super().__init__()
        self.format, self.network = image_format, frozen(network)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output on samples (N, *data_shape)."""
        return self.network(self.format.native(x))


def frozen(function: Any) -> Any:
    """The same function; where it is a module or the method of one, a module in evaluation mode, its weights frozen."""
    owner = owner_of(function)
    if owner is None:
        return function
    for parameter in owner.parameters():
        parameter.requires_grad_(False)
    try:
        owner.eval()
    except NotImplementedError:
        return _Modeless(function, owner)
    return as_module(function)


def _latent_map(prior: object, code_shape: tuple[int, ...]) -> LatentMap:
    """How codes with the prior that a user gives are made of the latents that chains move in."""
    if prior is None:
        return Same(StandardNormal(), code_shape)
    if isinstance(prior, LazyDistribution):
        built = attempt("prior", prior, "to be built", "give one without context")
        prior = prior if isinstance(built, NormalizingFlow) else built
    if isinstance(prior, (LazyDistribution, NormalizingFlow)):
        prior = ZukoMap(prior)
        require_shape(prior.code_shape, code_shape)
    if isinstance(prior, LatentMap):
        return prior
    if not isinstance(prior, Distribution):
        fault = f"is a {type(prior).__name__}"
        raise InputError("prior", fault, "give a torch.distributions.Distribution or a zuko flow")
    return of_distribution(prior, code_shape)


class _Modeless(Method):
    """A module that refuses eval(), as those of torch.export do, which were exported in the mode that they have."""

    def train(self, mode: bool = True) -> _Modeless:
        """Nothing, to this module and those in it."""
        return self
