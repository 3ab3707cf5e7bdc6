"""Layers with hand-written gradients, one after the other, as one module and one node of autograd's graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from exptilt.fast.layers import Layer, Saved, channels_last
from exptilt.precision import without_autocast

Own = Callable[[torch.Tensor, torch.dtype], torch.Tensor]


class Stack(nn.Module):
    """Layers one after the other; frozen, with a gradient of the input, and none of the gradient.

    Autograd would record each operation, cast frozen weights anew in every call (autocast keeps casts only of weights
    that have a gradient), and write each intermediate result to memory of its own.

    Args:
        layers: The layers.
        dtype: What they compute in.
        own: Copies an input, or the gradient of a result, as the layers expect it.
        origin: What they were made of: its parameters tell device and type.
    """

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype, origin: nn.Module, own: Own | None = None) -> None:
        super().__init__()
        self.layers, self.dtype, self.origin, self.own = tuple(layers), dtype, origin, own or _own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last layer's result, in ``dtype``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _WithGradient.apply(x, self)  # type: ignore[no-any-return]
        with without_autocast(x.device):
            x = self.own(x, self.dtype)
            for layer in self.layers:
                x, _ = layer.forward(x)
        return x


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, stack: Stack
    ) -> torch.Tensor:
        ctx.stack, ctx.dtype, kept = stack, x.dtype, list[Saved]()
        with without_autocast(x.device):
            x = stack.own(x, stack.dtype)
            for layer in stack.layers:
                x, saved = layer.forward(x)
                kept.append(saved)
        ctx.counts = [len(saved) for saved in kept]
        ctx.save_for_backward(*itertools.chain(*kept))
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        stack: Stack = ctx.stack
        saved, end = ctx.saved_tensors, len(ctx.saved_tensors)
        with without_autocast(gradient.device):
            gradient = stack.own(gradient, stack.dtype)
            for layer, count in zip(reversed(stack.layers), reversed(ctx.counts), strict=True):
                gradient = layer.backward(gradient, saved[end - count : end])
                end -= count
        return gradient.to(ctx.dtype), None


def _own(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy that a layer may write on."""
    return channels_last(x, dtype) if x.dim() == 4 else x.to(dtype, copy=True)
