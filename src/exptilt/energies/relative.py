"""An energy with a floor: the relative density ratio of a ratio that was learned without one."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import nn

from exptilt.errors import InputError
from exptilt.storage import described


class RelativeEnergy(nn.Module):
    """E'(z) = log(exp(E(z)) + s): E where it is high, and never below the floor log s.

    With exp(−E) = p/q, exp(−E') = p/(q + s p) is up to 1 + s the relative density ratio with α = s/(1 + s), which is
    nowhere above 1/s (Yamada et al. 2013, "Relative density-ratio estimation for robust distribution comparison").
    Chains that go on find no wells that are deeper.

    Args:
        energy: E, inputs (N, …) to (N,).
        share: s > 0; exp of the floor in nats.

    Raises:
        InputError: The share is out of range.
    """

    nested = ("energy",)

    def __init__(self, energy: nn.Module, share: float) -> None:
        super().__init__()
        if not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise InputError("share", f"{share!r} is out of range", "give a number > 0")
        self.energy, self.share = energy, share

    @classmethod
    def above(cls, energy: nn.Module, floor: float) -> RelativeEnergy:
        """E above a floor in nats."""
        return cls(energy, max(math.exp(floor), sys.float_info.min))

    @property
    def floor(self) -> float:
        """log s, in nats."""
        return math.log(self.share)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values; those of E stand in ``"energy"`` with its class."""
        return {"energy": described(self.energy), "share": self.share}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E' of inputs (N, …), (N,)."""
        value = self.energy(x)
        return torch.logaddexp(value, value.new_full((), self.floor))
