"""The paper's energy on images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.energies.spectral import normalize
from exptilt.precision import without_autocast

SLOPE = 0.2


class ResNetEnergy(nn.Module):
    """The paper's E: three residual blocks of 64 channels and three of 128, without normalisation (paper, B.2).

    The first block of each stage halves the resolution, as in the networks of Du and Mordatch (2019) that the paper
    follows; then the pixels are summed ("global sum pooling") and one linear layer gives the energy.

    Args:
        channels: Channels of an image.
        width: Channels of the first stage; the second has twice as many.
        normalization: ``"none"`` (the paper's), or ``"spectral"``, see :func:`~exptilt.energies.spectral.normalize`.
    """

    def __init__(self, channels: int = 1, width: int = 64, normalization: str = "none") -> None:
        super().__init__()
        self.channels, self.width, self.normalization = channels, width, normalization
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, halve=True),
            ResidualBlock(width, width),
            ResidualBlock(width, width),
            ResidualBlock(width, 2 * width, halve=True),
            ResidualBlock(2 * width, 2 * width),
            ResidualBlock(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, 1)
        normalize(self, normalization)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {"channels": self.channels, "width": self.width, "normalization": self.normalization}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E(x) of images (N, C, H, W) in [−1, 1], float32 (N,)."""
        hidden = F.leaky_relu(self.blocks(self.stem(x)), SLOPE)
        return sum_pool(hidden, self.head)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, (N, C, H, W); with ``halve`` their sum has half the height and width."""

    def __init__(self, channels_in: int, channels_out: int, halve: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.halve = halve

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE))
        if not self.halve:
            return hidden + self.shortcut(x)
        # Pooling and a 1×1 convolution commute; pooled first, the shortcut costs a quarter.
        return F.avg_pool2d(hidden, 2) + self.shortcut(F.avg_pool2d(x, 2))


def sum_pool(hidden: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Sum over the pixels and one linear layer, in float32 whatever the convolutions ran in: (N, C, H, W) to (N,).

    An energy in bfloat16 would have three digits.
    """
    with without_autocast(hidden.device):
        pooled = hidden.sum((2, 3), dtype=torch.promote_types(hidden.dtype, torch.float32))
        return head(pooled).squeeze(1)
