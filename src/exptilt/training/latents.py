"""Latents that carry nothing: generators that ignore them, and encoders that give all data the same."""

from __future__ import annotations

import torch

from exptilt import distributed
from exptilt.errors import InputError
from exptilt.generators.base import Generator

# Samples that are compared, and codes that are looked at.
_SAMPLES, _MOST_CODES = 8, 10_000
# Differences below this share of the numbers themselves are rounding.
_ROUNDING = 1e-6
# Standard errors that the largest of a few hundred correlations stays below where all of them are 0.
_CHANCE = 5.0


def require_variety(generator: Generator, seed: int) -> None:
    """Refuse a generator that makes the same of all latents: its samples stay the same under any tilt.

    Raises:
        InputError: It does, or its samples are not finite.
    """
    x = generator.sample(_SAMPLES, seed=seed)
    if not bool(x.isfinite().all()):
        raise InputError("the generator", "gives samples that are not finite", "train it anew")
    if bool((x.amax(0) - x.amin(0)).max() <= _ROUNDING * x.abs().max()):
        fault = f"gives the same sample for {_SAMPLES} latents (posterior collapse?), so no tilt can change its samples"
        raise InputError("the generator", fault, "train it anew")


def look_at_codes(codes: torch.Tensor, again: torch.Tensor | None) -> None:
    """Refuse codes that are the same for all data, and tell of those that carry nothing.

    Args:
        codes: z ~ q(z|x) of data, (N, *latent).
        again: Other draws of the same data in the same order; None where there are none.

    Raises:
        InputError: All data have one code, or a code is not finite.
    """
    z = codes[:_MOST_CODES].flatten(1)
    if not bool(z.isfinite().all()):
        raise InputError("the encoder", "gives latents that are not finite", "check it, or use recipe default-x")
    constant = z.amax(0) - z.amin(0) <= _ROUNDING * z.abs().amax(0)
    if len(z) > 1 and bool(constant.all()):
        fault = "gives the same latent for all data (posterior collapse, or a dead layer)"
        raise InputError("the encoder", fault, "train it anew, or use recipe default-x, which needs none")
    if len(z) > 1 and bool(constant.any()):
        distributed.say(
            f"{int(constant.sum())} of {len(constant)} latent coordinates are the same in the codes of all data"
        )
    if again is not None and len(z) > 1:
        largest = float(_correlation(z, again[:_MOST_CODES].flatten(1)).max())
        if largest < _CHANCE / len(z) ** 0.5:
            distributed.say(
                f"the codes q(z|x) do not depend on the data (correlation of two draws at most {largest:.2f}): "
                "posterior collapse; a tilt of the latents gains little"
            )


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlation of each column of (N, D) with the same column, (D,); 1 where there is no variance."""
    a, b = a - a.mean(0), b - b.mean(0)
    variance = (a.square().mean(0) * b.square().mean(0)).sqrt()
    return torch.where(variance > 0, (a * b).mean(0) / variance.clamp(min=torch.finfo(a.dtype).tiny), 1.0)
