"""A convolutional energy on latents that consist of images of several resolutions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.energies.gated import GatedLayer
from exptilt.energies.mlp import in_full_precision
from exptilt.errors import InputError
from exptilt.rows import Dropout


def part_shapes(channels: int, size: int, parts: int) -> list[tuple[int, int, int]]:
    """Shapes (C, H, W) of the parts of a multi-scale flow's latent, finest first.

    From one to the next the resolution is halved and the channels are doubled, as a split keeps half of them. Nothing
    is split off before the last, which has twice as many.
    """
    shapes = [(channels << level, size >> level, size >> level) for level in range(parts)]
    return [*shapes[:-1], (2 * shapes[-1][0], *shapes[-1][1:])]


class PyramidEnergy(nn.Module):
    """A gated convolutional E of the latent of a multi-scale flow, whose parts are images (Dinh et al. 2017, §3.6).

    The finest part is halved in resolution and joined to the next one, gated residual layers see both, and so on down
    to the coarsest; then come fully connected gated layers. A fully connected energy would have to learn at each pixel
    anew what neighbours have to do with each other.

    Args:
        channels: Of the finest part; the others' follow, see :func:`part_shapes`.
        size: Height and width of the finest part, divisible by 2^(parts − 1).
        parts: Number of parts, ≥ 2.
        width: Channels where the second part is joined; doubled with each further one.
        units: Units of the fully connected layers.
        depth: Number of those.
        dropout: Share of a gated layer's units that is dropped in training. It is no part of a saved energy.

    Raises:
        InputError: The parts do not fit each other.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        parts: int,
        width: int = 32,
        units: int = 256,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 2 <= parts <= size.bit_length() or size % 2 ** (parts - 1):
            fault = f"are {parts}, the finest of {size}×{size} pixels"
            raise InputError("parts of a latent", fault, "give two or more, each of half the size of the one before")
        self.channels, self.size, self.parts = channels, size, parts
        self.width, self.units, self.depth = width, units, depth
        self.part_shapes = part_shapes(channels, size, parts)
        widths = [channels, *(width << level for level in range(parts - 1))]
        self.halve = nn.ModuleList(nn.Conv2d(before, here, 4, 2, 1) for before, here in itertools.pairwise(widths))
        self.join = nn.ModuleList(
            nn.Conv2d(shape[0], here, 3, padding=1)
            for shape, here in zip(self.part_shapes[1:], widths[1:], strict=True)
        )
        self.layers = nn.ModuleList(_GatedConvolution(here, dropout) for here in widths[1:])
        self.enter = nn.Linear(widths[-1] * self.part_shapes[-1][1] ** 2, units)
        self.dense = nn.Sequential(*(GatedLayer(units, dropout) for _ in range(depth)))
        self.head = nn.Linear(units, 1)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {name: getattr(self, name) for name in ("channels", "size", "parts", "width", "units", "depth")}

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """E of latents (N, D), the parts flattened and joined, finest first, (N,)."""
        flat = z.split([math.prod(shape) for shape in self.part_shapes], dim=1)
        h, *coarser = (part.unflatten(1, shape) for part, shape in zip(flat, self.part_shapes, strict=True))
        for halve, join, layer, part in zip(self.halve, self.join, self.layers, coarser, strict=True):
            h = layer(halve(h) + join(part))
        return in_full_precision(self.head, self.dense(self.enter(h.flatten(1))))


class _GatedConvolution(nn.Module):
    """A gated residual layer, see :class:`~exptilt.energies.gated.GatedLayer`, of 3×3 pixels."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.gate_and_value = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.dropout = Dropout(dropout)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.gate_and_value(self.norm(x)).chunk(2, dim=1)
        return x + self.leave(self.dropout(F.silu(gate) * value))
