"""Latents of data: codes z ~ q(z|x), drawn before an energy on latents is trained."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from exptilt import distributed, rows
from exptilt.config import TiltConfig
from exptilt.data import MIRRORED, DataSet
from exptilt.generators.base import Generator, lay_out
from exptilt.generators.prior import StandardNormal
from exptilt.precision import autocast, resolve
from exptilt.training.latents import look_at_codes
from exptilt.training.recognition import learn_encoder

# Codes of each training image. Of few images more are drawn, up to so many of each and in all, as a ratio learns the
# noise of few codes by heart.
_PASSES, _MOST_PASSES, _ENOUGH_CODES = 4, 64, 240_000
# The most numbers that they may take.
_MOST_NUMBERS = 1 << 27
# So many codes of held-out images, or more, tell losses apart.
_HELD_OUT_CODES = 2000
# Number of the noise on codes, apart from those of the updates whose dropout follows from the same seed.
_NOISE = 1 << 40
# Images that are encoded at once, by an encoder and by a flow.
_AT_ONCE, _AT_ONCE_BY_FLOW = 500, 128


@dataclass(frozen=True)
class Codes:
    """Codes of the data.

    Attributes:
        fitted: Of the training images, (M, *latent): several of each where memory allows, more where there are few
            images, some of mirror images.
        held_out: Of held-out images, (K, *latent), if there are any: one of each, more of few.
    """

    fitted: torch.Tensor
    held_out: torch.Tensor | None


def draw_codes(
    generator: Generator,
    data: DataSet,
    held_out: DataSet | None,
    config: TiltConfig,
    *,
    quiet: bool,
) -> Codes:
    """Codes of data by the generator's encoder, or by one that is learned first.

    Args:
        generator: A frozen generator.
        data: Training set.
        held_out: Data that the energy does not see.
        config: Settings: encoder, mirror images, seed.
        quiet: No progress bar.

    Raises:
        InputError: All data have one code, or a code is not finite.
        RunError: The training of an encoder diverged.
    """
    is_image = len(generator.data_shape) == 3
    dtype = resolve(config.precision, generator.device) if is_image else torch.float32
    if config.encoder == "learned":
        iterations = config.encoder_iterations
        encode = learn_encoder(generator, iterations, seed=config.seed, dtype=dtype, quiet=quiet).encode_many
    else:
        encode = generator.encode_many
    is_flow = type(generator).latent is not Generator.latent
    at_once = _AT_ONCE_BY_FLOW if is_flow else _AT_ONCE
    if is_image:
        # Measured on a GLOW, in bfloat16 on one thread: 1.3 ms an image so, 2.0 ms with channels last.
        layout = torch.contiguous_format if is_flow else torch.channels_last
        lay_out(generator, layout)
    passes = passes_of(len(data), generator.sample_prior(1).numel())
    mirrors = config.mirror if config.mirror is not None else data.name in MIRRORED

    # One stream for both. With another one from the same seed, held-out codes would have the noise of training codes:
    # in a latent coordinate that the encoder leaves at the prior they would be the very numbers that were trained on.
    random = torch.Generator().manual_seed(config.seed)

    @torch.no_grad()
    def encoded(images: DataSet, passes: int, mirrors: bool) -> torch.Tensor:
        def block(first: int, n: int, mine: range) -> torch.Tensor:
            x = images.batch(slice(first + mine.start, first + mine.stop)).to(generator.device)
            with rows.part([mine], n), autocast(dtype, generator.device):
                if not mirrors:
                    codes = encode(x, passes, generator=random)
                elif passes == 1:
                    codes = encode(_half_mirrored(x, mine.start), 1, generator=random)
                else:
                    plain = encode(x, (passes + 1) // 2, generator=random)
                    mirrored = encode(x.flip(3), passes // 2, generator=random)
                    of_pass = [(mirrored if index % 2 else plain)[:, index // 2] for index in range(passes)]
                    codes = torch.stack(of_pass, dim=1)
            return codes.float().cpu()

        blocks = [(first, min(at_once, len(images) - first)) for first in range(0, len(images), at_once)]
        codes = torch.cat([distributed.rows(n, functools.partial(block, first, n)) for first, n in blocks])
        # Pass after pass, each of all images in their order.
        return codes.transpose(0, 1).flatten(0, 1)

    fitted = encoded(data, passes, mirrors)
    held = None
    if held_out is not None:
        held = encoded(held_out, min(-(-_HELD_OUT_CODES // len(held_out)), _MOST_PASSES), mirrors=False)
    # Every second pass may be of mirror images.
    of_pass = fitted.split(len(data))
    again = of_pass[2] if passes > 2 else None
    look_at_codes(of_pass[0], again)
    is_drawn = again is None or not torch.equal(of_pass[0], again)
    # A flow's codes are the data themselves, and points of few numbers are many enough.
    takes_noise = is_image and not is_flow and isinstance(generator.prior, StandardNormal)
    if config.code_noise and takes_noise and not is_drawn:
        fitted = _with_noise(fitted, config.code_noise, config.seed)
    return Codes(fitted, held)


def passes_of(images: int, size: int) -> int:
    """How many codes are drawn of each of so many images, a code being of ``size`` numbers."""
    wanted = min(max(_PASSES, _ENOUGH_CODES // images), _MOST_PASSES)
    return max(1, min(wanted, _MOST_NUMBERS // (images * size)))


def _with_noise(codes: torch.Tensor, amount: float, seed: int) -> torch.Tensor:
    """√(1 − a²)·z + a·ω with ω ~ N(0, I): codes (M, *latent) with noise that leaves a standard normal what it is."""
    noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(rows.seed_of(seed, _NOISE)))
    return noise.mul_(amount).add_(codes, alpha=math.sqrt(1 - amount**2))


def _half_mirrored(x: torch.Tensor, first: int) -> torch.Tensor:
    """Images (N, C, H, W), of which the one with index 0 is number ``first``, those with odd numbers mirrored."""
    return torch.where((torch.arange(first, first + len(x), device=x.device) % 2 == 1).view(-1, 1, 1, 1), x.flip(3), x)
