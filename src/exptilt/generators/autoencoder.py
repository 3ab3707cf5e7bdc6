"""Autoencoders without a prior as generators: a flow is fitted to the codes of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from exptilt.errors import InputError
from exptilt.generators.checks import CHECKED, check_decoder, check_encoder, require_units
from exptilt.generators.code_flow import CodeFlow, fit_code_flow
from exptilt.generators.image_format import ImageFormat
from exptilt.generators.wrap import WrappedGenerator, frozen

Function = Callable[[torch.Tensor], torch.Tensor]

# Images that are encoded at once; how many are few; and the most codes that are then drawn of each.
_BLOCK, _FEW, _MOST_DRAWS = 100, 5000, 4


class Images(Protocol):
    """A data set of exptilt."""

    def __len__(self) -> int: ...

    def batch(self, indices: slice) -> torch.Tensor:
        """The chosen images in [−1, 1], (N, C, H, W)."""
        ...


def from_autoencoder(
    decoder: Function,
    latent_shape: tuple[int, ...],
    encode: Function,
    images: torch.Tensor | Images | None = None,
    *,
    flow: CodeFlow | str | Path | None = None,
    seed: int = 0,
    iterations: int = 1500,
    output_range: tuple[float, float] = (-1.0, 1.0),
    data_shape: tuple[int, ...] | None = None,
    pad: int | None = None,
) -> WrappedGenerator:
    """Make a generator of an autoencoder that has no prior: p(z) is a flow fitted to the codes of images.

    The flow is the generator's ``latent_map``: latents z ~ N(0, I) become codes, and codes images. It is not part of
    what ``save_pretrained`` of a tilted generator writes: keep it by ``generator.latent_map.save(path)``, and give it
    as ``flow`` the next time.

    Args:
        decoder: Codes (N, *latent_shape) to images or points, as in :func:`exptilt.wrap`.
        latent_shape: Shape of one code.
        encode: Images or points, in the decoder's range and shape, to codes, or to a draw of q(code|x).
        images: What the prior is fitted to, in the units of exptilt: (N, C, H, W) in [−1, 1], points (N, D), or a data
            set. A few thousand are enough.
        flow: A prior that was fitted before, or its file, in place of images.
        seed: Fixes the fit.
        iterations: Updates of the flow.
        output_range: As in :func:`exptilt.wrap`.
        data_shape: As there.
        pad: As there.

    Raises:
        InputError: Neither images nor a flow are given, or both; images in a tensor are not in [−1, 1], or have no
            value below 0, as those of [0, 1]; the encoder fails on them; or a check of :func:`exptilt.wrap` fails.
    """
    if (images is None) == (flow is None):
        raise InputError("images, flow", "both are given, or neither", "give one of the two: images, or a fitted flow")
    decoder, encode = frozen(decoder), frozen(encode)
    parameters = [*decoder.parameters()] if isinstance(decoder, nn.Module) else []
    device = parameters[0].device if parameters else torch.device("cpu")
    if images is not None:
        output = check_decoder(decoder, _normal((CHECKED, *latent_shape), seed).to(device), parameters)
        own = ImageFormat.of(tuple(output.shape[1:]), output_range, data_shape, pad)
        draws = max(1, min(_MOST_DRAWS, _FEW // max(1, len(images))))
        codes = _codes(encode, images, own, latent_shape, device, seed, draws)
        flow = fit_code_flow(codes, draws=draws, seed=seed, iterations=iterations)
    elif not isinstance(flow, CodeFlow):
        flow = CodeFlow.load(flow)  # type: ignore[arg-type] - there is one of the two
    return WrappedGenerator(decoder, latent_shape, encode, flow.to(device), output_range, data_shape, pad)


@torch.no_grad()
def _codes(
    encode: Function,
    images: torch.Tensor | Images,
    own: ImageFormat,
    latent_shape: tuple[int, ...],
    device: torch.device,
    seed: int,
    draws: int,
) -> torch.Tensor:
    """Codes of all images, (M, *latent_shape), as many draws of each, pass after pass."""
    shape = tuple((images if isinstance(images, torch.Tensor) else images.batch(slice(0, 1))).shape[1:])
    if shape != own.data_shape:
        raise InputError("images", f"have shape {shape}", f"the decoder's have {own.data_shape}")
    if isinstance(images, torch.Tensor) and own.is_image:
        # Codes of paler images, or of brighter ones, would be the prior without a word.
        require_units("images", images, takes_bytes=False)
    codes = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(draws):
            for first in range(0, len(images), _BLOCK):
                block = slice(first, first + _BLOCK)
                x = images[block] if isinstance(images, torch.Tensor) else images.batch(block)
                x = own.native(x.to(device, torch.float32))
                if not codes:
                    check_encoder(encode, x[:CHECKED], tuple(latent_shape))
                codes.append(encode(x).cpu())
    return torch.cat(codes) if codes else torch.empty(0)


def _normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
