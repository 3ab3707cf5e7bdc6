"""Any decoder with a prior as a generator."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn

from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.prior import DistributionPrior

# Latents that a decoder is checked on; how far its outputs may differ by the rounding of another batch size; and the
# share of an image's values that may leave the range (a flow's tails do).
_CHECKED, _ROUNDING, _MOST_OUTSIDE = 16, 1e-3, 0.05


def wrap(
    decoder: Callable[[torch.Tensor], torch.Tensor],
    latent_shape: tuple[int, ...],
    *,
    encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    prior: torch.distributions.Distribution | None = None,
    output_range: tuple[float, float] = (-1.0, 1.0),
    data_shape: tuple[int, ...] | None = None,
) -> WrappedGenerator:
    """Make a generator of any differentiable decoder.

    It is checked at once on a few latents: that it has a gradient, gives finite values in ``output_range``, the same
    for the same latent, whatever else is in the batch.

    Args:
        decoder: Latents (N, *latent_shape) to images (N, C, H, W) or points (N, D). A module is put into
            evaluation mode and its weights are frozen.
        latent_shape: Shape of one latent, for example ``(100,)``.
        encode: x to a sample of q(z|x), where there is an encoder. It sees images in ``output_range``, of the shape
            that the decoder gives.
        prior: p(z); N(0, I) unless given.
        output_range: Values of the decoder's black and white; images are mapped to [−1, 1] from it.
        data_shape: (C, H, W), where the decoder gives images as flat vectors.

    Raises:
        InputError: The decoder fails on a few latents, or a check fails; the line says how to mend it.
    """
    return WrappedGenerator(decoder, latent_shape, encode, prior, output_range, data_shape)


class WrappedGenerator(Generator):
    """A user's decoder as a generator; see :func:`wrap`."""

    def __init__(
        self,
        decoder: Callable[[torch.Tensor], torch.Tensor],
        latent_shape: tuple[int, ...],
        encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
        prior: torch.distributions.Distribution | None = None,
        output_range: tuple[float, float] = (-1.0, 1.0),
        data_shape: tuple[int, ...] | None = None,
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
        self._image_shape = None if data_shape is None else tuple(data_shape)
        self.data_shape = self._check()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z); images are mapped to [−1, 1]."""
        x = self.decoder(z)
        if self._image_shape is not None:
            x = x.unflatten(1, self._image_shape) if x.dim() == 2 else x
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
            if x.dim() > 2:
                x = (x + 1) * ((high - low) / 2) + low
            return self.encoder(x.flatten(1) if self._is_flat else x)

    def _check(self) -> tuple[int, ...]:
        z = self.sample_prior(_CHECKED).requires_grad_(True)
        try:
            with torch.enable_grad():
                self._is_flat = self._image_shape is not None and self.decoder(z).dim() == 2
                x = self.decode(z)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            given = "latent_shape" if self._image_shape is None else "latent_shape and data_shape"
            raise InputError(
                "decoder", f"fails on latents of shape {tuple(z.shape)}: {first_line}", f"check {given}"
            ) from error
        if not isinstance(x, torch.Tensor) or x.shape[:1] != (len(z),) or x.dim() not in (2, 4):
            shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputError(
                "decoder", f"gives {shape} for {len(z)} latents", "return (N, C, H, W) images or (N, D) points"
            )
        if not bool(torch.isfinite(x).all()):
            raise InputError("decoder", "gives values that are not finite", "check its weights")
        if not x.requires_grad:
            raise InputError("decoder", "has no gradient with respect to z", "remove no_grad() or detach() from it")
        with torch.no_grad():
            self._check_repeatable(z, x)
            if x.dim() == 4:
                self._check_range(x)
        return tuple(x.shape[1:])

    def _check_repeatable(self, z: torch.Tensor, x: torch.Tensor) -> None:
        tolerance = _ROUNDING * max(1.0, float(x.abs().max()))
        if float((self.decode(z) - x).abs().max()) > tolerance:
            raise InputError(
                "decoder", "gives another output for the same latent", "switch its dropout or noise off in eval()"
            )
        if float((self.decode(z[:2]) - x[:2]).abs().max()) > tolerance:
            raise InputError(
                "decoder",
                "an output depends on the others of its batch",
                "make its batch normalisation use its running statistics",
            )

    def _check_range(self, x: torch.Tensor) -> None:
        outside = float((x.abs() > 1.05).float().mean())
        if outside > _MOST_OUTSIDE:
            low, high = self.output_range
            raise InputError(
                "decoder",
                f"{outside:.0%} of its values lie outside of [{low:g}, {high:g}]",
                "give output_range=(black, white), for example (0, 1) or (0, 255)",
            )
        if self.output_range == (-1, 1) and float(x.min()) >= 0 and float(x.max()) <= 1:
            warnings.warn(
                "the decoder's images are never below 0; if its black is 0 and its white 1, give output_range=(0, 1)",
                stacklevel=4,
            )
