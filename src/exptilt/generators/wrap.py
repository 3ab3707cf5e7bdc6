"""Any decoder with a prior as a generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.prior import DistributionPrior


def wrap(
    decoder: Callable[[torch.Tensor], torch.Tensor],
    latent_shape: tuple[int, ...],
    *,
    encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    prior: torch.distributions.Distribution | None = None,
    output_range: tuple[float, float] = (-1.0, 1.0),
) -> WrappedGenerator:
    """Make a generator of any differentiable decoder.

    Args:
        decoder: Latents (N, *latent_shape) to images (N, C, H, W) or points (N, D). A module is put into
            evaluation mode and its weights are frozen.
        latent_shape: Shape of one latent, for example ``(100,)``.
        encode: x to a sample of q(z|x), where there is an encoder. It sees images in ``output_range``.
        prior: p(z); N(0, I) unless given.
        output_range: Values of the decoder's black and white; images are mapped to [−1, 1] from it.

    Raises:
        InputError: The decoder fails on two latents, gives no batch, gives values that are not finite, or has no
            gradient.
    """
    return WrappedGenerator(decoder, latent_shape, encode, prior, output_range)


class WrappedGenerator(Generator):
    """A user's decoder as a generator; see :func:`wrap`."""

    def __init__(
        self,
        decoder: Callable[[torch.Tensor], torch.Tensor],
        latent_shape: tuple[int, ...],
        encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
        prior: torch.distributions.Distribution | None = None,
        output_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        low, high = output_range
        if not low < high:
            raise InputError("output_range", f"{output_range} is empty", "give (low, high) with low < high")
        self.decoder, self.encoder = decoder, encoder
        self.latent_shape = tuple(latent_shape)
        self.output_range = (float(low), float(high))
        self.has_encoder = encoder is not None
        if prior is not None:
            self.prior = DistributionPrior(prior, self.latent_shape)
        for part in (decoder, encoder):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        self.data_shape = self._check()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z); images are mapped to [−1, 1]."""
        x = self.decoder(z)
        low, high = self.output_range
        return x if x.dim() == 2 or (low, high) == (-1, 1) else (x - low) * (2 / (high - low)) - 1

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of q(z|x) from the user's encoder, whose randomness is torch's global one."""
        if self.encoder is None:
            return super().encode(x, generator)
        low, high = self.output_range
        with torch.random.fork_rng(devices=[]):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return self.encoder(x if x.dim() == 2 else (x + 1) * ((high - low) / 2) + low)

    def _check(self) -> tuple[int, ...]:
        z = self.sample_prior(2).requires_grad_(True)
        try:
            with torch.enable_grad():
                x = self.decode(z)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                "decoder", f"fails on latents of shape {tuple(z.shape)}: {first_line}", "check latent_shape"
            ) from error
        if not isinstance(x, torch.Tensor) or x.shape[:1] != (2,) or x.dim() not in (2, 4):
            shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputError("decoder", f"gives {shape} for 2 latents", "return (N, C, H, W) images or (N, D) points")
        if not bool(torch.isfinite(x).all()):
            raise InputError("decoder", "gives values that are not finite", "check its weights")
        if not x.requires_grad:
            raise InputError("decoder", "has no gradient with respect to z", "remove no_grad() or detach() from it")
        return tuple(x.shape[1:])
