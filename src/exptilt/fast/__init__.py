"""Copies of our own frozen networks that chains run on: the same functions up to rounding, in less time."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from exptilt.energies import ENERGIES
from exptilt.energies.compose import SumEnergy
from exptilt.fast.fold import HalvingBlock, fast_copy, has_hooks, with_children
from exptilt.fast.networks import by_hand
from exptilt.generators import GENERATORS

__all__ = ["HalvingBlock", "fast_copy", "for_chains", "has_hooks", "with_children"]

M = TypeVar("M", bound=nn.Module)


def for_chains(module: M, dtype: torch.dtype | None = None) -> M:
    """A copy of one of our own classes for chains, or of a sum of energies those in it; a user's module is
    returned itself, as less is known of it.

    Args:
        module: A frozen generator or energy.
        dtype: What its convolutions are to run in. With it, networks that are known also get gradients written by
            hand (:func:`~exptilt.fast.networks.by_hand`); without, the copy is one that can be compiled, or
            differentiated twice.
    """
    if type(module) is SumEnergy:
        energies = nn.ModuleList(for_chains(energy, dtype) for energy in module.energies)
        return with_children(module, {"energies": energies})
    if not isinstance(module, (*GENERATORS.values(), *ENERGIES.values())):
        return module
    copy = fast_copy(module)
    return copy if dtype is None else by_hand(copy, dtype)
