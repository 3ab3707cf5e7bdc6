"""CUDA graphs for chains: U and its gradient are recorded once, and run again without Python between the kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from exptilt.density import LatentPotential
from exptilt.energies import ENERGIES
from exptilt.energies.compose import SumEnergy
from exptilt.errors import reason
from exptilt.fast import has_hooks
from exptilt.generators import GENERATORS
from exptilt.gradients import with_gradient
from exptilt.memory import is_out_of_memory
from exptilt.sampling.kernel import Potential, value_and_gradient

T = TypeVar("T")

# Whose forward passes do the same operations on the same memory in every call, whatever the numbers.
_OURS = ("exptilt.", "torch.nn.", "zuko.")


def captured(potential: LatentPotential) -> Potential:
    """``potential`` with its gradient as a CUDA graph, where it is on a GPU and made of exptilt's own networks.

    A user's network may do anything in a call, of which a graph would repeat the first.
    """
    return CapturedPotential(lambda: potential) if is_capturable(potential) else potential


def is_capturable(potential: LatentPotential) -> bool:
    """Whether a CUDA graph of it does what it does."""
    parts = (potential.generator, potential.energy_on_x, potential.energy_on_z)
    on_gpu = potential.generator.device.type == "cuda"
    return on_gpu and all(part is None or _is_ours(part) for part in parts)


class CapturedPotential:
    """A potential U whose value and gradient are recorded once as a CUDA graph; the same function.

    With few chains a GPU waits for Python to launch the next kernel; see ``benchmarks/README.md`` for what a graph
    saves. Where recording fails, one warning says why, and U runs as it is.

    A graph has one size of batch: fewer chains are computed beside those of the call before, and more record it anew.

    Args:
        make: Makes U. It is called once, and recorded: where weights that it makes U from have changed,
            :meth:`renew` makes the same U of them.
    """

    def __init__(self, make: Callable[[], LatentPotential]) -> None:
        self._make = make
        self._works = True
        self._renew: Callable[[], object] | None = None
        self._potential = make()
        self._input = torch.empty(0)
        self._results: tuple[torch.Tensor, ...] = ()
        self._replay: Callable[[], object] | None = None

    def renew(self) -> None:
        """Make U of the weights of now."""
        if self._works and self._renew is None:
            # What the first recording of U's gradient reads has to be what is made anew.
            self._replay = None
            recorded = self._try(lambda: record(self._make, self._potential.generator.device))
            if recorded is not None:
                self._potential, self._renew = recorded
        if self._renew is not None:
            self._renew()
        else:
            self._potential = self._make()

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """U of latents (N, *latent), (N,); its gradient in z is there at once, its second derivatives are not."""
        if torch.is_grad_enabled() and z.requires_grad:
            return with_gradient(z, self._value_and_gradient)
        return self._potential(z)

    def _value_and_gradient(self, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._works and not self._fits(z):
            self._capture(z)
        if self._replay is None:
            return value_and_gradient(self._potential, z)
        n = len(z)
        self._input[:n].copy_(z)
        self._replay()
        # Chains keep the results of a step, which the next replay writes over.
        return tuple(part[:n].clone() for part in self._results)

    def _fits(self, z: torch.Tensor) -> bool:
        held = self._input
        same_kind = z.dtype == held.dtype and z.shape[1:] == held.shape[1:]
        return self._replay is not None and same_kind and len(z) <= len(held)

    def _capture(self, z: torch.Tensor) -> None:
        # Memory of the graph before is free for the new one.
        self._replay, self._results, self._input = None, (), z.detach().clone()
        recorded = self._try(lambda: record(lambda: value_and_gradient(self._potential, self._input), z.device))
        if recorded is not None:
            self._results, self._replay = recorded

    def _try(self, attempt: Callable[[], T]) -> T | None:
        try:
            return attempt()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._works = False
            warnings.warn(f"chains run without a CUDA graph: recording failed: {reason(error)}", stacklevel=2)
            return None


def record(function: Callable[[], T], device: torch.device) -> tuple[T, Callable[[], object]]:
    """Record what ``function`` does on a GPU.

    Args:
        function: Reads and writes the same memory in every call; its results are tensors, or hold some.
        device: The GPU.

    Returns:
        Its results, and what computes them anew, into the same memory.
    """
    with torch.cuda.device(device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        # What is set up in a first call (libraries' handles, choices of algorithms) cannot be recorded.
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            function()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread of the program may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = function()
        # A recording computes nothing.
        graph.replay()
    return results, graph.replay


def _is_ours(module: nn.Module) -> bool:
    if type(module) is SumEnergy:
        return all(map(_is_ours, module.energies))
    known = type(module) in (*GENERATORS.values(), *ENERGIES.values())
    parts = list(module.modules())
    return known and all(type(part).__module__.startswith(_OURS) and not has_hooks(part) for part in parts)
