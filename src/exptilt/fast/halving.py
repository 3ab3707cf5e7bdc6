"""Convolutions around a mean over 2×2 pixels, with the transpose that their gradient is.

On a CPU the means come first, and the convolution is made for fewer pixels. On a GPU means over images whose channels
lie together take longer than the convolutions around them; there the means become part of the weights.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.fast.fold import around_corners, with_weights
from exptilt.fast.layers import Convolution, channels_last, is_few


class LinearMap(Protocol):
    """A linear map of images, but for a bias."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """y of x."""
        ...

    def transpose(self, y: torch.Tensor, like: torch.Tensor, /) -> torch.Tensor:
        """The gradient of x, of the height and width of ``like``, from that of y."""
        ...


def of_corners(layer: nn.Conv2d, dtype: torch.dtype) -> LinearMap:
    """``layer(around_corners(x))``."""
    if _means_come_first(layer):
        return _OfCorners(Convolution(layer, dtype))
    whole = with_weights(layer, around_corners(layer.weight), layer.bias)
    whole.padding = tuple(side + 1 for side in layer.padding)  # type: ignore[assignment]
    return Convolution(whole, dtype)


def of_means(layer: nn.Conv2d | nn.Identity, dtype: torch.dtype) -> LinearMap:
    """``layer(avg_pool2d(x, 2))`` of a convolution that sees one pixel, or of none."""
    if isinstance(layer, nn.Identity):
        return _OfMeans(None)
    assert layer.kernel_size == (1, 1)
    if _means_come_first(layer):
        return _OfMeans(Convolution(layer, dtype))
    whole = with_weights(layer, layer.weight.expand(-1, -1, 2, 2) / 4, layer.bias)
    whole.stride = (2, 2)
    return Convolution(whole, dtype)


def _means_come_first(layer: nn.Conv2d) -> bool:
    return layer.weight.device.type != "cuda"


class _OfCorners:
    def __init__(self, convolution: Convolution) -> None:
        self._convolution = convolution

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        means = around_corners(x)
        return self._convolution(channels_last(means, x.dtype) if is_few(x.shape[1]) else means)

    def transpose(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        corners = torch.Size(side + 1 for side in like.shape[2:])
        return F.avg_pool2d(self._convolution.kernel.transpose(y, corners), 2, stride=1)


class _OfMeans:
    def __init__(self, convolution: Convolution | None) -> None:
        self._convolution = convolution

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        means = F.avg_pool2d(x, 2)
        return means if self._convolution is None else self._convolution(means)

    def transpose(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if self._convolution is not None:
            sides = torch.Size(side // 2 for side in like.shape[2:])
            y = self._convolution.kernel.transpose(y, sides)
        return torch.ops.aten.avg_pool2d_backward(y, like, [2, 2], [2, 2], [0, 0], False, True, None)
