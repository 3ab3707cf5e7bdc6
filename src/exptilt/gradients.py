"""Functions of independent rows that give their gradient along with their value, for autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def with_gradient(z: torch.Tensor, evaluate: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """The value of ``evaluate(z) -> (value, gradient)``, (N,), differentiable once in z, (N, ...)."""
    return _WithGradient.apply(z, evaluate)  # type: ignore[no-any-return]


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, z: torch.Tensor, evaluate: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    ) -> torch.Tensor:
        value, gradient = evaluate(z)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return incoming.view(-1, *[1] * (gradient.dim() - 1)) * gradient, None
