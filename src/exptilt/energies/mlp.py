"""A fully connected energy, for points and for latents."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from exptilt.precision import without_autocast


class MLPEnergy(nn.Module):
    """A fully connected E with SiLU units, for points (paper, §5.1) or for latents.

    Args:
        size: Length of its flattened input.
        width: Units of a hidden layer.
        depth: Number of hidden layers.
    """

    def __init__(self, size: int, width: int = 512, depth: int = 3) -> None:
        super().__init__()
        self.size, self.width, self.depth = size, width, depth
        widths = [size] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for size_in, size_out in itertools.pairwise(widths):
            layers += [nn.Linear(size_in, size_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {"size": self.size, "width": self.width, "depth": self.depth}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E of inputs (N, …) with ``size`` values each, (N,)."""
        head = self.layers[-1]
        assert isinstance(head, nn.Linear)
        return in_full_precision(head, self.layers[:-1](x))


def in_full_precision(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The last layer of an energy, (N, units) to (N,), in the precision of its weights under autocast too.

    A Metropolis test lives on small differences of E.
    """
    with without_autocast(hidden.device):
        return head(hidden.to(head.weight.dtype)).squeeze(1)
