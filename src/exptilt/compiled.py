"""``torch.compile`` for chains: U and its gradient from compiled networks, or from the plain ones where that fails."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from exptilt.density import LatentPotential
from exptilt.energies.resnet import ResidualBlock
from exptilt.errors import reason
from exptilt.fast import HalvingBlock, with_children
from exptilt.generators.base import Generator
from exptilt.generators.glow_layers import CouplingNetwork
from exptilt.gradients import with_gradient
from exptilt.memory import is_out_of_memory
from exptilt.sampling.kernel import value_and_gradient

M = TypeVar("M", bound=nn.Module)

# Blocks that a network repeats: code that was compiled for one serves all of the same shape, which takes seconds where
# the whole of a deep flow takes minutes. accelerate's compile_regions is not used: it finds blocks in an nn.ModuleList
# of one class only, and of what is around them it compiles ``forward``, where generators and flows have other methods.
_REPEATED = (CouplingNetwork, ResidualBlock, HalvingBlock)


class CompiledPotential:
    """A potential U whose networks go through ``torch.compile``; the same function, up to rounding.

    Compiled are the blocks that Glow's couplings and the paper's energy repeat; of other generators ``decode``, and of
    other energies the whole. Where anything fails while they are compiled or run (no C++ compiler, an operation that
    the compiler does not know), one warning says why, and the potential that was given serves from there on.

    Each size of batch would be compiled by itself: a batch smaller than one before is filled up to that one's size.

    On a GPU the mode is ``"reduce-overhead"``, which replays CUDA graphs; see ``benchmarks/README.md`` for its figures.

    Args:
        potential: U as it is.
    """

    def __init__(self, potential: LatentPotential) -> None:
        self._plain = potential
        self._compiled: LatentPotential | None = None
        self._rows = 0
        self._on_gpu = potential.generator.device.type == "cuda"
        try:
            self._compiled = _compiled(potential, mode="reduce-overhead" if self._on_gpu else "default")
        except Exception as error:
            self._give_up(error)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """U of latents (N, *latent), (N,); its gradient in z is there at once, its second derivatives are not."""
        if torch.is_grad_enabled() and z.requires_grad:
            return with_gradient(z, self._value_and_gradient)
        return self._first_that_works(lambda potential, z: (potential(z),), z)[0]

    def _value_and_gradient(self, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Both in one attempt: the code of a gradient may be compiled only when it is first needed.
        return self._first_that_works(value_and_gradient, z)

    def _first_that_works(
        self, evaluate: Callable[[LatentPotential, torch.Tensor], tuple[torch.Tensor, ...]], z: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        if self._compiled is not None:
            try:
                return self._evaluate(functools.partial(evaluate, self._compiled), z)
            except Exception as error:
                if is_out_of_memory(error):
                    # Fewer chains side by side mend that, which must not be filled up to as many again.
                    self._rows = 0
                    raise
                # Whatever else it was: if it is the networks' own fault, the plain ones raise it again.
                self._give_up(error)
        return evaluate(self._plain, z)

    def _evaluate(
        self, evaluate: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], z: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        n = len(z)
        self._rows = max(self._rows, n)
        if n < self._rows:
            z = torch.cat([z, z[:1].expand(self._rows - n, *z.shape[1:])])
        if not self._on_gpu:
            return tuple(part[:n] for part in evaluate(z))
        # A CUDA graph writes its next results to the same memory, and chains keep those of a step.
        torch.compiler.cudagraph_mark_step_begin()
        return tuple(part[:n].clone() for part in evaluate(z))

    def _give_up(self, error: Exception) -> None:
        self._compiled = None
        warnings.warn(f"chains run uncompiled: torch.compile failed: {reason(error)}", stacklevel=2)


def _compiled(potential: LatentPotential, mode: str) -> LatentPotential:
    # One shape, one code: with symbolic sizes a convolution's loops are slower.
    compile_ = functools.partial(torch.compile, mode=mode, dynamic=False)
    on_x, on_z = (
        None if energy is None else _energy(energy, compile_)
        for energy in (potential.energy_on_x, potential.energy_on_z)
    )
    generator = potential.generator if on_x is None else _generator(potential.generator, compile_)
    return LatentPotential(generator, on_x, on_z, potential.strength, potential.dtype)


def _energy(energy: nn.Module, compile_: Callable[[Any], Any]) -> nn.Module:
    in_regions = _regions(energy, compile_)
    return compile_(energy) if in_regions is None else in_regions


def _generator(generator: Generator, compile_: Callable[[Any], Any]) -> Generator:
    in_regions = _regions(generator, compile_)
    if in_regions is not None:
        return in_regions
    result = copy.copy(generator)
    result.decode = compile_(generator.decode)
    return result


def _regions(module: M, compile_: Callable[[Any], Any]) -> M | None:
    """A copy whose repeated blocks are compiled, which shares the weights; None if it has no such block."""
    if isinstance(module, _REPEATED):
        return compile_(module)
    regions = {name: _regions(child, compile_) for name, child in module._modules.items() if child is not None}
    changed = {name: child for name, child in regions.items() if child is not None}
    return with_children(module, {**module._modules, **changed}) if changed else None
