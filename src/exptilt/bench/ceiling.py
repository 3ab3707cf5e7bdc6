"""How many operations a gradient costs, how many a second this machine makes at best, and how long they take alone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from exptilt.sampling.kernel import value_and_gradient

# Calls between two looks at the clock; each look makes a GPU wait.
_TOGETHER = 5
# Which argument of an operation is the input; its other tensors are weights.
_INPUT_OF = {"convolution": 0, "addmm": 1, "mm": 0}


def flops_of_gradient(potential: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> int:
    """Floating-point operations of one ∇U(z) of one chain, counted on latents (N, *latent); weights frozen."""
    z = z.detach().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        # A copy, as the counter's hooks on modules take no leaf.
        torch.autograd.grad(potential(z.clone()).sum(), z)
    return counter.get_total_flops() // len(z)


@dataclass(frozen=True)
class Operation:
    """One operation of a network: what it is called with, tensors as their shapes.

    Attributes:
        name: ``convolution``, ``addmm`` or ``mm``.
        arguments: Its arguments; shapes of tensors, and other values as they are.
        flops: Floating-point operations of one call.
    """

    name: str
    arguments: tuple[Any, ...]
    flops: int

    def __str__(self) -> str:
        shapes = ["×".join(map(str, a)) for a in self.arguments if isinstance(a, torch.Size) and len(a) > 1]
        return f"{self.name} {' with '.join(shapes)}"


@torch.no_grad()
def dominating_operation(potential: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> Operation:
    """The operation that most of the arithmetic of U(z) goes into, at the batch size of z."""
    with _Recorder() as recorder:
        potential(z)
    name, arguments = max(recorder.flops, key=lambda key: recorder.flops[key])
    calls = recorder.calls[name, arguments]
    return Operation(name, arguments, recorder.flops[name, arguments] // calls)


class Ceiling:
    """An operation alone, forward and gradient of its input: the speed that a chain built of it could reach.

    Args:
        operation: What to run, see :func:`dominating_operation`.
        device: Where.
        dtype: What in.
    """

    def __init__(self, operation: Operation, device: torch.device, dtype: torch.dtype) -> None:
        self.operation, self.device = operation, device
        self._function = getattr(torch.ops.aten, operation.name).default
        self._arguments: list[Any] = [
            _random(a, device, dtype) if isinstance(a, torch.Size) else list(a) if isinstance(a, tuple) else a
            for a in operation.arguments
        ]
        self._input = self._arguments[_INPUT_OF[operation.name]].requires_grad_(True)
        self._output_gradient = torch.randn_like(self._run())

    def measure(self, at_least: float) -> float:
        """Floating-point operations a second, over ``at_least`` so many seconds."""
        self._forward_and_backward()
        calls, began = 0, _now(self.device)
        while (passed := _now(self.device) - began) < at_least:
            for _ in range(_TOGETHER):
                self._forward_and_backward()
            calls += _TOGETHER
        return 2 * self.operation.flops * calls / passed

    def _run(self) -> torch.Tensor:
        return self._function(*self._arguments)

    def _forward_and_backward(self) -> None:
        torch.autograd.grad(self._run(), self._input, self._output_gradient)


class OperationsAlone:
    """Every convolution and matrix product of a gradient of U, as it is run, and nothing beside.

    What a chain takes longer than these is not arithmetic of layers: element-wise functions, copies, the chain itself.

    Args:
        potential: U.
        z: Latents of as many chains as run side by side, (N, *latent).
    """

    def __init__(self, potential: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> None:
        self._chains, self._device = len(z), z.device
        with _Calls() as recorder:
            value_and_gradient(potential, z)
        self._calls = recorder.calls

    @torch.no_grad()
    def measure(self, at_least: float) -> float:
        """Seconds that they take for a gradient of one chain, each repeated for ``at_least`` so many seconds."""
        total = 0.0
        for (function, arguments), count in self._calls.items():
            inputs = [a.random(self._device) if isinstance(a, _Layout) else a for a in arguments]
            function(*inputs)
            calls, passed, began = 0, 0.0, _now(self._device)
            while calls == 0 or passed < at_least:
                function(*inputs)
                calls, passed = calls + 1, _now(self._device) - began
            total += count * passed / calls
        return total / self._chains


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def random(self, device: torch.device) -> torch.Tensor:
        """A tensor of random numbers that lies in memory like this."""
        length = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return torch.randn(length, device=device).to(self.dtype).as_strided(self.shape, self.stride)


class _Calls(TorchDispatchMode):
    """Counts calls of whatever the counter of operations knows, by the layout of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[tuple[Callable[..., Any], tuple[Any, ...]], int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in flop_registry and not kwargs:
            self.calls[func, tuple(map(_layout, args))] += 1
        return func(*args, **(kwargs or {}))


def _layout(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return _Layout(tuple(argument.shape), argument.stride(), argument.dtype)
    return tuple(argument) if isinstance(argument, list) else argument


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[tuple[str, tuple[Any, ...]], int] = defaultdict(int)
        self.calls: dict[tuple[str, tuple[Any, ...]], int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name in _INPUT_OF:
            key = name, tuple(_hashable(a) for a in args)
            self.flops[key] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            self.calls[key] += 1
        return result


def _hashable(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.shape
    return tuple(argument) if isinstance(argument, list) else argument


def _random(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.randn(shape, device=device, dtype=dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _now(device: torch.device) -> float:
    torch.get_device_module(device).synchronize()
    return time.perf_counter()
