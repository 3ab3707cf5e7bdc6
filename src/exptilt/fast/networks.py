"""Which networks get gradients by hand: Sequentials of layers that are known, and the paper's energy."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Transform
from torch.nn.utils.parametrize import is_parametrized

from exptilt.energies import MLPEnergy, ResNetEnergy, SmallEnergy
from exptilt.energies.resnet import SLOPE, ResidualBlock
from exptilt.fast.coupling import InverseSteps
from exptilt.fast.fold import HalvingBlock, has_hooks, is_plain, strided, with_children
from exptilt.fast.halving import LinearMap, of_corners, of_means
from exptilt.fast.layers import (
    Convolution,
    FromOnePixel,
    Layer,
    LeakyReLU,
    Linear,
    Saved,
    SiLU,
    TransposedConvolution,
    through_leaky,
)
from exptilt.fast.stack import Stack
from exptilt.generators import VAE, Glow, ToyVAE
from exptilt.generators.latent_flow import LatentFlow

M = TypeVar("M", bound=nn.Module)


def by_hand(module: M, dtype: torch.dtype) -> M:
    """A copy in which known networks are :class:`~exptilt.fast.stack.Stack`; without any, ``module`` itself.

    Known are the decoders of :class:`VAE` (also inside of other generators) and :class:`ToyVAE`, the couplings of
    :class:`Glow`, and the energies :class:`ResNetEnergy`, :class:`SmallEnergy` and :class:`MLPEnergy`, as far as nobody
    put a hook or a parametrisation on their layers. Everything is evaluated in ``dtype`` that autocast would.

    Args:
        module: A frozen network, in evaluation mode.
        dtype: What autocast would run it in; weights in float64 stay what they are.
    """
    children = {name: child if child is None else by_hand(child, dtype) for name, child in module._modules.items()}
    weight = next(module.parameters(), None)
    if weight is not None:
        dtype = weight.dtype if weight.dtype == torch.float64 else dtype
        for kind, convert in _CONVERSIONS.items():
            if type(module) is kind and not any(p.requires_grad for p in module.parameters()):
                children |= convert(module, dtype)
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    return with_children(module, children)


Children = dict[str, nn.Module | None]


def _decoder(vae: nn.Module, dtype: torch.dtype) -> Children:
    assert isinstance(vae, (VAE, ToyVAE))
    layers = None if has_hooks(vae.decoder) else _layers(list(vae.decoder), dtype)
    return {} if layers is None else {"decoder": Stack(layers, dtype, vae.decoder)}


def _mlp(energy: nn.Module, dtype: torch.dtype) -> Children:
    assert isinstance(energy, MLPEnergy)
    flatten, *hidden, head = energy.layers
    layers = _layers(hidden, dtype)
    if layers is None or has_hooks(energy.layers) or has_hooks(flatten):
        return {}
    return {"layers": nn.Sequential(flatten, Stack(layers, dtype, nn.Sequential(*hidden)), head)}


def _small(energy: nn.Module, dtype: torch.dtype) -> Children:
    assert isinstance(energy, SmallEnergy)
    between = [part for layer in energy.layers for part in (layer, nn.LeakyReLU(SLOPE))][:-1]
    layers = _layers(between, dtype)
    return {} if layers is None else {"layers": nn.ModuleList([Stack(layers, dtype, energy.layers)])}


def _resnet(energy: nn.Module, dtype: torch.dtype) -> Children:
    assert isinstance(energy, ResNetEnergy)
    first, *rest = energy.blocks
    if not isinstance(first, HalvingBlock) or not _is_untouched(energy.stem) or not _is_untouched(energy.blocks):
        return {}
    layers = [_Entry(energy.stem, first, dtype), *(_Residual(block, dtype) for block in rest)]
    origin = nn.ModuleList([energy.stem, energy.blocks])
    return {"stem": nn.Identity(), "blocks": Stack(layers, dtype, origin)}


def _glow(glow: nn.Module, dtype: torch.dtype) -> Children:
    assert isinstance(glow, Glow)
    if not _is_untouched(glow.blocks):
        return {}
    levels = [block for block in glow.blocks if isinstance(block, nn.ModuleList)]
    return {"blocks": nn.ModuleList(nn.ModuleList([InverseSteps(level, dtype)]) for level in levels)}


def _latent_flow(flow: nn.Module, dtype: torch.dtype) -> Children:
    assert isinstance(flow, LatentFlow)
    return {"couplings": nn.ModuleList(_FixedCoupling(coupling) for coupling in flow.couplings)}


_CONVERSIONS = {
    VAE: _decoder,
    ToyVAE: _decoder,
    MLPEnergy: _mlp,
    SmallEnergy: _small,
    ResNetEnergy: _resnet,
    Glow: _glow,
    LatentFlow: _latent_flow,
}


def _layers(modules: list[nn.Module], dtype: torch.dtype) -> list[Layer] | None:
    """The layers by hand, or None if one is not known. The first of them is to be one that makes a new tensor."""
    layers = list[Layer]()
    for module in modules:
        match module:
            case _ if has_hooks(module):
                return None
            case nn.Identity():
                continue
            case nn.ConvTranspose2d() if is_plain(module) and _is_simple(module):
                from_one = not layers and module.stride == (1, 1) and module.padding == (0, 0)
                layers.append((FromOnePixel if from_one else TransposedConvolution)(module, dtype))
            case nn.Conv2d() if is_plain(module) and _is_simple(module):
                layers.append(Convolution(module, dtype))
            case nn.Linear() if type(module) is nn.Linear:
                layers.append(Linear(module, dtype))
            case nn.ReLU():
                layers.append(LeakyReLU(0.0))
            case nn.LeakyReLU(negative_slope=slope) if 0 <= slope < 1:
                layers.append(LeakyReLU(slope))
            case nn.SiLU():
                layers.append(SiLU())
            case _:
                return None
    return layers


def _is_untouched(module: nn.Module) -> bool:
    """Whether nobody put a hook or a parametrisation on it or anything in it."""
    convolutions = all(is_plain(part) for part in module.modules() if isinstance(part, nn.Conv2d))
    return convolutions and not any(has_hooks(part) or is_parametrized(part) for part in module.modules())


def _is_simple(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return layer.dilation == (1, 1) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


class _FixedCoupling(nn.Module):
    """A coupling of zuko whose transform is made once: making one looks at its mask, for which a GPU has to wait."""

    def __init__(self, coupling: nn.Module) -> None:
        super().__init__()
        self.coupling, self._transform = coupling, coupling()

    def forward(self) -> Transform:
        return self._transform


class _Residual:
    """A block of :class:`ResNetEnergy`, or the :class:`HalvingBlock` made of one."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(block, (ResidualBlock, HalvingBlock))
        self._first = Convolution(block.first, dtype)
        self._second: LinearMap
        self._shortcut: LinearMap | None
        if isinstance(block, HalvingBlock):
            self._second, self._shortcut = of_corners(block.second, dtype), of_means(block.shortcut, dtype)
        else:
            self._second = Convolution(block.second, dtype)
            self._shortcut = None if isinstance(block.shortcut, nn.Identity) else Convolution(block.shortcut, dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        a = F.leaky_relu(x, SLOPE)
        h = F.leaky_relu_(self._first(a), SLOPE)
        return self._second(h).add_(x if self._shortcut is None else self._shortcut(x)), (a, h)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        a, h = saved
        inner = _to_pixels(self._first, a, h, self._second.transpose(gradient, h))
        return inner.add_(gradient if self._shortcut is None else self._shortcut.transpose(gradient, a))


class _Entry:
    """Stem and first block. The mean over 2×2 pixels of the stem, which the block carries on, is a convolution too."""

    def __init__(self, stem: nn.Conv2d, block: HalvingBlock, dtype: torch.dtype) -> None:
        self._stem, self._carried = Convolution(stem, dtype), of_corners(strided(stem), dtype)
        self._first, self._second = Convolution(block.first, dtype), of_corners(block.second, dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        a = F.leaky_relu_(self._stem(x), SLOPE)
        h = F.leaky_relu_(self._first(a), SLOPE)
        return self._second(h).add_(self._carried(x)), (a, h)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        a, h = saved
        inner = _to_pixels(self._first, a, h, self._second.transpose(gradient, h))
        return self._stem.transpose(inner, a).add_(self._carried.transpose(gradient, a))


def _to_pixels(first: Convolution, a: torch.Tensor, h: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of x from that of h = leaky(first(a)), with a = leaky(x)."""
    inner = first.transpose(through_leaky(gradient, h, SLOPE), a)
    return through_leaky(inner, a, SLOPE)
