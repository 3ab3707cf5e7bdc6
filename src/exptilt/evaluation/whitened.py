"""A classifier that learns in few passes over the data: its first layer whitens patches and is not learned."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from exptilt.evaluation.network import ImageClassifier

_PATCH = 2
# Added to the variance of patches (pixels in [−1, 1]) along an axis, so that axes of noise alone are not blown up.
_LEAST_VARIANCE = 1e-4
# Running statistics of few updates: each batch counts as 40% of them.
_NORM_MOMENTUM = 0.4


class WhitenedNetwork(ImageClassifier):
    """A plain convolutional classifier of 32×32 images (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds").

    2×2 patches are whitened by a layer that :meth:`fit_data` computes. Three blocks of two 3×3 convolutions follow,
    each convolution the identity at the start, as far as it can be; the largest activation over what is left of the
    image (3×3) is the feature. As in :class:`~exptilt.evaluation.network.FeatureNetwork` there is no label smoothing.

    Args:
        channels: Channels of the images.
        width: Channels of the first block.
        classes: Number of classes.
        feature_size: Channels of the second and third block, and so the length F of a feature vector.

    Raises:
        InputError: An argument is not a whole number ≥ 1.
    """

    def __init__(self, channels: int, width: int = 64, classes: int = 10, feature_size: int = 256) -> None:
        super().__init__(channels=channels, width=width, classes=classes, feature_size=feature_size)
        axes = channels * _PATCH**2
        self.whiten = nn.Conv2d(channels, 2 * axes, _PATCH, bias=False).requires_grad_(False)
        self.blocks = nn.Sequential(
            _Block(2 * axes, width), _Block(width, feature_size), _Block(feature_size, feature_size)
        )
        self.head = nn.Linear(feature_size, classes, bias=False)
        # One and a half times the speed of the default layout in convolutions on CPUs.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def fit_data(self, images: torch.Tensor) -> None:
        """Whiten the 2×2 patches of images: unit variance along each of their principal axes, and its negative.

        Args:
            images: Training images (N, C, 32, 32) in [−1, 1]; a few thousand are enough.
        """
        patches = functional.unfold(images, _PATCH).transpose(1, 2).flatten(0, 1).double()
        variances, axes = torch.linalg.eigh(torch.cov(patches.T))
        axes = axes.T / (variances + _LEAST_VARIANCE).sqrt()[:, None]
        self.whiten.weight.copy_(torch.cat((axes, -axes)).view_as(self.whiten.weight))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Penultimate activations (N, F) of images (N, C, 32, 32) in [−1, 1]."""
        return self.blocks(functional.gelu(self.whiten(x))).amax((2, 3))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of features (N, F), scaled so that the head learns at the pace of the convolutions."""
        return self.head(features) / 9


class _Block(nn.Module):
    """Two convolutions, the resolution halved after the first."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.convolution1, self.norm1 = _convolution(size_in, size_out), _norm(size_out)
        self.convolution2, self.norm2 = _convolution(size_out, size_out), _norm(size_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.norm1(functional.max_pool2d(self.convolution1(x), 2)))
        return functional.gelu(self.norm2(self.convolution2(x)))


def _convolution(size_in: int, size_out: int) -> nn.Conv2d:
    convolution = nn.Conv2d(size_in, size_out, 3, padding=1, bias=False)
    with torch.no_grad():
        # As nn.init.dirac_, which makes thousands of calls: loading a model is allowed few.
        passed_on = convolution.weight[:size_in].zero_()
        passed_on[:, :, 1, 1] = torch.eye(len(passed_on), size_in)
    return convolution


def _norm(size: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(size, momentum=_NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
