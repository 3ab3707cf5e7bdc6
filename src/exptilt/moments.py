"""Means and variances of channels over a batch that several processes share."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from exptilt import distributed, rows


def of_channels(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean and (biased) variance of each channel over the whole batch, (C,) each, and of how many numbers they are.

    Of a part of a batch (:func:`exptilt.rows.part`) the other processes' parts count too, as they do for the gradient.

    Args:
        x: (N, C) or (N, C, …).
    """
    dimensions = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x, dimensions, correction=0)
    count = x.numel() // x.shape[1]
    if not rows.is_part():
        return mean, variance, count
    own = torch.cat([mean, variance, mean.new_tensor([float(count)])])
    means, variances, counts = _OfAll.apply(own).split([len(mean), len(mean), 1], dim=1)  # type: ignore[union-attr]
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    # What a process's mean differs by adds to the variance (Chan, Golub, LeVeque 1983).
    return mean, (shares * (variances + (means - mean).square())).sum(0), int(counts.sum())


@contextlib.contextmanager
def shared_by_batch_norm(module: nn.Module) -> Iterator[None]:
    """Within it, the BatchNorms of a module in training normalise a part of a batch by the whole batch's moments.

    ``torch.nn.SyncBatchNorm`` does so on GPUs alone.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        norm.forward = types.MethodType(_forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(self: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    if not (self.training and rows.is_part()):
        return type(self).forward(self, x)
    self._check_input_dim(x)
    with torch.autocast(x.device.type, enabled=False):
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance, count = of_channels(full)
        _follow(self, mean, variance, count)
        shape = (1, -1, *[1] * (x.dim() - 2))
        y = (full - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
    """Running moments, as torch keeps them."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), momentum)


class _OfAll(torch.autograd.Function):
    """A vector (K,) of each process, (processes, K); what it does to the losses of all processes comes back."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        """All vectors, by rank."""
        size = distributed.world().size
        return distributed.gather(own[None], size)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """The gradient of the sum of all processes' losses."""
        gradient = gradient.contiguous().clone()
        distributed.add_up([gradient])
        return gradient[distributed.world().rank]
