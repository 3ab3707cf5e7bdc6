"""A gated residual energy, for latents."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.energies.mlp import in_full_precision
from exptilt.rows import Dropout


class GatedEnergy(nn.Module):
    """A residual network of gated layers, x ← x + W(silu(A x̂) · B x̂) with x̂ the layer norm of x (Shazeer 2020).

    Products of units are what a plain network finds slowly: in the codes of a latent flow each coordinate, and nearly
    each pair of them, looks like noise, and only higher orders tell them from the prior.

    Args:
        size: Length of its flattened input.
        width: Units of the residual stream, and of a gated layer.
        depth: Number of gated layers.
        dropout: Share of a gated layer's units that is dropped in training. It is no part of a saved energy.
    """

    def __init__(self, size: int, width: int = 256, depth: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.size, self.width, self.depth = size, width, depth
        self.enter = nn.Sequential(nn.Flatten(), nn.Linear(size, width))
        self.layers = nn.Sequential(*(GatedLayer(width, dropout) for _ in range(depth)))
        self.head = nn.Linear(width, 1)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return {"size": self.size, "width": self.width, "depth": self.depth}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E of inputs (N, …) with ``size`` values each, (N,)."""
        return in_full_precision(self.head, self.layers(self.enter(x)))


class GatedLayer(nn.Module):
    """x ← x + W(silu(A x̂) · B x̂), with x̂ the layer norm of x (N, width)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate_and_value = nn.Linear(width, 2 * width)
        self.dropout = Dropout(dropout)
        self.leave = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.gate_and_value(self.norm(x)).chunk(2, dim=1)
        return x + self.leave(self.dropout(F.silu(gate) * value))
