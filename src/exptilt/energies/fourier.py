"""An energy of random Fourier features, for points."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

# In radians for each standard deviation of the data: modes a fiftieth of that wide are told apart.
FREQUENCY = 10.0


class FourierEnergy(nn.Module):
    """A fully connected E of x and of sines and cosines of random projections of x, for points of few numbers.

    Of its inputs alone such a network learns what varies slowly first, and modes a fiftieth of the data apart hardly
    at all (Tancik et al. 2020, "Fourier features let networks learn high frequency functions in low dimensional
    domains").

    Args:
        size: Numbers of a point.
        width: Units of a hidden layer.
        depth: Number of hidden layers.
        features: Number of projections.
        frequency: Standard deviation of the projections' weights, in radians for each unit of x.
    """

    projections: torch.Tensor

    def __init__(
        self, size: int, width: int = 256, depth: int = 2, features: int = 128, frequency: float = FREQUENCY
    ) -> None:
        super().__init__()
        self.size, self.width, self.depth, self.features, self.frequency = size, width, depth, features, frequency
        self.register_buffer("projections", frequency * torch.randn(size, features))
        widths = [size + 2 * features] + [width] * depth
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(widths):
            layers += [nn.Linear(size_in, size_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {name: getattr(self, name) for name in ("size", "width", "depth", "features", "frequency")}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E of points (N, size), or of what has so many numbers in any shape, (N,)."""
        x = x.flatten(1)
        angles = x @ self.projections
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1)).squeeze(1)
