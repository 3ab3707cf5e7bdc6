"""Features of a convolutional network that is not trained, for images that no network is at hand for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.evaluation.images import as_rgb

NAME = "random"
"""What stands after ``--features``."""

_WIDTHS = (32, 64, 128, 128)
# Larger images are averaged over whole pixels until the shorter side is less than twice this.
_SIDE = 64


class RandomNetwork(nn.Module):
    """Means over the image of what each of four 3×3 convolutions with random weights gives, halved in size between.

    Random weights see colours, edges and textures at four scales, and no objects. On images unlike those of a trained
    network they can be the better judge (Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative
    models"). The weights, He et al.'s (2015), are the same for every seed of the caller.
    """

    num_features = sum(_WIDTHS)
    preparation = f"grey repeated to 3 channels, then averaged to a shorter side below {2 * _SIDE}"
    code = "exptilt RandomNetwork 1"

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.convolutions = nn.ModuleList()
        for size_in, size_out in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            convolution = nn.Conv2d(size_in, size_out, 3, padding=1)
            with torch.no_grad():
                deviation = math.sqrt(2 / (9 * size_in))
                convolution.weight.copy_(deviation * torch.randn(convolution.weight.shape, generator=random))
                convolution.bias.copy_(0.1 * torch.randn(size_out, generator=random))  # type: ignore[union-attr]
            self.convolutions.append(convolution)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, 352), each ≥ 0, of images (N, C, H, W) in [−1, 1], C 1 or 3.

        Raises:
            InputError: The images have another number of channels.
        """
        x = as_rgb(F.avg_pool2d(x, max(1, min(x.shape[2:]) // _SIDE)), NAME)
        means = []
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
            means.append(x.mean((2, 3)))
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return torch.cat(means, dim=1)
