"""Glow: a normalizing flow of invertible 1×1 convolutions and affine couplings (Kingma and Dhariwal 2018)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from exptilt import rows
from exptilt.errors import InputError, require_at_least
from exptilt.generators.base import Generator
from exptilt.generators.glow_layers import Coupling, Mixing, Split

# x = 256/255 · h: see Glow.
X_PER_H = 256 / 255


class Glow(Generator):
    """Glow as the paper uses it (Xiao, Yan and Amit 2020, B.1): z = f(x) exactly, and log p(x) in closed form.

    A level is: squeeze (2×2 pixels to channels), then steps of ActNorm, invertible 1×1 convolution and affine coupling,
    then a split that gives half of the channels to the latent (none after the last level).

    Scales. A byte k ∈ {0, …, 255} stands in this package as x = k/127.5 − 1. The flow sees the dequantised image
    h = 2 (k + u)/256 − 1 with u ~ U[0, 1) (Theis et al. 2016, §3.1), so its k-th bin is [2k/256 − 1, 2(k+1)/256 − 1).
    The two are joined by the centres of the bins, u = ½: h = (2k + 1)/256 − 1 = 255/256 · x. So x = 256/255 · h, and
    :meth:`decode` gives images whose rounding to bytes is the bin of h. It does not clamp: x ranges over [−256/255,
    256/255] and, for unlikely latents, beyond; a clamp would take the gradient of an energy away just there.
    With fewer bits, the 8 − bits lowest bits of k are dropped first, and a bin has the width 2/2^bits.

    The latent is one vector. Its parts stand in the order in which the splits give them off, finest first, the rest
    after the last level at the end, each flattened in the order (C, H, W): :meth:`split_latent`, :meth:`join_latent`.

    Couplings, and splits, stretch by less than e^scale_bound. Under autocast only the coupling networks run in half
    precision; as they round their input, f and its inverse then agree to that precision only.

    Args:
        channels: Channels of an image.
        size: Height and width of an image, divisible by 2^levels.
        levels: Number of squeezes. 0 is one level without a squeeze, which needs channels ≥ 2.
        steps: Couplings in each level.
        hidden: Channels of the coupling networks.
        highway_kernel: Width of the convolutions of their highway layer, odd.
        scale_bound: Bound of |log s| of a coupling, and of |log σ| of a split.
        bits: Bits of a pixel.

    Raises:
        InputError: An argument is out of range.
    """

    has_encoder = True

    def __init__(
        self,
        channels: int = 1,
        size: int = 32,
        levels: int = 2,
        steps: int = 16,
        hidden: int = 64,
        highway_kernel: int = 3,
        scale_bound: float = 1.0,
        bits: int = 8,
    ) -> None:
        super().__init__()
        require_at_least(1, channels=channels, size=size, steps=steps, hidden=hidden)
        if levels < 0 or size % 2**levels:
            raise InputError("levels", f"{levels} does not fit size {size}", "size must be divisible by 2^levels")
        if levels == 0 and channels < 2:
            raise InputError("levels", "0 leaves one channel, which cannot be split", "give levels ≥ 1")
        if highway_kernel < 1 or highway_kernel % 2 == 0:
            raise InputError("highway_kernel", f"{highway_kernel} is out of range", "give an odd whole number ≥ 1")
        if not 0 < scale_bound < math.inf:
            raise InputError("scale_bound", f"{scale_bound} is out of range", "give a number > 0")
        if not 1 <= bits <= 8:
            raise InputError("bits", f"{bits} is out of range", "give a whole number from 1 to 8")
        self.channels, self.size, self.levels, self.steps, self.hidden = channels, size, levels, steps, hidden
        self.highway_kernel, self.scale_bound, self.bits = highway_kernel, float(scale_bound), bits
        self.dimensions = channels * size * size
        self.latent_shape = (self.dimensions,)
        self.data_shape = (channels, size, size)
        parts: list[tuple[int, int, int]] = []
        self.blocks, self.splits = nn.ModuleList(), nn.ModuleList()
        c, side = channels, size
        for level in range(max(levels, 1)):
            if levels:
                c, side = 4 * c, side // 2
            pairs = [(Mixing(c), Coupling(c, hidden, highway_kernel, scale_bound)) for _ in range(steps)]
            self.blocks.append(nn.ModuleList(layer for pair in pairs for layer in pair))
            if level < levels - 1:
                self.splits.append(Split(c, scale_bound))
                c //= 2
            parts.append((c, side, side))
        self.latent_parts = tuple(parts)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        names = ("channels", "size", "levels", "steps", "hidden", "highway_kernel", "scale_bound", "bits")
        return {name: getattr(self, name) for name in names}

    def freeze(self) -> Glow:
        """Evaluation mode, and no gradients for the weights, old ones included; returns itself.

        From here on the inverses of the 1×1 convolutions are computed once.
        """
        super().freeze()
        self.zero_grad(set_to_none=True)
        return self

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x = G(z) = f⁻¹(z): latents (N, D) to images (N, C, H, W), the bins' centres in [−1, 1]; not clamped."""
        parts = self.split_latent(z.to(self._dtype))
        h = parts[-1]
        for level in reversed(range(len(self.blocks))):
            if level < len(self.splits):
                h = self.splits[level].inverse(h, parts[level])  # type: ignore[operator]
            for layer in reversed(self.blocks[level]):  # type: ignore[call-overload]
                h = layer.inverse(h)
            if self.levels:
                h = F.pixel_shuffle(h, 2)
        return X_PER_H * h

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """z = f(x) of the dequantised image, (N, C, H, W) to (N, D): a sample of q(z|x).

        Args:
            x: Images in [−1, 1]; they are rounded to bytes.
            generator: Source of the noise, on the CPU; torch's global one unless given.
        """
        return self.transform(self.dequantize(x, generator))[0]

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats of continuous images in the units of [−1, 1], without noise, (N,).

        log p(x) = log N(f(x); 0, I) + log|det ∂f/∂x| (Kingma and Dhariwal, eq. 6).
        """
        return self._log_prob_h(x.to(self._dtype) / X_PER_H) - self.dimensions * math.log(X_PER_H)

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """z = f(x) of continuous images in the units of [−1, 1], (N, D): the inverse of :meth:`decode`, no noise."""
        return self.transform(x.to(self._dtype) / X_PER_H)[0]

    def training_loss(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """−log p of the dequantised image in nats, (N,), in units of a bin: eq. 1 and 2 of Kingma and Dhariwal.

        In these units its mean over the noise is an upper bound of −log P of the discrete image (Theis et al. 2016,
        §3.1). ``labels`` are not used. The first call in training mode initialises the ActNorms.
        """
        bin_width = 2 / 2**self.bits
        return -self._log_prob_h(self.dequantize(x, generator)) - self.dimensions * math.log(bin_width)

    @torch.no_grad()
    def metrics(
        self, x: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Figures of each held-out image, (N,) each: bits per dimension of the discrete image (an upper bound)."""
        return {"bits_per_dim": self.training_loss(x, labels, generator) / (self.dimensions * math.log(2))}

    def dequantize(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """h = 2 (k + u)/2^bits − 1 with u ~ U[0, 1): images in [−1, 1] to what the flow sees, both (N, C, H, W)."""
        byte = torch.round(127.5 * (x.to(self._dtype) + 1)).clamp(0, 255)
        k = torch.floor(byte / 2 ** (8 - self.bits))
        u = rows.uniform(x.shape, generator).to(k)
        return 2 * (k + u) / 2**self.bits - 1

    def transform(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z = f, (N, D), and log|det ∂z/∂h|, (N,), of continuous images h = 255/256 · x."""
        log_det = h.new_zeros(len(h))
        parts = []
        for level, block in enumerate(self.blocks):
            if self.levels:
                h = F.pixel_unshuffle(h, 2)
            for layer in block:  # type: ignore[attr-defined]
                h, change = layer(h)
                log_det = log_det + change
            if level < len(self.splits):
                h, part, change = self.splits[level](h)
                log_det = log_det + change
                parts.append(part)
        return self.join_latent([*parts, h]), log_det

    def split_latent(self, z: torch.Tensor) -> list[torch.Tensor]:
        """The latent of each level, finest first, (N, c, h, w) each, of flat latents (N, D)."""
        flat = z.split([math.prod(shape) for shape in self.latent_parts], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(flat, self.latent_parts, strict=True)]

    def join_latent(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Inverse of :meth:`split_latent`."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def _log_prob_h(self, h: torch.Tensor) -> torch.Tensor:
        z, log_det = self.transform(h)
        return self.prior.log_prob(z) + log_det

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
