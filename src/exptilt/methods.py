"""Methods of modules as modules: what is done to a module reaches the weights that they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Method(nn.Module):
    """A method of a module, as a module with that one's weights."""

    def __init__(self, method: Callable[..., torch.Tensor], owner: nn.Module) -> None:
        super().__init__()
        self.owner, self._name = owner, getattr(method, "__name__", "__call__")

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the method gives."""
        return getattr(self.owner, self._name)(*inputs)


def owner_of(function: object) -> nn.Module | None:
    """The module whose weights a function uses: itself, or that which it is a method of; None where there is none."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def as_module(function: Any) -> Any:
    """The same function; a method of a module as a module."""
    owner = owner_of(function)
    return function if owner is None or owner is function else Method(function, owner)
