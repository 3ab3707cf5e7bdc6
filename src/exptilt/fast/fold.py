"""The same frozen network with less arithmetic: BatchNorm and pooling become part of convolutions."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.energies.resnet import SLOPE, _ResidualBlock

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def fast_copy(module: M) -> M:
    """A network that gives the outputs of ``module`` up to rounding, for evaluation and for gradients of its input.

    In an ``nn.Sequential``, a BatchNorm in evaluation mode becomes part of the (transposed) convolution before it. In a
    block of :class:`~exptilt.energies.ResNetEnergy` that halves the resolution, a 3×3 convolution and the mean of 2×2
    pixels after it become one 4×4 convolution of stride 2, which costs 4/9.

    What does not change is shared with ``module``, which is left as it is; a module without anything to change is
    returned itself. Weights that do change are copies: make a new fast copy after training.
    """
    children = {name: child if child is None else fast_copy(child) for name, child in module._modules.items()}
    if type(module) is nn.Sequential:
        children = _fold_norms(children)
    if isinstance(module, _ResidualBlock) and module.halve and is_plain(module.second):
        return HalvingBlock(module)  # type: ignore[return-value]
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    return with_children(module, children)


def with_children(module: M, children: dict[str, nn.Module | None]) -> M:
    """A copy of ``module`` with other children; everything else is shared."""
    result = copy.copy(module)
    result._modules = children  # pyright: ignore[reportAttributeAccessIssue] - a child may be None
    return result


class HalvingBlock(nn.Module):
    """A residual block with halve = True: the mean over 2×2 pixels of a 3×3 convolution is a 4×4 one of stride 2."""

    def __init__(self, block: _ResidualBlock) -> None:
        super().__init__()
        self.first, self.shortcut = block.first, block.shortcut
        weight = block.second.weight
        self.second = with_weights(block.second, _in_format_of(weight, pooled_weight(weight)), block.second.bias)
        self.second.kernel_size, self.second.stride = (4, 4), (2, 2)
        self.training = block.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE))
        return hidden + self.shortcut(F.avg_pool2d(x, 2))


def pooled_weight(weight: torch.Tensor) -> torch.Tensor:
    """Weights (out, in, k + 1, k + 1) of stride 2 that give the mean over 2×2 pixels of what (out, in, k, k) give."""
    shifted = [F.pad(weight, (i, 1 - i, j, 1 - j)) for i in (0, 1) for j in (0, 1)]
    return torch.stack(shifted).mean(0)


def _fold_norms(layers: dict[str, nn.Module | None]) -> dict[str, nn.Module | None]:
    """The layers of a Sequential, BatchNorms after convolutions replaced by the identity."""
    result = dict(layers)
    names = list(layers)
    for name, following in itertools.pairwise(names):
        convolution, norm = layers[name], layers[following]
        if convolution is not None and is_plain(convolution) and type(norm) is nn.BatchNorm2d and _is_fixed(norm):
            result[name], result[following] = _folded(convolution, norm), nn.Identity()
    return result


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer is a (transposed) convolution and nothing beside: no hook, no parametrisation, one group."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return type(layer) in kinds and getattr(layer, "groups", 0) == 1 and not has_hooks(layer)


def _is_fixed(norm: nn.BatchNorm2d) -> bool:
    return not norm.training and norm.running_mean is not None and not has_hooks(norm)


def has_hooks(layer: nn.Module) -> bool:
    """Whether a forward or backward hook is on this module itself."""
    before, after = layer._forward_pre_hooks, layer._forward_hooks
    return bool(before or after or layer._backward_pre_hooks or layer._backward_hooks)


def _folded(convolution: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    assert isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    bias = bias * scale + norm.bias if norm.affine else bias * scale
    per_output = (
        scale[None, :, None, None] if isinstance(convolution, nn.ConvTranspose2d) else scale[:, None, None, None]
    )
    return with_weights(convolution, convolution.weight * per_output, bias)


def with_weights(layer: M, weight: torch.Tensor, bias: torch.Tensor | None) -> M:
    """The same layer with other weights, frozen."""
    result = copy.copy(layer)
    result._parameters = {
        "weight": nn.Parameter(weight.detach(), requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias.detach(), requires_grad=False),
    }
    return result


def _in_format_of(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    last = like.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
