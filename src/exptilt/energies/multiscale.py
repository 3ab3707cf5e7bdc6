"""A convolutional energy for the latents of a flow, which have pixels at several resolutions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.errors import InputError


class MultiscaleEnergy(nn.Module):
    """A pyramid of gated convolutions over latents that come in parts, finest first, as those of a GLOW.

    What a fully connected network has to learn anew at every place, and learns by heart from some 10,000 codes, a
    convolution learns once. Each part enters at its own resolution; between two parts a strided convolution halves the
    pixels. The last maps are flattened, so that place counts there.

    Args:
        parts: Shapes of the parts, as in ``"2x16x16,4x8x8,16x4x4"``; the latent is their values one after the other.
        width: Channels of the first convolution; half as many more after each halving.
        dropout: Share of channels that is dropped in training. It is no part of a saved energy.

    Raises:
        InputError: The parts are no such list, or do not halve from one to the next.
    """

    def __init__(self, parts: str, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.parts, self.width = parts, width
        self.shapes = _shapes(parts)
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.stages = nn.ModuleList()
        before, after = 0, width
        for channels, _, _ in self.shapes:
            self.stages.append(_Halving(before + channels, after, dropout))
            before, after = after, after + width // 2
        _, height, last_width = self.shapes[-1]
        pixels = max(1, height // 2) * max(1, last_width // 2)
        self.flat = nn.Sequential(nn.Flatten(), nn.Linear(before * pixels, 4 * width), nn.SiLU())
        self.head = nn.Linear(4 * width, 1)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {"parts": self.parts, "width": self.width}

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """E of latents (N, D), (N,)."""
        hidden = z.new_empty(len(z), 0, *self.shapes[0][1:])
        for stage, part, shape in zip(self.stages, z.split(self.sizes, dim=1), self.shapes, strict=True):
            hidden = stage(torch.cat([hidden, part.unflatten(1, shape).to(hidden.dtype)], 1))
        hidden = self.flat(hidden)
        # In full precision under autocast too: a Metropolis test lives on small differences of E.
        with torch.autocast(z.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype)).squeeze(1)


class _Halving(nn.Module):
    """A gated 3×3 convolution, and a strided one that halves the resolution."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float) -> None:
        super().__init__()
        self.gate_and_value = nn.Conv2d(channels_in, 2 * channels_out, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        self.leave = nn.Conv2d(channels_out, channels_out, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=1)
        return F.silu(self.leave(self.dropout(F.silu(gate) * value)))


def _shapes(parts: str) -> list[tuple[int, int, int]]:
    fault = InputError(f"parts {parts!r}", "are no list of shapes that halve", 'give one such as "2x16x16,4x8x8"')
    try:
        shapes = [tuple(int(size) for size in part.split("x")) for part in parts.split(",")]
    except ValueError:
        raise fault from None
    if any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
        raise fault
    for (_, height, width), (_, next_height, next_width) in itertools.pairwise(shapes):
        if (next_height, next_width) != (height // 2, width // 2):
            raise fault
    return shapes  # type: ignore[return-value]
