"""The same frozen network with less arithmetic: BatchNorm and pooling become part of convolutions."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.energies.resnet import SLOPE, ResidualBlock

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def fast_copy(module: M) -> M:
    """A network that gives the outputs of ``module`` up to rounding, for evaluation and for gradients of its input.

    In an ``nn.Sequential``, a BatchNorm in evaluation mode becomes part of the (transposed) convolution before it. In a
    block of :class:`~exptilt.energies.ResNetEnergy` that halves the resolution, the second convolution is made for a
    quarter of the pixels, see :class:`HalvingBlock`.

    What does not change is shared with ``module``, which is left as it is; a module without anything to change is
    returned itself. Weights that do change are copies: make a new fast copy after training.
    """
    children = {name: child if child is None else fast_copy(child) for name, child in module._modules.items()}
    if type(module) is nn.Sequential:
        children = _fold_norms(children)
    if isinstance(module, ResidualBlock) and module.halve and is_plain(module.second):
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
    """A residual block with halve = True, whose second convolution has a stride of 2.

    The mean over 2×2 pixels of a convolution is the convolution of such means, here of those around every corner of a
    pixel, at every other of which it is wanted.
    """

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.first, self.shortcut = block.first, block.shortcut
        self.second = strided(block.second)
        self.training = block.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = around_corners(F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE))
        return self.second(hidden) + self.shortcut(F.avg_pool2d(x, 2))


def around_corners(x: torch.Tensor) -> torch.Tensor:
    """Means over the pixels around every corner, zeros around the image: (N, C, H, W) to (N, C, H + 1, W + 1)."""
    return F.avg_pool2d(x, 2, stride=1, padding=1)


def strided(convolution: nn.Conv2d) -> nn.Conv2d:
    """``avg_pool2d(convolution(x), 2)`` as a convolution of ``around_corners(x)``, for one that keeps the size of x."""
    result = copy.copy(convolution)
    result.stride, result.padding = (2, 2), tuple(side // 2 - 1 for side in convolution.kernel_size)  # type: ignore[assignment]
    return result


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
